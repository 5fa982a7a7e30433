"""The runner's interpolation is the package's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.grids import indices, oriented
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.resample import nearest_index, resample_data
from zoomseg.export.runner import resample

SCAN = oriented((13, 9, 7), (0.8, 1.1, 4.0), (5, -3, 2), angles_deg=(10, 5, 20))
TARGETS = {
    "itself": SCAN,
    "finer": SCAN.with_spacing((0.5, 0.7, 1.5)),
    "coarser": SCAN.with_spacing((2.3, 4.0, 9.0)),
    "mixed": SCAN.with_spacing((0.5, 4.0, 3.9)),
    "shape": SCAN.with_shape((8, 8, 8)),
    "single": SCAN.with_shape((1, 1, 1)),
    "beyond": SCAN.with_spacing((1.0, 1.0, 2.0)).crop(Box((-4, 2, -3), (16, 6, 20))),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("antialias", [True, False])
def test_linear_is_that_of_the_package(name: str, antialias: bool) -> None:
    data = np.random.default_rng(0).normal(0, 100, (2, *SCAN.shape)).astype(np.float32)
    expected = resample_data(torch.from_numpy(data), SCAN, TARGETS[name], antialias).numpy()
    assert np.abs(resample.linear(data, SCAN, TARGETS[name], antialias) - expected).max() < 1e-4


def test_a_ramp_stays_a_ramp() -> None:
    """World coordinates, interpolated, are the new voxels' world coordinates, away from the edges."""
    target = SCAN.with_spacing((0.6, 1.5, 2.7)).crop(Box((3, 1, 2), (14, 5, 8)))
    ramp = np.moveaxis(SCAN.world(indices(SCAN)), -1, 0)
    expected = np.moveaxis(target.world(indices(target)), -1, 0)
    assert np.abs(resample.linear(ramp, SCAN, target) - expected).max() < 1e-4


def test_small_integers_are_read_as_they_are() -> None:
    data = np.arange(8, dtype=np.int16).reshape(1, 2, 2, 2)
    grid = Grid.from_spacing((2, 2, 2), (1, 1, 1))
    middle = resample.linear(data, grid, grid.with_shape((1, 1, 1)))
    assert middle.dtype == np.float32
    assert middle.item() == pytest.approx(3.5)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("outside", [None, False])
def test_nearest_is_that_of_the_package(name: str, outside: bool | None) -> None:
    data = np.random.default_rng(1).random(SCAN.shape) < 0.5
    beyond = None if outside is None else 0
    expected = nearest_index(torch.from_numpy(data), SCAN, TARGETS[name], beyond).numpy()
    assert np.array_equal(resample.nearest(data, SCAN, TARGETS[name], outside), expected)
