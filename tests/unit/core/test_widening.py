"""Which organs count as cut, where a region ends, and how far it is widened there."""

from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.geometry import Box, Grid
from zoomseg.core.widening import OpenSides, extended, grown, is_cut, open_sides, region_ends, sides_at

CLOSED: OpenSides = ((False, False),) * 3
GRID = Grid.from_spacing((40, 40, 40), (4.0, 4.0, 4.0))


@pytest.mark.parametrize(
    ("voxels", "at_end", "cut"), [(100, 19, False), (100, 20, True), (9000, 89, False), (9000, 90, True)]
)
def test_a_few_voxels_at_the_end_are_chance(voxels: int, at_end: int, cut: bool) -> None:
    assert is_cut(voxels, at_end) == cut


def test_beyond_which_sides_the_scan_goes_on() -> None:
    scan = Grid.from_spacing((20, 20, 20), (1.0, 1.0, 1.0))
    assert open_sides(scan.with_spacing((3.0, 3.0, 3.0)), scan) == CLOSED
    crop = scan.crop(Box((0, 3, 5), (20, 20, 15))).with_shape((4, 4, 4))
    assert open_sides(crop, scan) == ((False, False), (True, False), (True, True))


@pytest.mark.parametrize(("sides", "ends"), [(CLOSED, [2]), (((True, False), *CLOSED[1:]), [0, 2])])
def test_a_region_ends_inside_its_grid_and_at_open_sides(sides: OpenSides, ends: list[int]) -> None:
    box = Box((0, 0, 0), (4, 1, 1))
    mask = np.zeros((6, 3, 3), dtype=bool)
    mask[1:4, 1, 1] = True  # voxels 0 to 2 of a row of 4
    found = region_ends(mask, box, box.shape, sides)
    assert np.flatnonzero(found).tolist() == ends


def test_a_box_grows_only_on_the_sides_touched_and_no_farther_than_the_grid() -> None:
    box, at = Box((10, 2, 10), (30, 30, 30)), np.array([[10, 15, 15], [20, 2, 29]])
    assert sides_at(at, box) == ((True, False), (True, False), (False, True))
    expected = Box((5, 0, 10), (30, 30, 35))  # 20 mm are 5 voxels
    assert grown(box, sides_at(at, box), GRID) == expected
    assert extended(box, None, at, GRID) == (expected, None)


def test_spacings_off_in_the_seventh_digit_do_not_add_a_voxel() -> None:
    grid = Grid.from_spacing((40, 40, 40), (3.9999999, 4.0000001, 4.0))
    grew = grown(Box((10, 10, 10), (30, 30, 30)), ((True, True),) * 3, grid)
    assert grew == Box((5, 5, 5), (35, 35, 35))


def test_a_mask_grows_by_a_ball_where_it_was_touched() -> None:
    box = Box((10, 10, 10), (20, 20, 20))
    grew, mask = extended(box, np.ones(box.shape, dtype=bool), np.array([[19, 15, 15]]), GRID)
    assert mask is not None
    assert grew == Box((10, 10, 10), (25, 21, 21))
    expected = np.zeros(GRID.shape, dtype=bool)
    expected[box.slices] = True
    expected |= ((np.moveaxis(np.indices(GRID.shape), 0, -1) - [19, 15, 15]) ** 2).sum(axis=-1) <= 25
    assert np.array_equal(mask, expected[grew.slices])
    assert mask.sum() == expected.sum()
