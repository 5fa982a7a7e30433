from __future__ import annotations

import numpy as np

from zoomseg.core.geometry import Box
from zoomseg.core.placing import importance_map, place, starts


def test_starts_are_spread_evenly_and_a_short_range_is_centred_on() -> None:
    assert starts(0, 12, 5, 0.0) == [0, 4, 7]
    assert starts(2, 5, 7, 0.0) == [0]


def test_tiles_stand_where_the_mask_is_inside_the_scan_with_their_halo() -> None:
    box = Box((10, 0, 0), (30, 4, 4))
    mask = np.zeros(box.shape, dtype=bool)
    mask[0] = mask[-1] = True
    tiles = list(place(box, mask, (30, 4, 4), (4, 4, 4), (1, 0, 2), 0.5))
    assert [tile.inner.start for tile in tiles] == [(9, 0, 0), (26, 0, 0)]
    assert tiles[0].outer == Box((8, 0, -2), (14, 4, 6))


def test_without_a_mask_all_of_the_box_is_covered() -> None:
    tiles = list(place(Box((0, 0, 0), (8, 4, 4)), None, (8, 4, 4), (4, 4, 4), (0, 0, 0), 0.0))
    assert [tile.inner.start for tile in tiles] == [(0, 0, 0), (4, 0, 0)]


def test_tent_is_highest_in_the_middle_and_never_zero() -> None:
    assert (
        importance_map((1, 1, 5)).flatten().tolist()
        == np.array([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3], np.float32).tolist()
    )
    assert importance_map((64, 64, 64)).min() == np.float32(1e-3)
