from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.placing import Tile
from zoomseg.core.region import Region
from zoomseg.core.tiling import TileAggregator, cover, tent

GRID = Grid.from_spacing((10, 10, 10), (1.0, 1.0, 1.0))


def starts(low: int, high: int, size: int, overlap: float) -> list[int]:
    """First indices along the first axis of the tiles that cover ``low..high``."""
    grid = Grid.from_spacing((max(high, 1), 1, 1), (1.0, 1.0, 1.0))
    tiling = cover(Region(grid, Box((low, 0, 0), (high, 1, 1))), (size, 1, 1), (0, 0, 0), overlap)
    return [tile.inner.start[0] for tile in tiling.tiles]


@pytest.mark.parametrize(
    ("low", "high", "size", "overlap", "expected"),
    [
        (0, 10, 5, 0.0, [0, 5]),
        (3, 13, 5, 0.0, [3, 8]),
        (0, 12, 5, 0.0, [0, 4, 7]),  # evenly spread, rather than one narrow rest
        (0, 10, 4, 0.5, [0, 2, 4, 6]),
        (0, 10, 10, 0.5, [0]),
        (2, 5, 7, 0.0, [0]),  # smaller than a tile: centred on it
        (2, 3, 7, 0.0, [-1]),
        (0, 4, 1, 0.9, [0, 1, 2, 3]),
    ],
)
def test_tiles_are_spread_evenly(low: int, high: int, size: int, overlap: float, expected: list[int]) -> None:
    assert starts(low, high, size, overlap) == expected


def test_halo_surrounds_what_is_answered() -> None:
    tiling = cover(Region.whole(GRID), (9, 14, 10), (2, 2, 0), 0.0)
    assert [t.inner for t in tiling.tiles] == [
        Box((0, 0, 0), (5, 10, 10)),
        Box((5, 0, 0), (10, 10, 10)),
    ]
    assert tiling.tiles[0].outer == Box((-2, -2, 0), (7, 12, 10))
    assert tiling.outer == Box((-2, -2, 0), (12, 12, 10))
    assert tiling.skipped == 0


def test_tiles_that_touch_nothing_are_left_out_and_counted() -> None:
    mask = torch.zeros(10, 10, 10, dtype=torch.bool)
    mask[0, 0, 0] = mask[9, 9, 9] = True
    tiling = cover(Region(GRID, GRID.box, mask), (5, 5, 5), (0, 0, 0), 0.0)
    assert [t.inner.start for t in tiling.tiles] == [(0, 0, 0), (5, 5, 5)]
    assert tiling.skipped == 6


def test_a_row_is_only_as_wide_as_the_region_is_there() -> None:
    mask = torch.zeros(10, 10, 10, dtype=torch.bool)
    mask[:, :, :5] = True
    mask[4:8, 3, 5:] = True
    tiling = cover(Region(GRID, GRID.box, mask), (5, 5, 5), (0, 0, 0), 0.0)
    rows = {k: [t.inner.start[:2] for t in row] for k, row in tiling.rows}
    assert rows == {0: [(0, 0), (0, 5), (5, 0), (5, 5)], 5: [(4, 1)]}
    assert tiling.skipped == 3


def test_no_tile_stands_where_a_tile_s_size_lies_empty_between() -> None:
    mask = torch.zeros(30, 10, 10, dtype=torch.bool)
    mask[:4] = mask[20:] = True
    grid = GRID.with_shape((30, 10, 10))
    tiling = cover(Region(grid, grid.box, mask), (10, 10, 10), (0, 0, 0), 0.0)
    assert [t.inner.start[0] for t in tiling.tiles] == [0, 20]


def test_refuses_a_halo_that_eats_the_tile() -> None:
    with pytest.raises(GeometryError, match=r"a tile of \(8, 8, 4\) voxels leaves nothing inside a halo"):
        cover(Region.whole(GRID), (8, 8, 4), (2, 2, 2), 0.0)


def test_refuses_a_region_that_holds_no_voxel() -> None:
    nothing = Region(GRID, GRID.box, torch.zeros(10, 10, 10, dtype=torch.bool).numpy())
    with pytest.raises(GeometryError, match=r"the region holds no voxel of a grid of shape \(10, 10, 10\)"):
        cover(nothing, (5, 5, 5), (0, 0, 0), 0.0)


def test_tent_is_highest_in_the_middle() -> None:
    assert tent((1, 4, 5))[0].tolist() == [
        pytest.approx([a * b for b in (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3)]) for a in (0.5, 1, 1, 0.5)
    ]


