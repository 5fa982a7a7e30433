"""Expansion of a region where it cut an organ.

An earlier stage determined the region; if it missed a part of an organ, the next stage finds the organ up to
the end of the region. One repetition costs little compared with a cut organ. There is no second one, so that
a network that finds organs everywhere terminates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.morphology import Mask, dilated
from zoomseg.core.region import Region
from zoomseg.pipeline import grid as grids
from zoomseg.pipeline.stage_input import PreparedScan, StageView
from zoomseg.pipeline.uncertainty import Indices, OpenSides, Uncertainty, UncertaintyEstimator
from zoomseg.recipe.spec import BoxAround, DilatedForeground, FixedShape, ProbabilityTimesAtlas, Stage

MARGIN_MM = 20.0
"""Distance by which the region is expanded."""
MIN_VOXELS = 20
MIN_SHARE = 0.01
"""Minimum share of an organ's voxels that must lie at the region's end: single ones lie there by chance."""

BoxSides = tuple[tuple[bool, bool], ...]


def may_cut(stage: Stage) -> bool:
    """Whether another stage determines this one's region, which may then cut organs."""
    return isinstance(stage.roi, BoxAround | DilatedForeground | ProbabilityTimesAtlas)


def cut_organs(view: StageView, uncertainty: Mapping[str, Uncertainty]) -> tuple[str, ...]:
    """The organs that the region may have cut; none unless another stage determined the region."""
    if not may_cut(view.stage):
        return ()
    return tuple(name for name, s in uncertainty.items() if s.at_end >= max(MIN_VOXELS, MIN_SHARE * s.voxels))


def expanded(
    view: StageView, scan: PreparedScan, estimator: UncertaintyEstimator, organs: tuple[str, ...]
) -> StageView:
    """The view expanded by ``MARGIN_MM`` where these organs reached its end."""
    at, region = estimator.at_end(organs), view.region
    if isinstance(view.stage.grid, FixedShape):
        box = scan.grid.box_of(view.grid, region.box)
        box = grown(box, sides_at(at, region.box), scan.grid)
        grid = grids.stage_grid(view.stage.grid, scan.grid, box)
        return StageView(view.stage, grid, Region.whole(grid))
    box, mask = extended(region.box, region.mask, at, view.grid)
    return StageView(view.stage, view.grid, Region(view.grid, box, mask))


def open_sides(grid: Grid, scan: Grid) -> OpenSides:
    """The sides of a grid, parallel to the scan's, beyond which the scan continues by at least one of its
    voxels."""
    box = scan.box_of(grid, grid.box)
    low = [start > 0 for start in box.start]
    high = [stop < size for stop, size in zip(box.stop, scan.shape, strict=True)]
    return ((low[0], high[0]), (low[1], high[1]), (low[2], high[2]))


def sides_at(at: Indices, box: Box) -> BoxSides:
    """The sides of a box at which these voxels lie."""
    low, high = (at == np.array(box.start)).any(axis=0), (at == np.array(box.stop) - 1).any(axis=0)
    return tuple((bool(a), bool(b)) for a, b in zip(low, high, strict=True))


def grown(box: Box, sides: BoxSides, grid: Grid) -> Box:
    """The box of ``grid`` with a margin on these sides, within the grid."""
    margin = _margin(grid)
    start = tuple(a - m * low for a, m, (low, _) in zip(box.start, margin, sides, strict=True))
    stop = tuple(b + m * high for b, m, (_, high) in zip(box.stop, margin, sides, strict=True))
    return Box(start, stop).intersect(grid.box)  # type: ignore[arg-type]


def extended(box: Box, mask: Mask | None, at: Indices, grid: Grid) -> tuple[Box, Mask | None]:
    """A region of ``grid``, extended beyond these voxels at its end: box and mask."""
    if mask is None:
        return grown(box, sides_at(at, box), grid), None
    return _with_balls(box, mask, at, grid)


def _margin(grid: Grid) -> Index3:
    # A tolerance of a hundredth of a voxel: spacings in headers are inexact in the seventh digit.
    i, j, k = (math.ceil(MARGIN_MM / s - 0.01) for s in grid.spacing_mm)
    return (i, j, k)


def _with_balls(box: Box, mask: Mask, at: Indices, grid: Grid) -> tuple[Box, Mask]:
    """The region and all voxels no farther than the margin from these voxels."""
    reach = _margin(grid)
    low, high = at.min(axis=0).tolist(), (at.max(axis=0) + 1).tolist()
    near = Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    near = near.expand(reach).intersect(grid.box)
    seeds = np.zeros(near.shape, dtype=bool)
    seeds[tuple((at - np.array(near.start)).T)] = True
    wide = box.union(near)
    out = np.zeros(wide.shape, dtype=bool)
    out[box.relative_to(wide.start).slices] = mask
    out[near.relative_to(wide.start).slices] |= dilated(seeds, reach)
    return wide, out
