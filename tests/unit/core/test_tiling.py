from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import ndimage

from zoomseg.core import tiling
from zoomseg.core.arrays import Array, namespace
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.tiling import (
    LOWEST_LOG,
    PointwiseHead,
    Tile,
    TileAggregator,
    cover,
    gaussian_importance_map,
    importance_map,
    lattice_starts,
    logarithms,
    normalised,
    overlapping,
    place,
)

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
        (0, 20, 5, 0.5, [0, 2, 5, 8, 10, 12, 15]),  # 2.5 apart on average: not one more for a step of 2
        (0, 20, 10, 0.8, [0, 2, 4, 6, 8, 10]),  # although 1 - 0.8 is a little less than 0.2
    ],
)
def test_tiles_are_spread_evenly(low: int, high: int, size: int, overlap: float, expected: list[int]) -> None:
    assert starts(low, high, size, overlap) == expected


@given(st.integers(1, 40), st.integers(0, 200), st.sampled_from([0.0, 0.2, 0.25, 0.5]))
def test_tiles_stand_where_those_of_nnunet_do(size: int, more: int, overlap: float) -> None:
    """``compute_steps_for_sliding_window``."""
    count = int(np.ceil(more / (size * (1 - overlap)))) + 1
    assume(size * (1 - overlap) >= 1)  # otherwise, nnU-Net has several tiles at one position
    step = more / max(1, count - 1)
    assert starts(0, size + more, size, overlap) == [int(np.round(step * n)) for n in range(count)]


@pytest.mark.parametrize(
    ("low", "high", "size", "overlap", "expected"),
    [
        (0, 10, 5, 0.0, [0, 5]),
        (3, 13, 5, 0.0, [0, 5, 10]),  # regardless of where the region begins
        (5, 10, 5, 0.0, [5]),
        (0, 12, 5, 0.0, [0, 5, 10]),  # the last one extends beyond the region
        (0, 8, 4, 0.5, [-2, 0, 2, 4, 6]),  # the first one, too: the first voxel is also covered by two tiles
        (7, 8, 4, 0.5, [4, 6]),
        (0, 2, 4, 0.75, [-3, -2, -1, 0, 1]),
        (0, 4, 10, 0.8, [-8, -6, -4, -2, 0, 2]),  # although 1 - 0.8 is a little less than 0.2
    ],
)
def test_tiles_of_a_lattice_stand_at_multiples_of_the_step(
    low: int, high: int, size: int, overlap: float, expected: list[int]
) -> None:
    assert list(lattice_starts(low, high, size, overlap)) == expected
    grid = Grid.from_spacing((high, 1, 1), (1.0, 1.0, 1.0))
    region = Region(grid, Box((low, 0, 0), (high, 1, 1)))
    tiling = cover(region, (size, 1, 1), (0, 0, 0), (overlap, 0.0, 0.0), "lattice")
    assert [tile.inner.start[0] for tile in tiling.tiles] == expected


def test_of_a_lattice_only_tiles_that_touch_the_region_are_computed() -> None:
    mask = np.zeros((10, 10, 10), dtype=np.bool_)
    mask[:, :, :5] = True
    mask[4:8, 3, 5:] = True
    tiling = cover(Region(GRID, GRID.box, mask), (5, 5, 5), (0, 0, 0), 0.0, "lattice")
    rows = {k: [t.inner.start[:2] for t in row] for k, row in tiling.rows}
    assert rows == {0: [(0, 0), (0, 5), (5, 0), (5, 5)], 5: [(0, 0), (5, 0)]}
    assert tiling.skipped == 2


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
    mask = np.zeros((10, 10, 10), dtype=np.bool_)
    mask[0, 0, 0] = mask[9, 9, 9] = True
    tiling = cover(Region(GRID, GRID.box, mask), (5, 5, 5), (0, 0, 0), 0.0)
    assert [t.inner.start for t in tiling.tiles] == [(0, 0, 0), (5, 5, 5)]
    assert tiling.skipped == 6


def test_a_row_is_only_as_wide_as_the_region_is_there() -> None:
    mask = np.zeros((10, 10, 10), dtype=np.bool_)
    mask[:, :, :5] = True
    mask[4:8, 3, 5:] = True
    tiling = cover(Region(GRID, GRID.box, mask), (5, 5, 5), (0, 0, 0), 0.0)
    rows = {k: [t.inner.start[:2] for t in row] for k, row in tiling.rows}
    assert rows == {0: [(0, 0), (0, 5), (5, 0), (5, 5)], 5: [(4, 1)]}
    assert tiling.skipped == 3


