"""From positions of slices to a grid: order, spacing, missing slices, uneven spacing, gantry tilt.

A grid needs evenly spaced slices, each exactly above the previous one. If they are not, the correction is
reported in notes, or the series is refused: anatomy that was not scanned is not invented.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import LPS_TO_RAS, FloatArray, Grid
from zoomseg.io.dicom.read.object_header import StoredSlice

SAME_PLACE_MM = 1e-2
SAME_PLACE_VOX = 0.1
"""Slices closer than both along their normal, in millimetres and in pixels, are at the same position."""

EVEN_TOLERANCE = 0.05
"""Slices this close to an even lattice, in spacings, are used unchanged."""

STRAIGHT_TOLERANCE_VOX = 0.1
"""Slices this close to a straight column, in voxels, are used unchanged."""

MAX_GAP_MM = 10.0
MAX_GAP_SPACINGS = 3
"""A gap between two slices that exceeds both is refused; others are interpolated."""

MAX_MISSING = 0.25
"""Maximum share of missing slices of a series."""

MAX_UNEVENNESS = 4.0
"""Maximum ratio of the largest to the smallest distance of neighbours."""

MAX_GROWTH = 2.0
"""Maximum factor by which in-plane shifts of slices may increase the number of rows or columns."""


@dataclass(frozen=True)
class Plane:
    """Composition of a plane of the grid: stored slice ``first``, with ``weight`` of the next one."""

    first: int
    weight: float = 0.0


@dataclass(frozen=True, eq=False)
class Placement:
    """Arrangement of stored slices in a volume."""

    grid: Grid
    order: tuple[int, ...]
    """The given slices, sorted along their normal: ``Plane.first`` counts in this order."""
    planes: tuple[Plane, ...]
    """One for each k."""
    shifts_vox: tuple[tuple[float, float], ...] | None
    """Column and row of ``grid`` at the first voxel of each slice, sorted as ``order``; None if that is (0,
    0) for all."""
    notes: tuple[str, ...]

    @property
    def as_stored(self) -> bool:
        """Whether the volume is the stack of its slices."""
        return self.shifts_vox is None and _is_each(self.planes, len(self.order))


def _is_each(planes: Sequence[Plane], slices: int) -> bool:
    """Whether planes are the slices, each once."""
    return tuple(planes) == tuple(map(Plane, range(slices)))


def normal(one: StoredSlice) -> FloatArray:
    """Unit vector (LPS) across the slice."""
    across = np.cross(one.along_row, one.along_column)
    out: FloatArray = np.asarray(across / np.linalg.norm(across), dtype=np.float64)
    return out


def places_mm(slices: Sequence[StoredSlice]) -> FloatArray:
    """Position of each slice along the normal of the first one."""
    out: FloatArray = np.array([s.position_lps_mm for s in slices]) @ normal(slices[0])
    return out


def same_place_mm(slices: Sequence[StoredSlice]) -> float:
    """The distance along their normal from which on slices are at different positions."""
    return min(SAME_PLACE_MM, SAME_PLACE_VOX * min(slices[0].spacing_mm))


def place(slices: Sequence[StoredSlice]) -> Placement:
    """The grid of slices of one size and orientation, no two at the same position.

    Raises:
        ScanError: fewer than two slices, or so far from even or straight that the volume would be invented.
    """
    if len(slices) < 2:
        raise ScanError("a single slice; a volume needs at least two")
    order = np.argsort(places_mm(slices), kind="stable")
    ordered = [slices[i] for i in order]
    along = places_mm(ordered)
    planes, spacing, notes = _planes(along - along[0], same_place_mm(slices))
    grid, shifts, more = _grid(ordered, along - along[0], len(planes), spacing)
    return Placement(grid, tuple(order.tolist()), planes, shifts, (*notes, *more))


def is_complete(slices: Sequence[StoredSlice]) -> bool:
    """Whether slices are evenly spaced, with none missing and no two at one position."""
    along = np.sort(places_mm(slices))
    try:
        planes, _, _ = _planes(along - along[0], same_place_mm(slices))
    except ScanError:
        return False
    return _is_each(planes, len(slices))


# --- along the normal -----------------------------------------------------------------------------


def _planes(along: FloatArray, same_mm: float) -> tuple[tuple[Plane, ...], float, tuple[str, ...]]:
    """Planes of an even lattice over slices at ``along`` mm (from 0 up), its spacing, and notes."""
    steps = np.diff(along)
    if steps.min() < same_mm:
        raise ScanError("several slices lie at one place")
    counts = np.maximum(1, np.rint(steps / np.median(steps))).astype(int)
    spacing = float(along[-1] / counts.sum())
    at = np.concatenate([[0], np.cumsum(counts)])
    off = np.abs(along - at * spacing).max()
    if off > EVEN_TOLERANCE * spacing:
        return _resampled(along, steps, same_mm)
    if counts.max() > 1:
        return _filled(counts, at, steps, spacing)
    notes = (f"slices lie up to {off:.2g} mm from an even spacing of {spacing:.4g} mm; taken as even",)
    return tuple(map(Plane, range(len(along)))), spacing, notes if off > same_mm else ()


def _filled(
    counts: np.ndarray, at: np.ndarray, steps: FloatArray, spacing: float
) -> tuple[tuple[Plane, ...], float, tuple[str, ...]]:
    """Interpolate missing slices between their neighbours, if they are few."""
    missing = int((counts - 1).sum())
    wide = float(steps.max())
    if wide > max(MAX_GAP_MM, (MAX_GAP_SPACINGS + EVEN_TOLERANCE) * spacing) or (
        missing > MAX_MISSING * (at[-1] + 1)
    ):
        raise ScanError(
            f"{missing} slices are missing (spacing {spacing:.4g} mm, widest gap {wide:.4g} mm); "
            "export the series again, or give each part of it in a folder of its own"
        )
    planes = [
        Plane(first, step / count) for first, count in enumerate(counts.tolist()) for step in range(count)
    ]
    numbers = [f"{k + 1}" for k, plane in enumerate(planes) if plane.weight > 0]
    some = ", ".join(numbers[:10]) + (" ..." if len(numbers) > 10 else "")
    word = "slice is" if missing == 1 else "slices are"
    note = f"{missing} {word} missing and interpolated from the neighbours: {some} of {len(planes) + 1}"
    return (*planes, Plane(len(counts))), spacing, (note,)


def _resampled(
    along: FloatArray, steps: FloatArray, same_mm: float
) -> tuple[tuple[Plane, ...], float, tuple[str, ...]]:
    """Unevenly spaced slices, resampled linearly to an even lattice of about their median distance."""
    low, high = float(steps.min()), float(steps.max())
    if high > MAX_UNEVENNESS * low or high > max(MAX_GAP_MM, 2 * float(np.median(steps))):
        raise ScanError(
            f"slices are {low:.4g} to {high:.4g} mm apart; too uneven for one volume: give the parts of even "
            "spacing in folders of their own"
        )
    count = max(1, round(float(along[-1]) / float(np.median(steps))))
    wanted = np.linspace(0, along[-1], count + 1)
    first = np.clip(np.searchsorted(along, wanted, side="right") - 1, 0, len(steps) - 1)
    weights = (wanted - along[first]) / steps[first]
    planes = [_plane(int(f), float(w), float(steps[f]), same_mm) for f, w in zip(first, weights, strict=True)]
    spacing = float(along[-1]) / count
    note = f"slices are {low:.4g} to {high:.4g} mm apart; resampled to {spacing:.4g} mm"
    return tuple(planes), spacing, (note,)


def _plane(first: int, weight: float, step_mm: float, same_mm: float) -> Plane:
    """A plane that almost coincides with a slice is that slice."""
    if weight * step_mm < same_mm:
        return Plane(first)
    if (1 - weight) * step_mm < same_mm:
        return Plane(first + 1)
    return Plane(first, weight)


# --- in the planes --------------------------------------------------------------------------------


def _grid(
    ordered: Sequence[StoredSlice], along: FloatArray, planes: int, spacing_mm: float
) -> tuple[Grid, tuple[tuple[float, float], ...] | None, tuple[str, ...]]:
    """The grid of all planes; and the position of each slice in it, if gantry tilt or a moved table shifted
    it."""
    one = ordered[0]
    axes = np.column_stack([one.along_row, one.along_column, normal(one)])
    step = np.array([*one.spacing_mm, spacing_mm])
    corner = np.array(one.position_lps_mm)
    away = (np.array([s.position_lps_mm for s in ordered]) - corner) @ axes[:, :2]
    shifts, size = away / step[:2], np.array([one.pixels.columns, one.pixels.rows])
    start, stop = np.zeros(2, dtype=int), size
    straight = np.abs(shifts).max() <= STRAIGHT_TOLERANCE_VOX
    if not straight:
        start, stop = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int) + size
        if ((stop - start) > MAX_GROWTH * size).any():
            far = float(np.abs(away).max())
            raise ScanError(f"slices are shifted in their planes by up to {far:.4g} mm; this is no volume")
    affine = np.eye(4)
    affine[:3, :3] = axes * step
    affine[:3, 3] = corner + axes[:, :2] @ (start * step[:2])
    columns, rows = (stop - start).tolist()
    grid = Grid((columns, rows, planes), LPS_TO_RAS @ affine)
    if straight:
        return grid, None, ()
    return grid, tuple((float(x), float(y)) for x, y in shifts - start), (_tilt_note(away, along),)


def _tilt_note(away: FloatArray, along: FloatArray) -> str:
    slope = (along @ away) / (along @ along)
    rest = float(np.abs(away - along[:, None] * slope).max())
    degrees = math.degrees(math.atan(float(np.linalg.norm(slope))))
    if rest <= max(1.0, 0.1 * float(np.abs(away).max())):
        return f"gantry tilt of {degrees:.1f} degrees corrected by shear resampling"
    return f"slices are shifted in their planes by up to {np.abs(away).max():.3g} mm; aligned"
