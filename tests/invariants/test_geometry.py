"""Invariants of every grid, box and orientation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.grids import SIGNED_PERMUTATIONS, boxes_in, grids, indices, shapes, spacings
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume

EVERY_ORIENTATION = [Orientation(order, tuple(map(bool, flip))) for order, flip in SIGNED_PERMUTATIONS]


@given(grids(oblique=True))
def test_index_and_world_undo_each_other(grid: Grid) -> None:
    there = grid.world(indices(grid))
    assert np.abs(grid.index(there) - indices(grid)).max() < 1e-9
    assert np.abs(grid.world(grid.index(there)) - there).max() < 1e-6


@given(grids(oblique=True), st.data())
def test_a_crop_keeps_every_voxel_where_it_is(grid: Grid, data: st.DataObject) -> None:
    box = data.draw(boxes_in(grid.shape))
    margin = data.draw(st.tuples(*(st.integers(0, 5) for _ in range(3))))
    part = grid.crop(box.expand(margin))
    offset = np.array(box.start) - np.array(margin)
    assert np.abs(part.world(indices(part)) - grid.world(indices(part) + offset)).max() < 1e-9


@given(grids(oblique=True), shapes(1, 20))
def test_another_shape_has_the_same_corners(grid: Grid, shape: tuple[int, int, int]) -> None:
    other = grid.with_shape(shape)
    corners = np.array(list(np.ndindex(2, 2, 2)))
    before = grid.world(corners * np.array(grid.shape) - 0.5)
    after = other.world(corners * np.array(shape) - 0.5)
    assert np.abs(before - after).max() < 1e-6


@given(grids(oblique=True), spacings())
def test_another_spacing_starts_at_the_same_corner_and_covers_all(
    grid: Grid, spacing_mm: tuple[float, float, float]
) -> None:
    other = grid.with_spacing(spacing_mm)
    assert other.spacing_mm == pytest.approx(spacing_mm)
    assert np.abs(other.world([-0.5] * 3) - grid.world([-0.5] * 3)).max() < 1e-6
    uncovered = np.array(grid.extent_mm) - np.array(other.extent_mm)
    assert (uncovered <= 0.0101 * np.array(spacing_mm)).all()
    assert (uncovered >= -np.array(spacing_mm)).all()


@given(grids(oblique=True), spacings())
def test_no_voxel_centre_falls_outside_another_spacing(
    grid: Grid, spacing_mm: tuple[float, float, float]
) -> None:
    other = grid.with_spacing(spacing_mm)
    at = other.index(grid.world(indices(grid)))
    assert (at > -0.5).all()
    assert (at < np.array(other.shape) - 0.5 + 0.0101).all()


@given(grids(oblique=True), grids(oblique=True), st.data())
def test_box_of_covers_the_other_box_and_nothing_smaller_does(
    one: Grid, other: Grid, data: st.DataObject
) -> None:
    box = data.draw(boxes_in(other.shape))
    corners = np.array([np.where(bits, box.stop, box.start) - 0.5 for bits in np.ndindex(2, 2, 2)])
    reach = one.index(other.world(corners))
    found = one.box_of(other, box)
    low, high = reach.min(axis=0), reach.max(axis=0)
    assert (np.array(found.start) - 0.5 <= low + 1e-5).all()
    assert (np.array(found.stop) - 0.5 >= high - 1e-5).all()
    assert (np.array(found.start) + 0.5 > low - 1e-5).all()
    assert (np.array(found.stop) - 1.5 < high + 1e-5).all()


@given(grids(), st.data())
def test_box_of_the_same_lattice_is_the_box(grid: Grid, data: st.DataObject) -> None:
    box = data.draw(boxes_in(grid.shape))
    assert grid.box_of(grid, box) == box
    part = grid.crop(box)
    assert grid.box_of(part, part.box) == box


@pytest.mark.parametrize("orientation", EVERY_ORIENTATION)
def test_every_orientation_is_undone_by_its_inverse(orientation: Orientation) -> None:
    grid = Grid.from_spacing((2, 3, 4), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0))
    volume = Volume(np.arange(24.0).reshape(1, 2, 3, 4), grid)
    back = volume.reoriented(orientation).reoriented(orientation.inverse)
    assert np.array_equal(back.data, volume.data)
    assert np.abs(back.grid.affine - grid.affine).max() < 1e-12
    assert orientation.inverse.inverse == orientation


@given(grids(low=2, oblique=True))
def test_to_canonical_is_lossless_and_leaves_every_voxel_in_its_place(grid: Grid) -> None:
    classes = np.arange(int(np.prod(grid.shape))).reshape(grid.shape)
    image = Volume(classes[None].astype(np.float64), grid)
    orientation = Orientation.to_canonical(grid)
    turned = image.reoriented(orientation)
    before = grid.world(indices(grid)).reshape(-1, 3)
    place = {int(v): w for v, w in zip(classes.flatten(), before, strict=True)}
    now = turned.grid.world(indices(turned.grid)).reshape(-1, 3)
    then = np.array([place[int(v)] for v in turned.data[0].flatten()])
    assert np.abs(now - then).max() < 1e-9
    assert turned.grid.voxel_volume_ml == pytest.approx(grid.voxel_volume_ml)


@given(grids(low=2, oblique=True))
def test_to_canonical_is_canonical(grid: Grid) -> None:
    turned = Orientation.to_canonical(grid).grid(grid)
    assert Orientation.to_canonical(turned).identity


@pytest.mark.parametrize("orientation", EVERY_ORIENTATION)
def test_to_canonical_finds_every_orientation(orientation: Orientation) -> None:
    ras = Grid.from_spacing((2, 3, 4), (1.0, 2.0, 3.0))
    assert Orientation.to_canonical(orientation.grid(ras)) == orientation.inverse


@given(grids(), st.data())
def test_crop_then_paste_is_identity(grid: Grid, data: st.DataObject) -> None:
    box = data.draw(boxes_in(grid.shape))
    seed = data.draw(st.integers(0, 1000))
    classes = np.random.default_rng(seed).integers(0, 3, grid.shape, dtype=np.uint8)
    labels = LabelMap(classes, grid, LabelSchema.consecutive(["a", "b"]))
    image = Volume(classes[None].astype(np.float32), grid)
    for whole, part in ((labels.data, labels.crop(box).data), (image.data[0], image.crop(box).data[0])):
        pasted = whole.copy()
        pasted[box.slices] = part.copy()
        assert np.array_equal(pasted, whole)
    assert labels.crop(box).grid.same_as(grid.crop(box), tolerance_vox=0.0)


@given(st.data())
def test_box_arithmetic_agrees_with_sets_of_voxels(data: st.DataObject) -> None:
    one, two = (data.draw(boxes_in((5, 5, 5))) for _ in range(2))

    def voxels(box: Box) -> set[tuple[int, ...]]:
        return {tuple(np.array(i) + box.start) for i in np.ndindex(*(max(0, n) for n in box.shape))}

    common = one.intersect(two)
    assert voxels(common) == voxels(one) & voxels(two)
    assert common.voxels == len(voxels(common))
    assert voxels(one.union(two)) >= voxels(one) | voxels(two)