def test_no_tile_stands_where_a_tile_s_size_lies_empty_between() -> None:
    mask = np.zeros((30, 10, 10), dtype=np.bool_)
    mask[:4] = mask[20:] = True
    grid = GRID.with_shape((30, 10, 10))
    tiling = cover(Region(grid, grid.box, mask), (10, 10, 10), (0, 0, 0), 0.0)
    assert [t.inner.start[0] for t in tiling.tiles] == [0, 20]


def test_refuses_a_halo_that_eats_the_tile() -> None:
    with pytest.raises(GeometryError, match=r"a tile of \(8, 8, 4\) voxels leaves nothing inside a halo"):
        cover(Region.whole(GRID), (8, 8, 4), (2, 2, 2), 0.0)


def test_refuses_a_region_that_holds_no_voxel() -> None:
    nothing = Region(GRID, GRID.box, np.zeros((10, 10, 10), dtype=np.bool_))
    with pytest.raises(GeometryError, match=r"the region holds no voxel of a grid of shape \(10, 10, 10\)"):
        cover(nothing, (5, 5, 5), (0, 0, 0), 0.0)


def test_tiles_stand_where_the_mask_is_inside_the_scan_with_their_halo() -> None:
    box = Box((10, 0, 0), (30, 4, 4))
    mask = np.zeros(box.shape, dtype=bool)
    mask[0] = mask[-1] = True
    tiles = list(place(box, mask, (30, 4, 4), (4, 4, 4), (1, 0, 2), (0.5, 0.5, 0.5)))
    assert [tile.inner.start for tile in tiles] == [(9, 0, 0), (26, 0, 0)]
    assert tiles[0].outer == Box((8, 0, -2), (14, 4, 6))


def test_without_a_mask_all_of_the_box_is_covered() -> None:
    tiles = list(place(Box((0, 0, 0), (8, 4, 4)), None, (8, 4, 4), (4, 4, 4), (0, 0, 0), (0.0, 0.0, 0.0)))
    assert [tile.inner.start for tile in tiles] == [(0, 0, 0), (4, 0, 0)]


def test_weights_are_highest_in_the_middle_and_never_zero() -> None:
    assert importance_map((1, 4, 5))[0].tolist() == [
        pytest.approx([a * b for b in (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3)]) for a in (0.5, 1, 1, 0.5)
    ]
    assert importance_map((64, 64, 64)).min() == np.float32(1e-3)


Make = Callable[[npt.NDArray[np.floating]], Array]


@pytest.fixture(params=[np.asarray, torch.asarray], ids=["numpy", "torch"])
def make(request: pytest.FixtureRequest) -> Make:
    """Converts values to an array."""
    found: Make = request.param
    return found


def ones(*shape: int) -> npt.NDArray[np.float32]:
    return np.ones(shape, dtype=np.float32)


def whole(stitcher: TileAggregator) -> Array:
    slabs = [slab * 1 for slab in stitcher.take()]
    return namespace(slabs[0]).concat(slabs, axis=3)


def tile(start: int, stop: int) -> Tile:
    box = Box((start, 0, 0), (stop, 1, 1))
    return Tile(box, box)


def test_stitcher_takes_the_weighted_mean(make: Make) -> None:
    weights = make(np.array([1, 3], np.float32).reshape(2, 1, 1))
    stitcher = TileAggregator(1, Box((0, 0, 0), (3, 1, 1)), weights)
    stitcher.add(tile(0, 2), make(np.full((1, 2, 1, 1), 0.2, np.float32)))
    stitcher.add(tile(1, 3), make(np.full((1, 2, 1, 1), 0.6, np.float32)))
    assert whole(stitcher).flatten().tolist() == pytest.approx([0.2, (3 * 0.2 + 0.6) / 4, 0.6])


def test_stitcher_gives_background_where_nobody_answered(make: Make) -> None:
    stitcher = TileAggregator(2, Box((0, 0, 0), (3, 1, 1)), make(ones(1, 1, 1)))
    stitcher.add(tile(1, 2), make(np.array([0, 1], np.float32).reshape(2, 1, 1, 1)))
    assert whole(stitcher).reshape(2, 3).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_stitcher_drops_what_falls_outside(make: Make) -> None:
    stitcher = TileAggregator(1, Box((5, 0, 0), (7, 1, 1)), make(ones(4, 1, 1)))
    stitcher.add(tile(3, 7), make(np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)))
    stitcher.add(tile(20, 24), make(np.full((1, 4, 1, 1), 9.0, np.float32)))
    assert whole(stitcher).flatten().tolist() == [2, 3]


