"""Invariants of every region that is transferred to another grid."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helpers.grids import boxes_in, grids, indices, masks
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.region import Region, bounding_box


@st.composite
def regions(draw: st.DrawFn, oblique: bool = False) -> Region:
    grid = draw(grids(low=2, high=7, oblique=oblique))
    box = draw(boxes_in(grid.shape))
    return Region(grid, box, draw(st.one_of(st.none(), masks(box.shape))))


@given(regions(), st.tuples(*(st.integers(1, 3) for _ in range(3))))
def test_a_finer_grid_loses_no_voxel(region: Region, factor: tuple[int, int, int]) -> None:
    fine = region.grid.with_shape(tuple(n * f for n, f in zip(region.grid.shape, factor, strict=True)))
    moved = region.on(fine)
    assert moved.voxels == region.voxels * int(np.prod(factor))
    there = np.argwhere(region.mask_in(region.grid.box))
    back = np.rint(region.grid.index(fine.world(np.argwhere(moved.mask_in(fine.box))))).astype(int)
    assert {tuple(i) for i in back} == {tuple(i) for i in there}


@given(regions(oblique=True), st.tuples(*(st.floats(0.2, 1.0) for _ in range(3))))
def test_a_finer_grid_of_any_spacing_still_hits_every_voxel(
    region: Region, share: tuple[float, float, float]
) -> None:
    spacing = tuple(s * f for s, f in zip(region.grid.spacing_mm, share, strict=True))
    moved = region.on(region.grid.with_spacing(spacing))
    hit = moved.grid.world(np.argwhere(moved.mask_in(moved.grid.box)))
    back = np.floor(region.grid.index(hit) + 0.5001).astype(int)
    expected = {tuple(i) for i in np.argwhere(region.mask_in(region.grid.box)).tolist()}
    assert expected <= {tuple(i) for i in back.tolist()}


@given(regions(), st.tuples(*(st.floats(0.3, 3.0) for _ in range(3))))
def test_a_voxel_belongs_if_its_centre_does(region: Region, factor: tuple[float, float, float]) -> None:
    other = region.grid.downsampled(factor)
    moved = region.on(other)
    at = region.grid.index(other.world(indices(other)))
    clear = np.abs((at + 0.5) % 1 - 0.5) < 0.499
    nearest = np.floor(at + 0.5).astype(int)
    inside = ((nearest >= 0) & (nearest < np.array(region.grid.shape))).all(axis=-1)
    whole = region.mask_in(region.grid.box)
    expected = inside & whole[tuple(np.moveaxis(np.clip(nearest, 0, np.array(whole.shape) - 1), -1, 0))]
    found = moved.mask_in(other.box)
    sure = clear.all(axis=-1)
    if region.mask is None and not expected[sure].any():  # a box between centres is the closest voxel
        assert moved.voxels > 0
    else:
        assert np.array_equal(found[sure], expected[sure])


@given(regions())
def test_the_same_grid_changes_nothing(region: Region) -> None:
    moved = region.on(region.grid)
    assert moved.box == region.box
    assert np.array_equal(moved.mask_in(moved.grid.box), region.mask_in(region.grid.box))


@given(regions())
def test_another_orientation_moves_the_region_along(region: Region) -> None:
    orientation = Orientation.to_canonical(region.grid)
    moved = region.on(orientation.grid(region.grid))
    assert moved.voxels == region.voxels
    here = np.argwhere(region.mask_in(region.grid.box))
    there = np.argwhere(moved.mask_in(moved.grid.box))
    one = {tuple(w) for w in region.grid.world(here).round(5).tolist()}
    assert one == {tuple(w) for w in moved.grid.world(there).round(5).tolist()}


@given(regions())
def test_mask_in_and_of_mask_undo_each_other(region: Region) -> None:
    whole = region.mask_in(region.grid.box)
    assert int(whole.sum()) == region.voxels
    again = Region.of_mask(region.grid, whole)
    assert again is not None
    assert again.box == bounding_box(whole)
    assert np.array_equal(again.mask_in(region.grid.box), whole)


def test_a_region_smaller_than_a_coarse_voxel_can_vanish_by_the_centre_rule() -> None:
    grid = Grid.from_spacing((8, 8, 8), (1.0, 1.0, 1.0))
    mask = np.zeros((8, 8, 8), dtype=np.bool_)
    mask[0, 0, 0] = True
    region = Region.of_mask(grid, mask)
    assert region is not None
    assert region.on(grid.downsampled((4, 4, 4))).voxels == 0
