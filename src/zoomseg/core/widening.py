"""Where a region cut an organ, and what of the scan is looked at a second time. Numpy alone: exported models
carry it.

An earlier stage placed the region; where it overlooked a part of an organ, the next stage finds the organ up
to the end of the region. One look farther is cheap beside a cut organ; a second is not taken, so that a
network that finds organs everywhere comes to an end.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.morphology import Mask, dilated

MARGIN_MM = 20.0
"""How far beyond the region's end the stage looks the second time."""
LEAST_VOXELS = 20
LEAST_SHARE = 0.01
"""Of an organ's voxels, as many must lie at the region's end: single ones lie there by chance."""

OpenSides = tuple[tuple[bool, bool], tuple[bool, bool], tuple[bool, bool]]
"""Beyond which sides of a grid (low and high, by axis) the scan goes on."""
Sides = tuple[tuple[bool, bool], ...]
Indices = npt.NDArray[np.int64]
"""Of voxels, ``[N, 3]``."""


def is_cut(voxels: int, at_end: int) -> bool:
    """Whether a region may have cut an organ of so many voxels, so many of them where the region ends."""
    return at_end >= max(LEAST_VOXELS, LEAST_SHARE * voxels)


def open_sides(grid: Grid, scan: Grid) -> OpenSides:
    """Beyond which sides of a grid, parallel to the scan's, the scan goes on by a voxel of it or more."""
    box = scan.box_of(grid, grid.box)
    low = [start > 0 for start in box.start]
    high = [stop < size for stop, size in zip(box.stop, scan.shape, strict=True)]
    return ((low[0], high[0]), (low[1], high[1]), (low[2], high[2]))


def region_ends(mask: Mask, box: Box, shape: Index3, open_sides: OpenSides) -> Mask:
    """Bool mask ``[*box.shape]``: voxels of a region that touch one outside it, where the scan goes on.

    Args:
        mask: the region in ``box`` and one voxel around it; is changed.
        shape: of the region's grid, which ``box`` lies in.
    """
    _close_sides(mask, box.expand((1, 1, 1)), shape, open_sides)
    middle = mask[1:-1, 1:-1, 1:-1]
    whole = middle.copy()
    for axis in range(3):
        for shift in (0, 2):
            part = [slice(1, -1)] * 3
            part[axis] = slice(shift, shift + box.shape[axis])
            whole &= mask[tuple(part)]
    ends: Mask = middle & ~whole
    return ends


def _close_sides(mask: Mask, box: Box, shape: Index3, open_sides: OpenSides) -> None:
    """Beyond the grid, the region goes on as at the grid's last plane; beyond open sides it has an end."""
    for axis, (low, high) in enumerate(open_sides):
        planes = np.moveaxis(mask, axis, 0)
        first, last = -box.start[axis], shape[axis] - 1 - box.start[axis]
        if first > 0 and not low:
            planes[:first] = planes[first]
        if last < len(planes) - 1 and not high:
            planes[last + 1 :] = planes[last]


def sides_at(at: Indices, box: Box) -> Sides:
    """Which sides of a box these voxels lie at."""
    low, high = (at == np.array(box.start)).any(axis=0), (at == np.array(box.stop) - 1).any(axis=0)
    return tuple((bool(a), bool(b)) for a, b in zip(low, high, strict=True))


def grown(box: Box, sides: Sides, grid: Grid) -> Box:
    """The box of ``grid`` with a margin on these sides, as far as the grid goes."""
    margin = _margin(grid)
    start = tuple(a - m * low for a, m, (low, _) in zip(box.start, margin, sides, strict=True))
    stop = tuple(b + m * high for b, m, (_, high) in zip(box.stop, margin, sides, strict=True))
    return Box(start, stop).intersect(grid.box)  # type: ignore[arg-type]


def extended(box: Box, mask: Mask | None, at: Indices, grid: Grid) -> tuple[Box, Mask | None]:
    """A region of ``grid`` and what lies beyond these voxels at its end: box and mask."""
    if mask is None:
        return grown(box, sides_at(at, box), grid), None
    return _with_balls(box, mask, at, grid)


def _margin(grid: Grid) -> Index3:
    # A hundredth of a voxel is forgiven: headers have spacings that are off in the seventh digit.
    i, j, k = (math.ceil(MARGIN_MM / s - 0.01) for s in grid.spacing_mm)
    return (i, j, k)


def _with_balls(box: Box, mask: Mask, at: Indices, grid: Grid) -> tuple[Box, Mask]:
    """The region and all that is no farther than the margin from these voxels. In voxels, by the finest
    axis's size: farther along the others."""
    reach = max(_margin(grid))
    low, high = at.min(axis=0).tolist(), (at.max(axis=0) + 1).tolist()
    near = Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    near = near.expand((reach, reach, reach)).intersect(grid.box)
    seeds = np.zeros(near.shape, dtype=bool)
    seeds[tuple((at - np.array(near.start)).T)] = True
    wide = box.union(near)
    out = np.zeros(wide.shape, dtype=bool)
    out[box.relative_to(wide.start).slices] = mask
    out[near.relative_to(wide.start).slices] |= dilated(seeds, reach)
    return wide, out