def test_stitcher_takes_half_precision(make: Make) -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (1, 1, 1)), make(ones(1, 1, 1)))
    stitcher.add(tile(0, 1), make(np.full((1, 1, 1, 1), 0.25, np.float16)))
    out = whole(stitcher)
    assert str(out.dtype).endswith("float32")
    assert type(out) is type(make(ones(1)))
    assert out.item() == 0.25


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 2, 1, 1), (1, 1, 1, 1), (1, 2, 1)])
def test_stitcher_refuses_an_answer_of_another_shape(make: Make, shape: tuple[int, ...]) -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (3, 1, 1)), make(ones(2, 1, 1)))
    with pytest.raises(GeometryError, match=r"predicts \(2, 1, 1\) voxels has .* expected \(1, 2, 1, 1\)"):
        stitcher.add(tile(0, 2), make(0 * ones(*shape)))


def test_stitcher_refuses_a_tile_that_its_weights_do_not_fit(make: Make) -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (3, 1, 1)), make(ones(2, 1, 1)))
    with pytest.raises(GeometryError, match=r"predicts \(3, 1, 1\) voxels"):
        stitcher.add(tile(0, 3), make(ones(1, 2, 1, 1)))


def test_planes_are_taken_once_no_tile_to_come_reaches_them(make: Make) -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (1, 1, 8)), make(ones(1, 1, 4)))

    def add(k: int, value: float) -> None:
        box = Box((0, 0, k), (1, 1, k + 4))
        stitcher.add(Tile(box, box), make(np.full((1, 1, 1, 4), value, np.float32)))

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


def test_a_gap_between_rows_is_background(make: Make) -> None:
    stitcher = TileAggregator(2, Box((0, 0, 0), (1, 1, 9)), make(ones(1, 1, 2)))
    certain = make(np.array([0, 0, 1, 1], np.float32).reshape(2, 1, 1, 2))
    found: list[float] = []
    for k in (0, 7):
        found += [float(v) for slab in stitcher.take(k) for v in slab[1].flatten()]
        box = Box((0, 0, k), (1, 1, k + 2))
        stitcher.add(Tile(box, box), certain)
    found += [float(v) for slab in stitcher.take() for v in slab[1].flatten()]
    assert found == [1, 1, 0, 0, 0, 0, 0, 1, 1]


def test_tiles_out_of_order_are_refused(make: Make) -> None:
    stitcher = TileAggregator(1, Box((0, 0, 0), (1, 1, 8)), make(ones(1, 1, 4)))
    box = Box((0, 0, 2), (1, 1, 6))
    with pytest.raises(GeometryError, match=r"planes 2 to 6 came where 0 to 4 are held; .* order of their"):
        stitcher.add(Tile(box, box), make(ones(1, 1, 1, 4)))


def test_the_gaussian_importance_map_is_a_filtered_point() -> None:
    shape = (16, 8, 12)
    point = np.zeros(shape)
    point[8, 4, 6] = 1
    whole = ndimage.gaussian_filter(point, [n / 8 for n in shape], mode="constant")
    expected = (10 * whole / whole.max()).astype(np.float16).astype(np.float32)
    assert (expected == 0).any()
    expected[expected == 0] = 2.0**-24
    found = gaussian_importance_map(shape)
    assert found.dtype == np.float32
    # Some values lie between two of half precision, up to rounding.
    assert (found == expected).mean() > 0.99
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2.0**-24)


def test_tiles_may_be_added_up_as_logarithms(make: Make) -> None:
    stitcher = TileAggregator(2, Box((0, 0, 0), (2, 1, 1)), make(ones(2, 1, 1)))
    values = np.array([[0.5, 0.25], [0.5, 0.75]], dtype=np.float32).reshape(2, 2, 1, 1)
    stitcher.add(tile(0, 2), make(values), logs=True)
    stitcher.add(tile(0, 2), make(values[::-1].copy()), logs=True)
    expected = [np.log(0.5), np.log(0.25 * 0.75) / 2] * 2
    assert whole(stitcher).flatten().tolist() == pytest.approx(expected)


