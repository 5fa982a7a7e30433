from __future__ import annotations

import time

import numpy as np
import pytest

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.region import Region, bounding_box, class_boxes, class_counts, overlap_counts

GRID = Grid.from_spacing((6, 6, 6), (1.0, 1.0, 1.0))
BOX = Box((1, 2, 3), (3, 4, 5))


def one_voxel(at: tuple[int, int, int], shape: tuple[int, int, int] = (6, 6, 6)) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[at] = True
    return mask


@pytest.mark.parametrize(
    "box", [Box((1, 1, 1), (1, 2, 2)), Box((-1, 0, 0), (2, 2, 2)), Box((0, 0, 0), (6, 6, 7))]
)
def test_refuses_a_box_that_is_empty_or_reaches_outside(box: Box) -> None:
    with pytest.raises(GeometryError, match="empty or not inside a grid"):
        Region(GRID, box)


@pytest.mark.parametrize("mask", [np.ones((2, 2, 3), dtype=np.bool_), np.ones((2, 2, 2), dtype=np.uint8)])
def test_refuses_a_mask_of_another_shape_or_type(mask: np.ndarray) -> None:
    with pytest.raises(GeometryError, match="region mask must be bool of shape"):
        Region(GRID, BOX, mask)


def test_voxels_counts_the_mask_where_there_is_one() -> None:
    assert Region.whole(GRID).voxels == 216
    assert Region(GRID, BOX).voxels == 8
    assert Region(GRID, BOX, one_voxel((0, 1, 1), (2, 2, 2))).voxels == 1


def test_of_mask_crops_to_what_is_set() -> None:
    mask = one_voxel((1, 2, 3)) | one_voxel((2, 3, 3))
    region = Region.of_mask(GRID, mask)
    assert region is not None
    assert region.box == Box((1, 2, 3), (3, 4, 4))
    assert region.mask is not None
    assert region.mask[..., 0].tolist() == [[True, False], [False, True]]


def test_of_mask_of_nothing_is_none() -> None:
    assert Region.of_mask(GRID, np.zeros((6, 6, 6), dtype=np.bool_)) is None
    assert bounding_box(np.zeros((6, 6, 6), dtype=np.bool_)) is None


def test_bounding_box_is_tight() -> None:
    assert bounding_box(one_voxel((0, 5, 2))) == Box((0, 5, 2), (1, 6, 3))
    assert bounding_box(np.ones((2, 3, 4), dtype=np.bool_)) == Box((0, 0, 0), (2, 3, 4))


def test_mask_in_places_the_region_in_any_box() -> None:
    region = Region(GRID, BOX, one_voxel((1, 0, 1), (2, 2, 2)))
    assert np.array_equal(region.mask_in(GRID.box), one_voxel((2, 2, 4)))
    assert np.array_equal(region.mask_in(Box((2, 1, -2), (3, 3, 6))), one_voxel((0, 1, 6), (1, 2, 8)))
    assert not region.mask_in(Box((4, 4, 4), (6, 6, 6))).any()
    assert int(Region(GRID, BOX).mask_in(GRID.box).sum()) == 8


def test_on_a_finer_grid_every_voxel_becomes_its_parts() -> None:
    region = Region(GRID, BOX, one_voxel((1, 0, 1), (2, 2, 2)))
    fine = region.on(GRID.with_shape((12, 18, 6)))
    assert fine.box == Box((2, 6, 3), (6, 12, 5))
    assert fine.mask is not None
    assert bounding_box(fine.mask_in(fine.grid.box)) == Box((4, 6, 4), (6, 9, 5))
    assert fine.voxels == 6


def test_on_another_grid_keeps_a_box_a_box() -> None:
    region = Region(GRID, BOX).on(GRID.downsampled((2, 2, 2)))
    assert region.mask is None
    assert region.box == Box((0, 1, 1), (1, 2, 2))  # centres at 0.5, 2.5 and 4.5


