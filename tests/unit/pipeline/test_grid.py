from __future__ import annotations

import numpy as np
import pytest

from helpers.grids import oriented
from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.pipeline.grid import image_kernels, label_blocks, label_kernels, prediction_kernels, stage_grid
from zoomseg.recipe.spec import Downsample, FixedShape, FixedSpacing, GridSpec

SCAN = Grid.from_spacing((20, 30, 10), (1.0, 1.0, 3.0), (5.0, 6.0, 7.0))
OBLIQUE = oriented((101, 64, 30), (0.8, 0.8, 2.5), (-40.0, 12.5, 100.0), angles_deg=(3, -8, 5))


def test_downsample_enlarges_the_scans_own_voxels() -> None:
    grid = stage_grid(Downsample(factor=(2, 3, 1), tile=(8, 8, 8)), SCAN)
    assert grid.shape == (10, 10, 10)
    assert grid.spacing_mm == (2, 3, 3)
    assert grid.world((0, 0, 0)).tolist() == [5.5, 7, 7]


@pytest.mark.parametrize("fit", ["cover", "round"])
def test_along_an_axis_without_a_spacing_the_scan_keeps_its_own(fit: str) -> None:
    spec = FixedSpacing.model_validate({"mm": (2, 2, None), "tile": (8, 8, 1), "fit": fit})
    grid = stage_grid(spec, SCAN)
    assert (grid.shape, grid.spacing_mm) == ((10, 15, 10), (2, 2, 3))
    apart = spec.model_copy(update={"slices_apart_above": 2})
    assert image_kernels(apart, SCAN)[2] == "nearest"  # 3 mm compared with 1 mm
    assert prediction_kernels(apart, SCAN)[2] == "nearest"  # the scan's 3 mm decide, as 3 / 2 is not above 2


def test_spacing_does_not_depend_on_the_scans() -> None:
    grid = stage_grid(FixedSpacing(mm=(2, 2, 2), tile=(8, 8, 8)), SCAN)
    assert grid.shape == (10, 15, 15)
    assert grid.spacing_mm == (2, 2, 2)


def test_shape_brings_a_box_to_exactly_that_many_voxels() -> None:
    spec = FixedShape(shape=(5, 5, 8), tile=(8, 8, 8))
    grid = stage_grid(spec, SCAN, Box((10, 5, 2), (20, 30, 6)))
    assert grid.shape == (5, 5, 8)
    assert grid.spacing_mm == pytest.approx((2, 5, 1.5))
    # The corner of the box stays: voxel 10 begins at 14.5 mm, and half of 2 mm further is the centre.
    assert grid.world((0, 0, 0)) == pytest.approx([15.5, 13, 12.25])


def test_shape_without_a_box_takes_the_whole_scan() -> None:
    grid = stage_grid(FixedShape(shape=(4, 6, 5), tile=(8, 8, 8)), SCAN)
    assert grid.extent_mm == pytest.approx(SCAN.extent_mm)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (Downsample(factor=(1.5, 2.5, 0.5), tile=(8, 8, 8)), (68, 26, 60)),
        (FixedSpacing(mm=(3, 3, 3), tile=(8, 8, 8)), (27, 18, 25)),  # of 80.8, 51.2 and 75 mm
        (FixedShape(shape=(20, 16, 10), tile=(8, 8, 8)), (20, 16, 10)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_every_grid_begins_at_the_first_corner_of_an_oblique_scan(
    spec: Downsample | FixedSpacing | FixedShape, shape: tuple[int, int, int]
) -> None:
    grid = stage_grid(spec, OBLIQUE)
    assert grid.shape == shape
    assert grid.world((-0.5, -0.5, -0.5)) == pytest.approx(OBLIQUE.world((-0.5, -0.5, -0.5)))
    last = OBLIQUE.index(grid.world([n - 0.5 for n in grid.shape]))
    assert (last >= np.array(OBLIQUE.shape) - 0.51).all(), "the scan's end is cut"


def test_a_rounded_shape_keeps_the_field_of_view() -> None:
    grid = stage_grid(FixedSpacing(mm=(3, 4, 4), tile=(8, 8, 8), fit="round"), SCAN)
    assert grid.shape == (7, 8, 8)  # of 6.67, 7.5 (to even) and 7.5
    assert grid.extent_mm == pytest.approx(SCAN.extent_mm)


@pytest.mark.parametrize(
    ("scan_mm", "mm", "image", "answer"),
    [
        ((1, 1, 2), (1, 1, 1), None, None),
        ((1, 1, 4), (1, 1, 2), 2, 2),  # the scan's slices are thick
        ((1, 1, 2), (4, 1, 1), 0, 0),  # the grid's are
        ((1, 1, 4), (4, 1, 1), 2, 0),  # both: the source of the interpolation decides
        ((1, 4, 4), (1, 1, 2), None, None),  # two axes are equally coarse
    ],
)
def test_slices_are_taken_apart_across_the_coarse_axis(
    scan_mm: tuple[float, float, float],
    mm: tuple[float, float, float],
    image: int | None,
    answer: int | None,
) -> None:
    spec = FixedSpacing(mm=mm, tile=(8, 8, 8), interpolation="cubic", slices_apart_above=3)
    scan = Grid.from_spacing((8, 8, 8), scan_mm)
    assert image_kernels(spec, scan) == tuple("nearest" if a == image else "cubic" for a in range(3))
    assert label_kernels(spec, scan) == tuple("nearest" if a == image else "linear" for a in range(3))
    assert prediction_kernels(spec, scan) == tuple("nearest" if a == answer else "linear" for a in range(3))
    never = spec.model_copy(update={"slices_apart_above": None, "interpolation": "linear"})
    assert image_kernels(never, scan) == ("antialiased",) * 3


@pytest.mark.parametrize(
    ("spec", "blocks"),
    [
        (Downsample(factor=(4, 2, 1), tile=(8, 8, 8)), (4, 2, 1)),
        (Downsample(factor=(2, 1.5, 0.5), tile=(8, 8, 8)), (2, 1, 1)),
        (FixedSpacing(mm=(2, 2, 6), tile=(8, 8, 8)), (1, 1, 1)),
        (FixedShape(shape=(10, 15, 5), tile=(8, 8, 8)), (1, 1, 1)),
    ],
    ids=["whole", "some whole", "spacing", "shape"],
)
def test_labels_are_counted_in_blocks_where_a_scan_is_downsampled_by_whole_factors(
    spec: GridSpec, blocks: Index3
) -> None:
    assert label_blocks(spec) == blocks
