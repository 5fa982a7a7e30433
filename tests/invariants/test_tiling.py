"""Invariants for every region, tile, halo and overlap: tiles cover the region and do not change values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.grids import boxes_in, masks, shapes
from zoomseg.core.arrays import Array, namespace
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.tiling import Placement, Tile, TileAggregator, Tiling, cover, importance_map


@st.composite
def tilings(
    draw: st.DrawFn,
) -> tuple[Region, Tiling, tuple[int, int, int], tuple[int, int, int], float, Placement]:
    """A region (with or without mask), its tiling, the sizes of tile and halo, overlap, and placement."""
    grid = Grid(draw(shapes(1, 16)), np.eye(4))
    box = draw(boxes_in(grid.shape))
    region = Region(grid, box, draw(st.one_of(st.none(), masks(box.shape))))
    halo = draw(shapes(0, 3))
    inner = draw(shapes(1, 9))
    tile = tuple(n + 2 * h for n, h in zip(inner, halo, strict=True))
    overlap = draw(st.sampled_from([0.0, 0.25, 0.5, 0.8]))
    placement: Placement = draw(st.sampled_from(get_args(Placement)))
    return region, cover(region, tile, halo, overlap, placement), tile, halo, overlap, placement


def answered(tiling: Tiling, box: Box) -> np.ndarray:
    """Number of tiles that predict each voxel of ``box``."""
    count = np.zeros(box.shape, dtype=np.int64)
    for tile in tiling.tiles:
        common = tile.inner.intersect(box)
        if not common.empty:
            count[common.relative_to(box.start).slices] += 1
    return count


def stitched(stitcher: TileAggregator, tiling: Tiling, answer: Callable[[Tile], Array]) -> Array:
    """Aggregate the tiles row by row, as in a prediction."""
    slabs = []
    for k, row in tiling.rows:
        slabs += [slab * 1 for slab in stitcher.take(k)]
        for tile in row:
            stitcher.add(tile, answer(tile))
    slabs += [slab * 1 for slab in stitcher.take()]
    return namespace(slabs[0]).concat(slabs, axis=3)


@given(tilings())
def test_every_voxel_of_the_region_is_answered(case: tuple) -> None:
    region, tiling, *_ = case
    assert (answered(tiling, region.box)[region.mask_in(region.box)] > 0).all()


@given(tilings())
def test_every_tile_is_needed(case: tuple) -> None:
    region, tiling, tile, halo, overlap, placement = case
    assert all(region.mask_in(t.inner).any() for t in tiling.tiles)
    everywhere = cover(Region(region.grid, region.box), tile, halo, overlap, placement)
    assert everywhere.skipped == 0
    assert (answered(everywhere, region.box) > 0).all()
    assert tiling.skipped == max(0, len(everywhere.tiles) - len(tiling.tiles))


@given(tilings())
def test_rows_come_in_order_and_hold_every_tile(case: tuple) -> None:
    _, tiling, *_ = case
    rows = list(tiling.rows)
    assert [k for k, _ in rows] == sorted({t.inner.start[2] for t in tiling.tiles})
    assert all(t.inner.start[2] == k for k, row in rows for t in row)
    assert tuple(t for _, row in rows for t in row) == tiling.tiles


@given(tilings())
def test_tiles_have_the_size_the_network_reads(case: tuple) -> None:
    _, tiling, tile, halo, *_ = case
    for t in tiling.tiles:
        assert t.outer.shape == tile
        assert t.inner.expand(halo) == t.outer
        assert t.outer.intersect(tiling.outer) == t.outer


@given(tilings())
def test_neighbours_share_the_overlap_they_were_asked_for(case: tuple) -> None:
    """On average; each step is rounded to voxels."""
    region, _, tile, halo, overlap, _ = case
    tiling = cover(Region(region.grid, region.box), tile, halo, overlap)
    for axis in range(3):
        size = tiling.tiles[0].inner.shape[axis]
        starts = sorted({t.inner.start[axis] for t in tiling.tiles})
        steps = [b - a for a, b in pairwise(starts)]
        largest = max(1, size * (1 - overlap))
        assert all(1 <= step < largest + 1 for step in steps)
        assert sum(steps) <= len(steps) * largest + 1e-6
        if len(starts) > 1:  # tiles do not extend beyond the box
            assert starts[0] == region.box.start[axis]
            assert starts[-1] + size == region.box.stop[axis]


@given(tilings(), st.sampled_from([1, 2, 4]))
def test_a_lattice_answers_every_voxel_of_the_region_equally_often(case: tuple, rate: int) -> None:
    """If the step divides the tile size: ``rate`` times along each axis, for any shape of the region."""
    region, _, tile, halo, *_ = case
    wide = tuple(2 * h + rate * (n - 2 * h) for n, h in zip(tile, halo, strict=True))
    tiling = cover(region, wide, halo, (rate - 1) / rate, "lattice")
    count = answered(tiling, region.box)[region.mask_in(region.box)]
    assert (count == rate**3).all()


both = pytest.mark.parametrize("make", [np.asarray, torch.asarray], ids=["numpy", "torch"])


@both
@pytest.mark.parametrize("weighting", ["importance", "flat"])
@given(case=tilings(), value=st.floats(0, 1, width=32))
def test_constant_in_constant_out(
    make: Callable[[np.ndarray], Array], case: tuple, value: float, weighting: str
) -> None:
    region, tiling, *_ = case
    inner = tiling.tiles[0].inner.shape
    weights = importance_map(inner) if weighting == "importance" else np.ones(inner, dtype=np.float32)
    stitcher = TileAggregator(2, region.box, make(weights))
    out = stitched(stitcher, tiling, lambda tile: make(np.full((2, *inner), value, dtype=np.float32)))
    assert type(out) is type(make(weights))
    seen = answered(tiling, region.box) > 0
    assert np.allclose(out[:, seen], value, rtol=1e-5, atol=1e-7)
    assert (out[0][~seen] == 1).all()
    assert (out[1][~seen] == 0).all()


@both
@given(case=tilings(), seed=st.integers(0, 1000))
def test_cut_into_tiles_and_stitched_is_identity(
    make: Callable[[np.ndarray], Array], case: tuple, seed: int
) -> None:
    region, tiling, *_ = case
    inner = tiling.tiles[0].inner.shape
    box = tiling.outer.union(region.box)
    field = make(np.random.default_rng(seed).random((3, *box.shape), dtype=np.float32))
    stitcher = TileAggregator(3, region.box, make(importance_map(inner)))
    out = stitched(
        stitcher, tiling, lambda tile: field[(slice(None), *tile.inner.relative_to(box.start).slices)]
    )
    wanted = region.mask_in(region.box)
    whole = field[(slice(None), *region.box.relative_to(box.start).slices)]
    assert np.allclose(out[:, wanted], whole[:, wanted], atol=1e-6)