def test_tent_is_never_zero() -> None:
    assert tent((64, 64, 64)).min() == pytest.approx(1e-3)


def whole(stitcher: TileAggregator) -> Tensor:
    return torch.cat([slab.clone() for slab in stitcher.take()], dim=3)


def tile(start: int, stop: int) -> Tile:
    box = Box((start, 0, 0), (stop, 1, 1))
    return Tile(box, box)


def test_stitcher_takes_the_weighted_mean() -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (3, 1, 1)), torch.tensor([1.0, 3.0]).reshape(2, 1, 1))
    stitcher.add(tile(0, 2), torch.full((1, 2, 1, 1), 0.2))
    stitcher.add(tile(1, 3), torch.full((1, 2, 1, 1), 0.6))
    assert whole(stitcher).flatten().tolist() == pytest.approx([0.2, (3 * 0.2 + 0.6) / 4, 0.6])


def test_stitcher_gives_background_where_nobody_answered() -> None:
    stitcher = TileAggregator(2, Box((0, 0, 0), (3, 1, 1)), torch.ones(1, 1, 1))
    stitcher.add(tile(1, 2), torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))
    assert whole(stitcher).reshape(2, 3).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_stitcher_drops_what_falls_outside() -> None:
    stitcher = TileAggregator(1, Box((5, 0, 0), (7, 1, 1)), torch.ones(4, 1, 1))
    stitcher.add(tile(3, 7), torch.arange(4.0).reshape(1, 4, 1, 1))
    stitcher.add(tile(20, 24), torch.full((1, 4, 1, 1), 9.0))
    assert whole(stitcher).flatten().tolist() == [2, 3]


def test_stitcher_takes_half_precision() -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (1, 1, 1)), torch.ones(1, 1, 1))
    stitcher.add(tile(0, 1), torch.full((1, 1, 1, 1), 0.25, dtype=torch.float16))
    out = whole(stitcher)
    assert out.dtype == torch.float32
    assert out.item() == 0.25


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 2, 1, 1), (1, 1, 1, 1), (1, 2, 1)])
def test_stitcher_refuses_an_answer_of_another_shape(shape: tuple[int, ...]) -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (3, 1, 1)), torch.ones(2, 1, 1))
    with pytest.raises(GeometryError, match=r"answers for \(2, 1, 1\) voxels got .* expected \(1, 2, 1, 1\)"):
        stitcher.add(tile(0, 2), torch.zeros(shape))


def test_stitcher_refuses_a_tile_that_its_weights_do_not_fit() -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (3, 1, 1)), torch.ones(2, 1, 1))
    with pytest.raises(GeometryError, match=r"answers for \(3, 1, 1\) voxels"):
        stitcher.add(tile(0, 3), torch.zeros(1, 2, 1, 1))


def test_planes_are_taken_once_no_tile_to_come_reaches_them() -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (1, 1, 8)), torch.ones(1, 1, 4))

    def add(k: int, value: float) -> None:
        box = Box((0, 0, k), (1, 1, k + 4))
        stitcher.add(Tile(box, box), torch.full((1, 1, 1, 4), value))

    def take(stop: int | None = None) -> list[float]:
        return [float(v) for slab in stitcher.take(stop) for v in slab.flatten()]

    add(0, 2.0)
    assert take(2) == [2, 2]
    add(2, 4.0)
    assert take(2) == []
    assert take(4) == [3, 3]
    add(4, 8.0)
    assert take() == [6, 6, 8, 8]
    assert take() == []


def test_a_gap_between_rows_is_background() -> None:
    stitcher = TileAggregator(2, Box((0, 0, 0), (1, 1, 9)), torch.ones(1, 1, 2))
    certain = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 1, 2)
    found: list[float] = []
    for k in (0, 7):
        found += [float(v) for slab in stitcher.take(k) for v in slab[1].flatten()]
        box = Box((0, 0, k), (1, 1, k + 2))
        stitcher.add(Tile(box, box), certain)
    found += [float(v) for slab in stitcher.take() for v in slab[1].flatten()]
    assert found == [1, 1, 0, 0, 0, 0, 0, 1, 1]


def test_tiles_out_of_order_are_refused() -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (1, 1, 8)), torch.ones(1, 1, 4))
    box = Box((0, 0, 2), (1, 1, 6))
    with pytest.raises(GeometryError, match=r"planes 2 to 6 came where 0 to 4 are held; .* order of their"):
        stitcher.add(Tile(box, box), torch.zeros(1, 1, 1, 4))