@pytest.mark.parametrize("spacing", [0.8, 1.0, 1.5, 2.3])
@pytest.mark.parametrize("flip", [(False, False, False), (True, False, True)])
def test_on_another_grid_a_box_is_what_the_same_box_as_a_mask_is(
    spacing: float, flip: tuple[bool, bool, bool]
) -> None:
    scan = Grid.from_spacing((14, 13, 12), (1.0, 1.0, 1.0))
    stage = scan.with_spacing((spacing, spacing, 1.25 * spacing))
    box = Box((1, 2, 1), (4, 5, 4))
    turned = Orientation((2, 0, 1), flip).grid(scan)
    found = Region(stage, box).on(turned)
    masked = Region(stage, box, np.ones(box.shape, dtype=np.bool_)).on(turned)
    assert np.array_equal(found.mask_in(turned.box), masked.mask_in(turned.box))
    assert 0 < found.voxels < turned.box.voxels


def test_a_box_between_voxel_centres_is_the_closest_voxel() -> None:
    scan = Grid.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    stage = scan.with_spacing((1.0, 1.0, 0.3))
    region = Region(stage, Box((1, 1, 3), (2, 2, 4)))  # from 0.4 to 0.7 along k
    assert region.on(scan).box == Box((1, 1, 1), (2, 2, 2))


def test_on_refuses_a_grid_it_does_not_meet() -> None:
    elsewhere = Grid.from_spacing((6, 6, 6), (1.0, 1.0, 1.0), (100.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="does not overlap the requested grid"):
        Region(GRID, BOX).on(elsewhere)


@pytest.mark.parametrize("order", ["C", "F"])
def test_class_counts_are_the_voxels_of_each_class(order: str) -> None:
    classes = np.zeros((3, 4, 5), dtype=np.uint8, order=order)  # type: ignore[call-overload]
    classes[0, 1:3, 2:] = 7
    classes[2, 3, 4] = 255
    counts = class_counts(classes[:, ::-1])
    assert {c: int(counts[c]) for c in np.flatnonzero(counts)} == {0: 53, 7: 6, 255: 1}


@pytest.mark.parametrize("order", ["C", "F"])
def test_class_boxes_are_those_of_each_class_alone(order: str) -> None:
    rng = np.random.default_rng(3)
    classes = np.zeros((9, 11, 13), dtype=np.uint8)
    classes[2:7, 3:9, 4:12] = rng.choice([0, 0, 0, 0, 1, 2, 7], size=(5, 6, 8))
    classes[8, 10, 0] = 5
    classes = np.asarray(classes, order="F" if order == "F" else "C")
    boxes = class_boxes(classes, range(1, 9))
    assert sorted(boxes) == [1, 2, 5, 7]
    for c, box in boxes.items():
        assert box == bounding_box(classes == c)
    assert class_boxes(classes, [5]) == {5: Box((8, 10, 0), (9, 11, 1))}


def test_overlaps_are_counted_by_class_without_background() -> None:
    one, other = np.zeros((2, 3, 4), dtype=np.uint8), np.zeros((2, 3, 4), dtype=np.uint8)
    one[0] = 1
    one[1, 0] = 2
    other[0, 1:] = 1
    other[1, :, 0] = 2
    one[1, 2, 3] = other[1, 2, 3] = 255  # ignored
    assert overlap_counts(one, other, 4).tolist() == [[12, 4, 0], [8, 3, 0], [8, 1, 0]]


def test_overlaps_of_a_large_scan_take_moments() -> None:
    """Counting takes planes, not single voxels."""
    labels = np.random.default_rng(0).integers(0, 3, (100, 100, 100), dtype=np.uint8)
    began = time.process_time()
    both = overlap_counts(labels, labels, 3)[2]
    assert time.process_time() - began < 1
    assert both.tolist() == [int((labels == 1).sum()), int((labels == 2).sum())]
