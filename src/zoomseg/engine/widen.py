"""A region that cut an organ, widened where it did.

An earlier stage placed the region; where it overlooked a part of an organ, the next stage finds the organ up
to the end of the region. One look farther is cheap beside a cut organ; a second is not taken, so that a
network that finds organs everywhere comes to an end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.region import Region
from zoomseg.engine.look import Scan, View
from zoomseg.recipe.spec import BoxAround, DilatedForeground, FixedShape, ProbabilityTimesAtlas
from zoomseg.stage import grid as grids
from zoomseg.stage.roi import dilated
from zoomseg.stage.signs import Hearing, OpenSides, Signs, open_sides

MARGIN_MM = 20.0
"""How far beyond the region's end the stage looks the second time."""
LEAST_VOXELS = 20
LEAST_SHARE = 0.01
"""Of an organ's voxels, as many must lie at the region's end: single ones lie there by chance."""


def sides(view: View, scan: Scan) -> OpenSides:
    """Beyond which sides of the stage's grid the scan goes on."""
    return open_sides(view.grid, scan.grid)


def cut_organs(view: View, signs: Mapping[str, Signs]) -> tuple[str, ...]:
    """The organs that the region may have cut; none where it is not another stage that placed it."""
    if not isinstance(view.stage.roi, BoxAround | DilatedForeground | ProbabilityTimesAtlas):
        return ()
    return tuple(n for n, s in signs.items() if s.at_end >= max(LEAST_VOXELS, LEAST_SHARE * s.voxels))


def widened(view: View, scan: Scan, hearing: Hearing, organs: tuple[str, ...]) -> View:
    """The view that also looks ``MARGIN_MM`` beyond where these organs reached its end."""
    at = hearing.at_end(organs).numpy()
    if isinstance(view.stage.grid, FixedShape):
        box = _grown(scan.grid.box_of(view.grid, view.region.box), _near(at, view.region.box), scan.grid)
        grid = grids.stage_grid(view.stage.grid, scan.grid, box)
        return View(view.stage, grid, Region.whole(grid))
    if view.region.mask is None:
        box = _grown(view.region.box, _near(at, view.region.box), view.grid)
        return View(view.stage, view.grid, Region(view.grid, box))
    return View(view.stage, view.grid, _with_balls(view.region, torch.from_numpy(at)))


def _margin(grid: Grid) -> Index3:
    # A hundredth of a voxel is forgiven: headers have spacings that are off in the seventh digit.
    i, j, k = (math.ceil(MARGIN_MM / s - 0.01) for s in grid.spacing_mm)
    return (i, j, k)


def _near(at: np.ndarray[tuple[int, int], np.dtype[np.int64]], box: Box) -> tuple[tuple[bool, bool], ...]:
    """Which sides of a box these voxels lie at."""
    low, high = (at == np.array(box.start)).any(axis=0), (at == np.array(box.stop) - 1).any(axis=0)
    return tuple((bool(a), bool(b)) for a, b in zip(low, high, strict=True))


def _grown(box: Box, near: tuple[tuple[bool, bool], ...], grid: Grid) -> Box:
    """The box with a margin on these sides, as far as the grid goes."""
    margin = _margin(grid)
    start = tuple(a - m * low for a, m, (low, _) in zip(box.start, margin, near, strict=True))
    stop = tuple(b + m * high for b, m, (_, high) in zip(box.stop, margin, near, strict=True))
    return Box(start, stop).intersect(grid.box)  # type: ignore[arg-type]


def _with_balls(region: Region, at: Tensor) -> Region:
    """The region and all that is no farther than the margin from these voxels of its grid. In voxels, by the
    finest axis's size: farther along the others."""
    reach = max(_margin(region.grid))
    low, high = at.amin(dim=0).tolist(), (at.amax(dim=0) + 1).tolist()
    near = Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    near = near.expand((reach, reach, reach)).intersect(region.grid.box)
    seeds = torch.zeros(near.shape, dtype=torch.bool)
    seeds[tuple((at - torch.tensor(near.start)).T)] = True
    box = region.box.union(near)
    mask = region.mask_in(box)
    mask[near.relative_to(box.start).slices] |= dilated(seeds, reach)
    return Region(region.grid, box, mask)
