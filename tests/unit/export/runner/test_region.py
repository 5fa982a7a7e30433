"""Regions of the runner: boxes and masks on any sampling of a scan."""

from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid
from zoomseg.export.runner.region import Answer, Region, bounding_box

GRID = Grid.from_spacing((8, 6, 4), (1, 1, 1))
MASK = np.zeros((3, 2, 2), dtype=bool)
MASK[0, 0, 0] = MASK[2, 1, 1] = True
REGION = Region(GRID, Box((2, 1, 1), (5, 3, 3)), MASK)


def test_bounding_box() -> None:
    mask = np.zeros((5, 5, 5), dtype=bool)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[3, 2, 4] = True
    assert bounding_box(mask) == Box((1, 2, 3), (4, 3, 5))


def test_mask_in_a_box() -> None:
    expected = np.zeros(GRID.shape, dtype=bool)
    expected[2, 1, 1] = expected[4, 2, 2] = True
    assert np.array_equal(REGION.mask_in(GRID.box), expected)
    assert np.array_equal(REGION.mask_in(Box((4, 2, 2), (6, 4, 4))), expected[4:6, 2:4, 2:4])
    assert Region(GRID, REGION.box).mask_in(GRID.box).sum() == 12


def test_on_a_finer_grid_a_voxel_becomes_eight() -> None:
    fine = REGION.on(GRID.with_spacing((0.5, 0.5, 0.5)))
    assert fine.box == Box((4, 2, 2), (10, 6, 6))
    assert fine.mask is not None
    assert np.array_equal(fine.mask, MASK.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_a_grid_elsewhere_is_refused() -> None:
    with pytest.raises(GeometryError, match="does not meet"):
        REGION.on(Grid.from_spacing((2, 2, 2), (1, 1, 1), (50, 50, 50)))


def test_an_answer_knows_its_channels_and_where_it_holds() -> None:
    answer = Answer(np.zeros((3, *GRID.shape), np.float32), GRID, ("a", "b"), REGION)
    assert answer.channels(("b", "a")) == [2, 1]
    assert np.array_equal(answer.answered, REGION.mask_in(GRID.box))
