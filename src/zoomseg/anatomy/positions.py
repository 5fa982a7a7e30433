"""Where organs lie beside each other: what training cases show of it, and which parts of a label map lie far
from all of that. Plain numpy, in world coordinates: the same however a scan is stored.

An organ that is found in the pelvis because something there is as bright as a stomach is in one piece and
sure of itself: neither its size nor its probability gives it away, its place does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Grid, Sides, Vector3
from zoomseg.core.morphology import Components

SAMPLED_MM = 3.0
"""Places are taken from voxels about so far apart; what is smaller is of no account here."""

ANCHORS = 8
"""By so many other organs an organ's place is known: those around it that tell it best."""

MARGIN_MM = 30.0
"""Patients differ from those in training by so much, and are still like them."""

LEAST_ANCHORS = 2
"""By fewer, nothing is said of an organ's place."""

LEAST_CASES = 5
"""What fewer cases show may be what one patient is like."""

UNBOUNDED_MM = 2000.0
"""Stands for a side that has no bound where organs are compared by how well they tell a place: a person's
height."""

Classes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Span = tuple[float, float]
Bounds = tuple[float | None, float | None]
"""Lowest and highest; None: no bound is known."""
Offsets = tuple[Bounds, Bounds, Bounds]
"""Of an organ's bounding box from another organ's median, mm, along x, y, z."""


@dataclass(frozen=True)
class Place:
    """Of one organ in one scan, RAS+ millimetres."""

    median_mm: Vector3
    """Along each axis of the scan; unlike a mean it does not mind a few voxels elsewhere."""
    low_mm: Vector3
    high_mm: Vector3
    """Corners of its bounding box, outer faces of its voxels included."""
    cut: Sides
    """At which sides it reaches the end of the scan, and may go on outside."""
    volume_ml: float

    @property
    def whole(self) -> bool:
        """Whether all of it lies inside the scan."""
        return not any(side for axis in self.cut for side in axis)


@dataclass(frozen=True)
class OrganPlaces:
    """What training cases show of one organ."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    volume_ml: Span | None
    """Least of the cases that hold it whole, and largest of all; None: too few hold it whole."""
    offsets_mm: Mapping[str, Offsets]
    """By the organ that it is seen from."""


@dataclass(frozen=True)
class _Found:
    place: Place
    box: tuple[slice, slice, slice]
    """Of the label map; what is smaller than the sampling may lie outside."""


def places(classes: Classes, grid: Grid) -> dict[int, Place]:
    """The place of every class in a label map ``[I, J, K]``, by class index."""
    return {c: found.place for c, found in _found(classes, grid).items()}


def _found(classes: Classes, grid: Grid) -> dict[int, _Found]:
    step = np.array([max(1, int(SAMPLED_MM / mm)) for mm in grid.spacing_mm])
    sampled = classes[tuple(slice(None, None, int(s)) for s in step)]
    where = np.nonzero(sampled)
    values, index = sampled[where], np.stack(where, axis=1) * step
    voxel_ml = grid.voxel_volume_ml * float(np.prod(step))
    shape = np.array(classes.shape)
    out = {}
    for c in np.unique(values).tolist():
        own = index[values == c]
        start = np.maximum(own.min(axis=0) - step + 1, 0)
        stop = np.minimum(own.max(axis=0) + step, shape)
        low, high = grid.box_mm(start, stop)
        place = Place(
            _vector(grid.world(np.median(own, axis=0))),
            _vector(low),
            _vector(high),
            grid.sides_at_end(start, stop),
            len(own) * voxel_ml,
        )
        i, j, k = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        out[int(c)] = _Found(place, (i, j, k))
    return out


# --- learning -------------------------------------------------------------------------------------


def learn(cases: Sequence[Mapping[str, Place]], names: Iterable[str]) -> dict[str, OrganPlaces]:
    """What cases (places by organ) show of each of these organs, where they show anything."""
    names = tuple(names)
    out = {}
    for name in names:
        own = [case[name] for case in cases if name in case]
        seen = {other: _offsets(cases, name, other) for other in names if other != name}
        bounded = {other: offsets for other, offsets in seen.items() if offsets != _UNKNOWN}
        best = sorted(bounded, key=lambda other: _size(bounded[other]))[:ANCHORS]
        volume = _volumes(own)
        if volume is not None or best:
            out[name] = OrganPlaces(volume, {other: bounded[other] for other in best})
    return out


_UNKNOWN: Offsets = ((None, None),) * 3


def _volumes(places_of: Sequence[Place]) -> Span | None:
    whole = [place.volume_ml for place in places_of if place.whole]
    return (min(whole), max(p.volume_ml for p in places_of)) if len(whole) >= LEAST_CASES else None


def _offsets(cases: Sequence[Mapping[str, Place]], name: str, other: str) -> Offsets:
    """Where an organ lies beside another one that is whole. A side at which the scan cuts the organ says
    nothing of where it ends."""
    pairs = [(case[name], case[other]) for case in cases if name in case and other in case]
    seen = [(own, anchor) for own, anchor in pairs if anchor.whole]

    def bounds(axis: int) -> Bounds:
        low = [o.low_mm[axis] - a.median_mm[axis] for o, a in seen if not o.cut[axis][0]]
        high = [o.high_mm[axis] - a.median_mm[axis] for o, a in seen if not o.cut[axis][1]]
        return (
            min(low) if len(low) >= LEAST_CASES else None,
            max(high) if len(high) >= LEAST_CASES else None,
        )

    return bounds(0), bounds(1), bounds(2)


def _size(offsets: Offsets) -> float:
    ends = [
        (-UNBOUNDED_MM if low is None else low, UNBOUNDED_MM if high is None else high)
        for low, high in offsets
    ]
    return float(np.prod([high - low for low, high in ends]))


# --- looking --------------------------------------------------------------------------------------


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

    def note(self, organ: str) -> str:
        """In a line, what was taken out, or that all of the organ lies elsewhere."""
        volume = sum(part.volume_ml for part in self.parts)
        distance = max(part.distance_mm for part in self.parts)
        place = "its position in the training scans"
        if self.alone:
            return f"{organ}: all of it ({volume:.1f} ml) lies {distance:.0f} mm from {place}"
        parts = f"{len(self.parts)} parts" if len(self.parts) > 1 else "1 part"
        return f"{organ}: {parts} ({volume:.1f} ml) removed, {distance:.0f} mm from {place}"


def misplaced(
    classes: Classes,
    grid: Grid,
    names: Sequence[str],
    known: Mapping[str, OrganPlaces],
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
    seen = _found(classes, grid)
    by_name = {names[c - 1]: found.place for c, found in seen.items()}
    out = {}
    for c, found in seen.items():
        around = _around(names[c - 1], by_name, known)
        if around is None or around.reach_mm(found.place) == 0:
            continue
        own = _take_out(classes[found.box], grid, found.box, c, around)
        if own is not None:
            out[c] = own
    return out


@dataclass(frozen=True)
class _Around:
    """Where an organ's box may lie, ``[anchors, 3]`` RAS+ mm, as every organ around it has it."""

    low_mm: FloatArray
    high_mm: FloatArray

    def reach_mm(self, place: Place) -> float:
        """How far the organ's box reaches beyond that, in the anchors' median; 0 where it is inside."""
        below = (self.low_mm - place.low_mm).max(axis=1)
        above = (np.array(place.high_mm) - self.high_mm).max(axis=1)
        return float(np.median(np.maximum(np.maximum(below, above), 0.0)))

    def distance_mm(self, low_mm: FloatArray, high_mm: FloatArray) -> FloatArray:
        """How far boxes ``[N, 3]`` lie from that, in the anchors' median; above 0 only for those of which all
        lies outside."""
        below = (self.low_mm[:, None] - high_mm[None]).max(axis=2)
        above = (low_mm[None] - self.high_mm[:, None]).max(axis=2)
        distance: FloatArray = np.median(np.maximum(np.maximum(below, above), 0.0), axis=0)
        return distance


