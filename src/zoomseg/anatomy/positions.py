"""Relative positions of organs: their range in training cases, and the parts of a label map that lie far
outside it. Plain numpy, in world coordinates: independent of the storage of a scan.

An organ found in the pelvis, because something there is as bright as a stomach, is in one piece and has high
probabilities: neither its size nor its probability reveals the error, but its position does.
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
"""Positions are computed from voxels about this far apart; smaller structures do not matter here."""

ANCHORS = 8
"""Number of other organs that define an organ's position: those that define it most precisely."""

MARGIN_MM = 30.0
"""Distance by which patients may differ from those in training and still be alike."""

MIN_ANCHORS = 2
"""With fewer, an organ's position is not judged."""

MIN_CASES = 5
"""Fewer cases may represent a single patient."""

UNBOUNDED_MM = 2000.0
"""Replaces an unknown bound when organs are compared by the precision of the positions they define: a
person's height."""

Classes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Span = tuple[float, float]
Bounds = tuple[float | None, float | None]
"""Lowest and highest; None: unknown."""
Offsets = tuple[Bounds, Bounds, Bounds]
"""Range of an organ's bounding box relative to another organ's median, mm, along x, y, z."""


@dataclass(frozen=True)
class OrganPosition:
    """Position of one organ in one scan, RAS+ millimetres."""

    median_mm: Vector3
    """Along each axis of the scan; unlike a mean it is robust to a few voxels elsewhere."""
    low_mm: Vector3
    high_mm: Vector3
    """Corners of its bounding box, including the outer faces of its voxels."""
    cut: Sides
    """Sides at which it reaches the end of the scan, and may continue outside."""
    volume_ml: float

    @property
    def whole(self) -> bool:
        """Whether the complete organ lies inside the scan."""
        return not any(side for axis in self.cut for side in axis)


@dataclass(frozen=True)
class TypicalPosition:
    """Range of one organ in training cases."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    volume_ml: Span | None
    """Smallest of the cases that contain it completely, and largest of all; None: too few contain it
    completely."""
    offsets_mm: Mapping[str, Offsets]
    """By the reference organ."""


@dataclass(frozen=True)
class _Found:
    position: OrganPosition
    box: tuple[slice, slice, slice]
    """Of the label map; structures smaller than the sampling may lie outside."""


def organ_positions(classes: Classes, grid: Grid) -> dict[int, OrganPosition]:
    """The position of every class in a label map ``[I, J, K]``, by class index."""
    return {c: found.position for c, found in _found(classes, grid).items()}


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
        position = OrganPosition(
            _vector(grid.world(np.median(own, axis=0))),
            _vector(low),
            _vector(high),
            grid.sides_at_end(start, stop),
            len(own) * voxel_ml,
        )
        i, j, k = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        out[int(c)] = _Found(position, (i, j, k))
    return out


# --- learning -------------------------------------------------------------------------------------


def learn(cases: Sequence[Mapping[str, OrganPosition]], names: Iterable[str]) -> dict[str, TypicalPosition]:
    """The ranges of these organs in cases (positions by organ), where they can be determined."""
    names = tuple(names)
    out = {}
    for name in names:
        own = [case[name] for case in cases if name in case]
        seen = {other: _offsets(cases, name, other) for other in names if other != name}
        bounded = {other: offsets for other, offsets in seen.items() if offsets != _UNKNOWN}
        best = sorted(bounded, key=lambda other: _size(bounded[other]))[:ANCHORS]
        volume = _volumes(own)
        if volume is not None or best:
            out[name] = TypicalPosition(volume, {other: bounded[other] for other in best})
    return out


_UNKNOWN: Offsets = ((None, None),) * 3


def _volumes(positions: Sequence[OrganPosition]) -> Span | None:
    whole = [position.volume_ml for position in positions if position.whole]
    return (min(whole), max(p.volume_ml for p in positions)) if len(whole) >= MIN_CASES else None


def _offsets(cases: Sequence[Mapping[str, OrganPosition]], name: str, other: str) -> Offsets:
    """The position of an organ relative to another one that is complete. A side at which the scan cuts the
    organ does not show where it ends."""
    pairs = [(case[name], case[other]) for case in cases if name in case and other in case]
    seen = [(own, anchor) for own, anchor in pairs if anchor.whole]

    def bounds(axis: int) -> Bounds:
        low = [o.low_mm[axis] - a.median_mm[axis] for o, a in seen if not o.cut[axis][0]]
        high = [o.high_mm[axis] - a.median_mm[axis] for o, a in seen if not o.cut[axis][1]]
        return (
            min(low) if len(low) >= MIN_CASES else None,
            max(high) if len(high) >= MIN_CASES else None,
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
    """A connected part of an organ that lies far from the organ's range in training."""

    voxels: int
    volume_ml: float
    distance_mm: float
    """From that range, along the axis on which it is largest."""