@given(
    sides=st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 9)),
    tile_sides=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5)),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    logits_at_once=st.integers(1, 200),
    seed=st.integers(0, 999),
)
def test_a_head_after_the_mean_is_the_mean_after_the_head(
    sides: tuple[int, int, int],
    tile_sides: tuple[int, int, int],
    overlap: float,
    logits_at_once: int,
    seed: int,
) -> None:
    """Whatever number of planes is taken at once, and where no tile answered, too."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    head = PointwiseHead(weight, bias)
    grid = Grid.from_spacing(sides, (1.0, 1.0, 1.0))
    mask = rng.random(sides) < 0.3
    mask[0, 0, 0] = True
    tiles = cover(Region(grid, grid.box, mask), tile_sides, (0, 0, 0), overlap)
    weights = importance_map(tile_sides)
    after = TileAggregator(2, grid.box, weights, background=9.0, head=head)
    before = TileAggregator(5, grid.box, weights, background=9.0)
    found, expected = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "LOGITS_AT_ONCE", logits_at_once)
        for k, row in [*tiles.rows, (None, ())]:
            found += [slab.copy() for slab in after.take(k)]
            expected += [slab.copy() for slab in before.take(k)]
            for one in row:
                features = rng.normal(size=(2, *tile_sides)).astype(np.float32)
                after.add(one, features)
                before.add(one, np.einsum("cf,fijk->cijk", weight, features) + bias[:, None, None, None])
    whole_of = [np.concatenate(slabs, axis=3) for slabs in (found, expected)]
    np.testing.assert_allclose(*whole_of, atol=1e-5)
    assert whole_of[0].shape == (5, *sides)
    assert max(slab[..., 1:].size for slab in found) <= logits_at_once


def test_a_head_takes_arrays_of_either_library(make: Make) -> None:
    head = PointwiseHead(np.array([[1, 2], [0, -1], [3, 0]], np.float32), np.array([0, 10, 20], np.float32))
    features = make(np.array([[1, 2], [3, 0]], np.float32).reshape(2, 2, 1, 1))
    assert (head.features, head.classes) == (2, 3)
    assert head.logits(features).reshape(3, 2).tolist() == [[7, 2], [7, 10], [23, 26]]
    known = make(np.array([1, 0], np.float32).reshape(2, 1, 1))
    assert head.logits(features * known, known).reshape(3, 2).tolist() == [[7, 0], [7, 0], [23, 0]]


def test_means_of_logarithms_are_means_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32) * 4
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mean = np.exp(logits.mean(axis=0)) / np.exp(logits.mean(axis=0)).sum(axis=0)
    np.testing.assert_allclose(normalised(logarithms(softmax).mean(axis=0)), mean, atol=1e-6)
    assert logarithms(np.zeros(1, dtype=np.float32))[0] == pytest.approx(LOWEST_LOG)


def test_logarithms_leave_what_they_are_made_of(make: Make) -> None:
    given = np.array([0, 1e-40, 1e-37, 0.5, 1], dtype=np.float32)
    found = np.asarray(logarithms(make(given.copy())))
    assert found.tolist() == pytest.approx([LOWEST_LOG] * 3 + [math.log(0.5), 0])
    kept = given.copy()
    logarithms(kept)
    assert np.array_equal(kept, given)


def test_logarithms_take_no_second_copy() -> None:
    shares = np.full((6, 40, 40, 40), 1 / 6, dtype=np.float32)
    logarithms(shares[:1])  # imports what it needs
    tracemalloc.start()
    logarithms(shares)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1.1 * shares.nbytes


def test_of_overlapping_labels_the_last_that_a_voxel_has_stays() -> None:
    logits = np.random.default_rng(0).normal(scale=4, size=(3, 500))
    logits[:, 0], logits[:, 1] = 200, -200
    share = 1 / (1 + np.exp(-logits))
    expected = [
        (1 - share).prod(axis=0),
        share[0] * (1 - share[1]) * (1 - share[2]),
        share[1] * (1 - share[2]),
        share[2],
    ]
    shift = np.random.default_rng(1).normal(size=500)  # logarithms are correct up to a constant per voxel
    found = overlapping(np.concatenate([np.zeros((1, 500)), logits]).astype(np.float32) + shift)
    np.testing.assert_allclose(found, expected, atol=1e-5)
