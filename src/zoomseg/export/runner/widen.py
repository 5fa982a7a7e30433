"""A region that cut an organ, widened where it did (``core.widening``)."""

from __future__ import annotations

import numpy as np

from zoomseg.core.geometry import Grid
from zoomseg.core.widening import (
    LEAST_VOXELS,
    Indices,
    extended,
    grown,
    is_cut,
    open_sides,
    region_ends,
    sides_at,
)
from zoomseg.export.runner import inputs
from zoomseg.export.runner.pipeline import Stage
from zoomseg.export.runner.region import Region
from zoomseg.export.runner.resample import FloatArray


def widened(stage: Stage, region: Region, probabilities: FloatArray, scan: Grid) -> Region | None:
    """The region that also reaches ``MARGIN_MM`` beyond where organs reached its end; None where it cut none,
    or where it is not another stage that placed it.

    Args:
        probabilities: the stage's, in the region's box.
        scan: the scan's grid.
    """
    if "of" not in stage.roi:
        return None
    at = _cut_at(region, probabilities, scan)
    if len(at) == 0:
        return None
    if stage.grid["kind"] == "shape":
        box = grown(scan.box_of(region.grid, region.box), sides_at(at, region.box), scan)
        return Region.whole(inputs.stage_grid(stage, scan, box))
    return Region(region.grid, *extended(region.box, region.mask, at, region.grid))


def _cut_at(region: Region, probabilities: FloatArray, scan: Grid) -> Indices:
    """Where organs that the region may have cut reach its end: indices of its grid."""
    mask = region.mask_in(region.box.expand((1, 1, 1)))
    ends = region_ends(mask, region.box, region.grid.shape, open_sides(region.grid, scan))
    at: Indices = np.argwhere(ends) + np.array(region.box.start)
    classes = len(probabilities)
    winner = probabilities[:, ends].argmax(axis=0)
    at_end = np.bincount(winner, minlength=classes)
    if at_end[1:].max() < LEAST_VOXELS:  # all others need not be counted
        return at[:0]
    everywhere = probabilities.argmax(axis=0)[region.mask_in(region.box)]
    voxels = np.bincount(everywhere, minlength=classes)
    cut = [c for c in range(1, classes) if is_cut(int(voxels[c]), int(at_end[c]))]
    return at[np.isin(winner, cut)]
