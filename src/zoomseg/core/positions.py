"""Where organs lie beside each other: what training cases show of it, and which parts of a label map lie far
from all of that. Plain numpy, in world coordinates: the same however a scan is stored.

An organ that is found in the pelvis because something there is as bright as a stomach is in one piece and
sure of itself: neither its size nor its probability gives it away, its place does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Grid, Vector3

SAMPLED_MM = 3.0
"""Places are taken from voxels about so far apart; what is smaller is of no account here."""

ANCHORS = 8
"""By so many other organs an organ's place is known: those around it that tell it best."""

MARGIN_MM = 30.0
"""Patients differ from those in training by so much, and are still like them."""

LEAST_ANCHORS = 2
"""By fewer, nothing is said of an organ's place."""

Classes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Components = Callable[[Mask], npt.NDArray[np.integer]]
"""Connected components of a mask, numbered from 1."""
Span = tuple[float, float]
Offsets = tuple[Span, Span, Span]
"""Of an organ's bounding box from another organ's median, mm, along x, y, z: lowest and highest seen."""


@dataclass(frozen=True)
class Place:
    """Of one organ in one scan, RAS+ millimetres."""

    median_mm: Vector3
    """Along each axis of the scan; unlike a mean it does not mind a few voxels elsewhere."""
    low_mm: Vector3
    high_mm: Vector3
    """Corners of its bounding box."""
    whole: bool
    """Whether it lies inside the scan, and touches no end of it."""
    volume_ml: float


@dataclass(frozen=True)
class OrganPlaces:
    """What training cases show of one organ."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    volume_ml: Span | None
    """Least and largest of the cases that hold it whole; None: none does."""
    offsets_mm: Mapping[str, Offsets]
    """By the organ that it is seen from."""


def places(classes: Classes, grid: Grid) -> dict[int, Place]:
    """The place of every class in a label map ``[I, J, K]``, by class index."""
    spacing = grid.spacing_mm
    step = np.array([max(1, int(SAMPLED_MM / mm)) for mm in spacing])
    sampled = classes[tuple(slice(None, None, int(s)) for s in step)]
    where = np.nonzero(sampled)
    found, index = sampled[where], np.stack(where, axis=1) * step
    voxel_ml = grid.voxel_volume_ml * float(np.prod(step))
    out = {}
    for c in np.unique(found).tolist():
        own = index[found == c]
        first, last = own.min(axis=0), own.max(axis=0)
        whole = bool((first >= step).all() and (last + step < classes.shape).all())
        low, high = _box_mm(grid, first, last)
        middle = grid.world(np.median(own, axis=0))
        out[int(c)] = Place(_vector(middle), low, high, whole, len(own) * voxel_ml)
    return out


def _box_mm(
    grid: Grid, first: npt.NDArray[np.integer], last: npt.NDArray[np.integer]
) -> tuple[Vector3, Vector3]:
    """Lowest and highest world coordinates of the centres of a box's voxels."""
    corners = grid.world(np.array(list(itertools.product(*zip(first, last, strict=True)))))
    return _vector(corners.min(axis=0)), _vector(corners.max(axis=0))


def learn(cases: Sequence[Mapping[str, Place]], names: Iterable[str]) -> dict[str, OrganPlaces]:
    """What cases (places by organ) show of each of these organs, where they show anything."""
    out = {}
    for name in names:
        whole = [case[name].volume_ml for case in cases if name in case and case[name].whole]
        seen = {other: _offsets(cases, name, other) for other in names if other != name}
        known = {other: found for other, found in seen.items() if found is not None}
        most = max((count for count, _ in known.values()), default=0)
        often = {other: offsets for other, (count, offsets) in known.items() if 2 * count >= most}
        best = sorted(often, key=lambda other: _size(often[other]))[:ANCHORS]
        volume = (min(whole), max(whole)) if whole else None
        if volume is not None or best:
            out[name] = OrganPlaces(volume, {other: often[other] for other in best})
    return out