@dataclass(frozen=True)
class Misplaced:
    """The misplaced parts of one class of a label map."""

    parts: tuple[Part, ...]
    alone: bool
    """Whether no other part of the organ lies within its range."""
    removed: bool

    def note(self, organ: str) -> str:
        """One line that states what was removed or lies elsewhere."""
        volume = sum(part.volume_ml for part in self.parts)
        distance = max(part.distance_mm for part in self.parts)
        usual = "its position in the training scans"
        if self.alone:
            return f"{organ}: all of it ({volume:.1f} ml) lies {distance:.0f} mm from {usual}"
        several = len(self.parts) > 1
        parts = f"{len(self.parts)} parts" if several else "1 part"
        what = "removed," if self.removed else "lie" if several else "lies"
        return f"{organ}: {parts} ({volume:.1f} ml) {what} {distance:.0f} mm from {usual}"


def misplaced(
    classes: Classes,
    grid: Grid,
    names: Sequence[str],
    known: Mapping[str, TypicalPosition],
    remove: bool = True,
) -> dict[int, Misplaced]:
    """Find misplaced parts of organs in a label map ``[I, J, K]``, and remove them (in place) if the organ
    also has a part within its range, which is the organ. If there is none, the organ may lie elsewhere in
    this patient, and is kept.

    Args:
        names: of the classes from 1 on.
        known: the ranges in training cases.
        remove: otherwise, all parts are kept.

    Returns:
        Findings by class index.
    """
    seen = _found(classes, grid)
    by_name = {names[c - 1]: found.position for c, found in seen.items()}
    out = {}
    for c, found in seen.items():
        around = _around(names[c - 1], by_name, known)
        if around is None or around.reach_mm(found.position) == 0:
            continue
        own = _misplaced_parts(classes[found.box], grid, found.box, c, around, remove)
        if own is not None:
            out[c] = own
    return out


@dataclass(frozen=True)
class _Around:
    """The possible range of an organ's box, ``[anchors, 3]`` RAS+ mm, according to every organ around it."""

    low_mm: FloatArray
    high_mm: FloatArray

    def reach_mm(self, position: OrganPosition) -> float:
        """Distance by which the organ's box extends beyond that range, by the anchors' median; 0 if it is
        inside."""
        below = (self.low_mm - position.low_mm).max(axis=1)
        above = (np.array(position.high_mm) - self.high_mm).max(axis=1)
        return float(np.median(np.maximum(np.maximum(below, above), 0.0)))

    def distance_mm(self, low_mm: FloatArray, high_mm: FloatArray) -> FloatArray:
        """Distance of boxes ``[N, 3]`` from that range, by the anchors' median; above 0 only for those
        completely outside."""
        below = (self.low_mm[:, None] - high_mm[None]).max(axis=2)
        above = (low_mm[None] - self.high_mm[:, None]).max(axis=2)
        distance: FloatArray = np.median(np.maximum(np.maximum(below, above), 0.0), axis=0)
        return distance


def _around(
    name: str, found: Mapping[str, OrganPosition], known: Mapping[str, TypicalPosition]
) -> _Around | None:
    """From the surrounding organs that are complete, and of a size known from training; None if there are too
    few."""
    lows, highs = [], []
    for other, offsets in known[name].offsets_mm.items() if name in known else ():
        position = found.get(other)
        if position is None or not position.whole or not usual_volume(position.volume_ml, known.get(other)):
            continue
        middle = np.array(position.median_mm)
        lows.append(middle + [-math.inf if low is None else low for low, _ in offsets] - MARGIN_MM)
        highs.append(middle + [math.inf if high is None else high for _, high in offsets] + MARGIN_MM)
    return _Around(np.array(lows), np.array(highs)) if len(lows) >= MIN_ANCHORS else None


def usual_volume(volume_ml: float, known: TypicalPosition | None, whole: bool = True) -> bool:
    """Whether an organ is between half of the smallest and twice the largest of training; True if these are
    unknown. For one that is not ``whole`` in the scan, only the upper limit applies."""
    if known is None or known.volume_ml is None:
        return True
    low, high = known.volume_ml
    return (not whole or low / 2 <= volume_ml) and volume_ml <= 2 * high


def _misplaced_parts(
    part_of: Classes,
    grid: Grid,
    box: tuple[slice, slice, slice],
    c: int,
    around: _Around,
    remove: bool,
) -> Misplaced | None:
    """Of a class in ``box`` of a label map, of which ``part_of`` is a view."""
    parts, start = Components.of(part_of == c), np.array([side.start for side in box])
    distance = around.distance_mm(*grid.box_mm(start + parts.low, start + parts.high))
    out = distance > 0
    if not out.any():
        return None
    alone = bool(out.all())
    remove = remove and not alone
    if remove:
        part_of[parts.those(out)] = 0
    found = zip(parts.voxels[out].tolist(), distance[out].tolist(), strict=True)
    return Misplaced(tuple(Part(n, n * grid.voxel_volume_ml, mm) for n, mm in found), alone, remove)


def _vector(values: FloatArray) -> Vector3:
    x, y, z = (float(v) for v in values)
    return x, y, z
