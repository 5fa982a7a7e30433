"""Where the runner looks a second time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.export_packages import pipeline_of, untrained
from helpers.tiny_dataset import SCHEMA, tiny_recipe
from zoomseg.core.geometry import Box, Grid
from zoomseg.export.runner.region import Region
from zoomseg.export.runner.widen import widened

GRID = Grid.from_spacing((40, 40, 40), (4.0, 4.0, 4.0))
REGION = Region(GRID, Box((10, 10, 10), (30, 30, 30)))
COARSE, FINE = pipeline_of(untrained(tiny_recipe(together=True), SCHEMA)).stages


def answer(*organs: tuple[int, tuple[slice, slice, slice]]) -> np.ndarray:
    """Certain of these channels in these parts of the region's box."""
    winner = np.zeros(REGION.box.shape, dtype=int)
    for channel, part in organs:
        winner[part] = channel
    return np.moveaxis(np.eye(3, dtype=np.float32)[winner], -1, 0)


LEFT = (1, (slice(0, 4), slice(5, 10), slice(5, 9)))
"""20 of its 80 voxels lie at the region's low end of the first axis."""


def test_only_organs_that_were_cut_count() -> None:
    few = (2, (slice(8, 12), slice(19, 20), slice(6, 10)))  # 16 voxels at another end
    found = widened(FINE, REGION, answer(LEFT, few), GRID)
    assert found is not None
    assert (found.box, found.mask) == (Box((5, 10, 10), (30, 30, 30)), None)
    assert widened(FINE, REGION, answer(few), GRID) is None


def test_a_hundredth_of_a_large_organ_is_chance() -> None:
    inside = (1, (slice(1, 19), slice(1, 19), slice(1, 19)))
    assert widened(FINE, REGION, answer(inside, LEFT), GRID) is None


@pytest.mark.parametrize("roi", [{"kind": "whole_volume"}, {"kind": "body_mask", "threshold": 0.0}])
def test_only_what_another_stage_placed(roi: dict[str, object]) -> None:
    assert widened(FINE, REGION, answer(LEFT), GRID) is not None
    assert widened(replace(FINE, roi=roi), REGION, answer(LEFT), GRID) is None


def test_a_crop_of_fixed_shape_is_taken_of_a_larger_box_and_only_where_the_scan_goes_on() -> None:
    stage = replace(FINE, grid={**FINE.grid, "kind": "shape", "shape": [20, 20, 20]})
    crop = GRID.crop(REGION.box)
    found = widened(stage, Region.whole(crop), answer(LEFT), GRID)
    assert found is not None
    assert found.grid == GRID.crop(Box((5, 10, 10), (30, 30, 30))).with_shape((20, 20, 20))
    assert (found.box, found.mask) == (found.grid.box, None)
    assert widened(stage, Region.whole(crop), answer(LEFT), crop) is None