def _offsets(cases: Sequence[Mapping[str, Place]], name: str, other: str) -> tuple[int, Offsets] | None:
    """In how many cases an organ is seen from another one that is whole, and within which bounds."""
    pairs = [
        (case[name], case[other]) for case in cases if name in case and other in case and case[other].whole
    ]
    if not pairs:
        return None
    low = np.min([np.subtract(own.low_mm, seen.median_mm) for own, seen in pairs], axis=0)
    high = np.max([np.subtract(own.high_mm, seen.median_mm) for own, seen in pairs], axis=0)
    x, y, z = ((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return len(pairs), (x, y, z)


def _size(offsets: Offsets) -> float:
    return float(np.prod([high - low for low, high in offsets]))


@dataclass(frozen=True)
class Part:
    """A connected part of an organ that lies far from where training had the organ."""

    voxels: int
    volume_ml: float
    distance_mm: float
    """From there, along the axis on which it is farthest."""


@dataclass(frozen=True)
class Misplaced:
    """What lies out of place of one class of a label map."""

    parts: tuple[Part, ...]
    alone: bool
    """Whether no other part of the organ lies in place."""

    def told(self, organ: str) -> str:
        """In a line, where they were taken out."""
        volume = sum(part.volume_ml for part in self.parts)
        distance = max(part.distance_mm for part in self.parts)
        parts = f"{len(self.parts)} parts" if len(self.parts) > 1 else "1 part"
        return f"{organ}: {parts} ({volume:.1f} ml) removed, {distance:.0f} mm from where training had it"


def misplaced(
    classes: Classes,
    grid: Grid,
    names: Sequence[str],
    known: Mapping[str, OrganPlaces],
    components: Components,
) -> dict[int, Misplaced]:
    """Find parts of organs that lie out of place in a label map ``[I, J, K]``, and take out of it (in place)
    those of organs that also have a part where they belong: that one is the organ. Where there is none, the
    organ may lie elsewhere in this patient, and stays.

    Args:
        names: of the classes from 1 on.
        known: what training cases showed.

    Returns:
        By class index, what was found.
    """
    seen = places(classes, grid)
    by_name = {names[c - 1]: place for c, place in seen.items()}
    out = {}
    for c, place in seen.items():
        anchors = _anchors(names[c - 1], by_name, known)
        if len(anchors) < LEAST_ANCHORS or _distance(place.low_mm, place.high_mm, anchors) == 0:
            continue
        found = _take_out(classes, grid, c, anchors, components)
        if found is not None:
            out[c] = found
    return out


@dataclass(frozen=True)
class _Anchor:
    """Where an organ's box may lie, as one other organ has it, RAS+ mm."""

    low_mm: npt.NDArray[np.float64]
    high_mm: npt.NDArray[np.float64]


def _anchors(name: str, found: Mapping[str, Place], known: Mapping[str, OrganPlaces]) -> list[_Anchor]:
    """By the organs around it that are whole, and of a size that training knows of them."""
    if name not in known:
        return []
    out = []
    for other, offsets in known[name].offsets_mm.items():
        place = found.get(other)
        if place is None or not place.whole or not usual_volume(place.volume_ml, known.get(other)):
            continue
        low, high = np.array(offsets).T
        middle = np.array(place.median_mm)
        out.append(_Anchor(middle + low - MARGIN_MM, middle + high + MARGIN_MM))
    return out


def usual_volume(volume_ml: float, known: OrganPlaces | None, whole: bool = True) -> bool:
    """Whether an organ is between half of the smallest and twice the largest of training; True where training
    does not say. Of one that is not ``whole`` in the scan only the upper end counts."""
    if known is None or known.volume_ml is None:
        return True
    low, high = known.volume_ml
    return (not whole or low / 2 <= volume_ml) and volume_ml <= 2 * high


def _distance(low_mm: Sequence[float], high_mm: Sequence[float], anchors: Sequence[_Anchor]) -> float:
    """How far a box reaches beyond where anchors have the organ, in their median; 0 where it is inside."""
    beyond = [max(*(a.low_mm - np.array(low_mm)), *(np.array(high_mm) - a.high_mm), 0.0) for a in anchors]
    return float(np.median(beyond))


def _apart(low_mm: Sequence[float], high_mm: Sequence[float], anchors: Sequence[_Anchor]) -> float:
    """How far it lies from there; above 0 only where all of it lies outside."""
    beyond = [max(*(a.low_mm - np.array(high_mm)), *(np.array(low_mm) - a.high_mm), 0.0) for a in anchors]
    return float(np.median(beyond))


def _take_out(
    classes: Classes, grid: Grid, c: int, anchors: Sequence[_Anchor], components: Components
) -> Misplaced | None:
    numbered = components(classes == c)
    where = np.nonzero(numbered)
    number, index = numbered[where], np.stack(where, axis=1)
    parts: dict[int, Part] = {}
    numbers = np.unique(number).tolist()
    for n in numbers:
        own = index[number == n]
        distance = _apart(*_box_mm(grid, own.min(axis=0), own.max(axis=0)), anchors)
        if distance > 0:
            parts[n] = Part(len(own), len(own) * grid.voxel_volume_ml, distance)
    if not parts:
        return None
    alone = len(parts) == len(numbers)
    if not alone:
        out = np.isin(number, list(parts))
        classes[tuple(axis[out] for axis in where)] = 0
    return Misplaced(tuple(parts.values()), alone)


def _vector(values: npt.NDArray[np.float64]) -> Vector3:
    x, y, z = (float(v) for v in values)
    return x, y, z
