"""Tiles of the runner are those of the package, and what is constant stays so under stitching."""

from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core import region as core_region
from zoomseg.core import tiling as core_tiling
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.placing import Tile, importance_map
from zoomseg.export.runner.region import Region
from zoomseg.export.runner.tiling import Stitcher, cover

GRID = Grid.from_spacing((30, 20, 9), (1, 1, 1))


@pytest.mark.parametrize(
    ("tile", "halo", "overlap"),
    [((8, 8, 8), (0, 0, 0), 0.25), ((16, 12, 20), (4, 2, 4), 0.0), ((40, 40, 40), (0, 0, 0), 0.5)],
)
def test_tiles_are_those_of_the_package(tile: Index3, halo: Index3, overlap: float) -> None:
    box = Box((1, 2, 0), (29, 19, 9))
    mask = np.random.default_rng(0).random(box.shape) < 0.002
    expected = core_tiling.cover(core_region.Region(GRID, box, mask), tile, halo, overlap).tiles
    found = cover(Region(GRID, box, mask), tile, halo, overlap)
    assert [(t.outer, t.inner) for t in found] == [(t.outer, t.inner) for t in expected]


def test_a_region_without_voxels_is_refused() -> None:
    empty = Region(GRID, GRID.box, np.zeros(GRID.shape, dtype=bool))
    with pytest.raises(GeometryError, match="no voxel"):
        cover(empty, (8, 8, 8), (0, 0, 0), 0.0)


def test_tent_is_that_of_the_package() -> None:
    assert np.array_equal(importance_map((7, 4, 40)), core_tiling.tent((7, 4, 40)).numpy())


def test_constant_in_constant_out() -> None:
    region = Region(GRID, Box((3, 3, 3), (28, 18, 9)))
    said = np.array([0.2, 0.8], dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8, 8), np.float32)
    stitcher = Stitcher(2, region.box, importance_map((8, 8, 8)))
    for tile in cover(region, (8, 8, 8), (0, 0, 0), 0.4):
        stitcher.add(tile, said)
    out = stitcher.result()
    assert out.shape == (2, *region.box.shape)
    assert np.abs(out[0] - 0.2).max() < 1e-6
    assert np.abs(out[1] - 0.8).max() < 1e-6


def test_overlapping_tiles_are_averaged_by_weight_and_the_rest_is_background() -> None:
    stitcher = Stitcher(2, Box((0, 0, 0), (5, 1, 1)), np.array([1, 3], np.float32).reshape(2, 1, 1))
    for start, value in ((0, 1.0), (1, 0.0), (9, 1.0)):
        box = Box((start, 0, 0), (start + 2, 1, 1))
        stitcher.add(
            Tile(box, box), np.array([1 - value, value], np.float32)[:, None, None, None].repeat(2, 1)
        )
    assert stitcher.result()[:, :, 0, 0].tolist() == [[0, 0.25, 1, 1, 1], [1, 0.75, 0, 0, 0]]
