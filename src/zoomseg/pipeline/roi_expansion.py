"""A region that cut an organ, widened where it did (``core.widening``)."""

from __future__ import annotations

from collections.abc import Mapping

from zoomseg.core import widening
from zoomseg.core.arrays import to_numpy
from zoomseg.core.region import Region
from zoomseg.core.widening import OpenSides
from zoomseg.pipeline import grid as grids
from zoomseg.pipeline.stage_input import PreparedScan, StageView
from zoomseg.pipeline.uncertainty import Uncertainty, UncertaintyEstimator
from zoomseg.recipe.spec import BoxAround, DilatedForeground, FixedShape, ProbabilityTimesAtlas


def open_sides_of(view: StageView, scan: PreparedScan) -> OpenSides:
    """Beyond which sides of the stage's grid the scan goes on."""
    return widening.open_sides(view.grid, scan.grid)


def cut_organs(view: StageView, uncertainty: Mapping[str, Uncertainty]) -> tuple[str, ...]:
    """The organs that the region may have cut; none where it is not another stage that placed it."""
    if not isinstance(view.stage.roi, BoxAround | DilatedForeground | ProbabilityTimesAtlas):
        return ()
    return tuple(name for name, s in uncertainty.items() if widening.is_cut(s.voxels, s.at_end))


def expanded(
    view: StageView, scan: PreparedScan, estimator: UncertaintyEstimator, organs: tuple[str, ...]
) -> StageView:
    """The view that also looks ``MARGIN_MM`` beyond where these organs reached its end."""
    at, region = to_numpy(estimator.at_end(organs)), view.region
    if isinstance(view.stage.grid, FixedShape):
        box = scan.grid.box_of(view.grid, region.box)
        box = widening.grown(box, widening.sides_at(at, region.box), scan.grid)
        grid = grids.stage_grid(view.stage.grid, scan.grid, box)
        return StageView(view.stage, grid, Region.whole(grid))
    old = region.mask
    box, mask = widening.extended(region.box, old, at, view.grid)
    new = Region(view.grid, box, mask)
    return StageView(view.stage, view.grid, new)
