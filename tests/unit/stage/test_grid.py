from __future__ import annotations

import pytest

from zoomseg.core.geometry import Box, Grid
from zoomseg.recipe.spec import Downsample, FixedShape, FixedSpacing
from zoomseg.stage.grid import stage_grid

SCAN = Grid.from_spacing((20, 30, 10), (1.0, 1.0, 3.0), (5.0, 6.0, 7.0))


def test_downsample_enlarges_the_scans_own_voxels() -> None:
    grid = stage_grid(Downsample(factor=(2, 3, 1), tile=(8, 8, 8)), SCAN)
    assert grid.shape == (10, 10, 10)
    assert grid.spacing_mm == (2, 3, 3)
    assert grid.world((0, 0, 0)).tolist() == [5.5, 7, 7]


def test_spacing_does_not_depend_on_the_scans() -> None:
    grid = stage_grid(FixedSpacing(mm=(2, 2, 2), tile=(8, 8, 8)), SCAN)
    assert grid.shape == (10, 15, 15)
    assert grid.spacing_mm == (2, 2, 2)


def test_shape_brings_a_box_to_exactly_that_many_voxels() -> None:
    spec = FixedShape(shape=(5, 5, 8), tile=(8, 8, 8))
    grid = stage_grid(spec, SCAN, Box((10, 5, 2), (20, 30, 6)))
    assert grid.shape == (5, 5, 8)
    assert grid.spacing_mm == pytest.approx((2, 5, 1.5))
    # The corner of the box stays: voxel 10 begins at 14.5 mm, and half of 2 mm further is the centre.
    assert grid.world((0, 0, 0)) == pytest.approx([15.5, 13, 12.25])


def test_shape_without_a_box_takes_the_whole_scan() -> None:
    grid = stage_grid(FixedShape(shape=(4, 6, 5), tile=(8, 8, 8)), SCAN)
    assert grid.extent_mm == pytest.approx(SCAN.extent_mm)