def _around(name: str, found: Mapping[str, Place], known: Mapping[str, OrganPlaces]) -> _Around | None:
    """By the organs around it that are whole, and of a size that training knows of them; None if too few
    are."""
    lows, highs = [], []
    for other, offsets in known[name].offsets_mm.items() if name in known else ():
        place = found.get(other)
        if place is None or not place.whole or not usual_volume(place.volume_ml, known.get(other)):
            continue
        middle = np.array(place.median_mm)
        lows.append(middle + [-math.inf if low is None else low for low, _ in offsets] - MARGIN_MM)
        highs.append(middle + [math.inf if high is None else high for _, high in offsets] + MARGIN_MM)
    return _Around(np.array(lows), np.array(highs)) if len(lows) >= LEAST_ANCHORS else None


def usual_volume(volume_ml: float, known: OrganPlaces | None, whole: bool = True) -> bool:
    """Whether an organ is between half of the smallest and twice the largest of training; True where training
    does not say. Of one that is not ``whole`` in the scan only the upper end counts."""
    if known is None or known.volume_ml is None:
        return True
    low, high = known.volume_ml
    return (not whole or low / 2 <= volume_ml) and volume_ml <= 2 * high


def _take_out(
    part_of: Classes,
    grid: Grid,
    box: tuple[slice, slice, slice],
    c: int,
    around: _Around,
) -> Misplaced | None:
    """In ``box`` of a label map, of which ``part_of`` is a view."""
    parts, start = Components.of(part_of == c), np.array([side.start for side in box])
    distance = around.distance_mm(*grid.box_mm(start + parts.low, start + parts.high))
    out = distance > 0
    if not out.any():
        return None
    alone = bool(out.all())
    if not alone:
        part_of[parts.those(out)] = 0
    found = zip(parts.voxels[out].tolist(), distance[out].tolist(), strict=True)
    return Misplaced(tuple(Part(n, n * grid.voxel_volume_ml, mm) for n, mm in found), alone)


def _vector(values: FloatArray) -> Vector3:
    x, y, z = (float(v) for v in values)
    return x, y, z
