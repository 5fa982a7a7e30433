"""Components compared with scipy's, and dilated masks compared with exact distances."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from zoomseg.core.morphology import (
    Components,
    dilated,
    dilated_by_cube,
    eroded_by_cube,
    filled,
    filled_by_slice,
    largest_component,
    without_islands,
)


@pytest.mark.parametrize(("connectivity", "order"), [(6, 1), (18, 2), (26, 3)])
def test_the_largest_component_as_scipy_finds_it(connectivity: int, order: int) -> None:
    rng = np.random.default_rng(0)
    sparse = rng.random((14, 12, 10)) < {6: 0.25, 18: 0.08, 26: 0.06}[connectivity]
    components, count = ndimage.label(sparse, ndimage.generate_binary_structure(3, order))
    sizes = np.bincount(components.ravel())[1:]
    assert count > 20
    assert np.sort(sizes)[-1] > np.sort(sizes)[-2]
    found = largest_component(sparse, connectivity)  # type: ignore[arg-type]
    assert np.array_equal(found, components == 1 + sizes.argmax())


def test_corners_connect_unless_faces_are_asked_for() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 0] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert largest_component(mask, connectivity=6).sum() == 1


def test_islands_are_parts_much_smaller_than_the_largest() -> None:
    mask = np.zeros((30, 2, 2), dtype=bool)
    mask[:4] = True  # 16 voxels
    mask[6:8, 0] = True  # 4, a quarter
    mask[10:13, 1, 1] = True  # 3
    mask[20] = True  # 4
    kept = np.unique(np.nonzero(without_islands(mask, 0.25))[0])
    assert kept.tolist() == [0, 1, 2, 3, 6, 7, 20]
    assert np.unique(np.nonzero(without_islands(mask, 0.26))[0]).tolist() == [0, 1, 2, 3]
    assert np.array_equal(without_islands(mask, 0.01), mask)


def test_which_components_stay_takes_little_memory() -> None:
    mask = np.ones((80, 80, 80), dtype=bool)
    mask[::4] = False
    found = Components.of(mask)
    tracemalloc.start()
    kept = found.those(np.arange(len(found.voxels)) % 2 == 0)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(kept, mask & (np.arange(80) // 4 % 2 == 0)[:, None, None])
    assert taken < 2 * mask.size


def test_nothing_and_everything() -> None:
    assert not without_islands(np.zeros((3, 3, 3), dtype=bool), 0.25).any()
    assert without_islands(np.ones((3, 3, 3), dtype=bool), 1.0).all()
    assert not largest_component(np.zeros((3, 3, 3), dtype=bool)).any()
    assert largest_component(np.ones((3, 3, 3), dtype=bool)).all()


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5, 3.0, 4.29, 30_000.0])
def test_dilation_is_by_a_ball(radius: float) -> None:
    mask = np.random.default_rng(0).random((15, 12, 9)) < 0.01
    assert mask.any()
    expected = ndimage.distance_transform_edt(~mask) <= radius
    assert np.array_equal(dilated(mask, radius), expected)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 4.0), (1.7, 2.0, 0.9), (3.0, 3.0, 50.0)])
@pytest.mark.parametrize("radius_mm", [2.0, 7.1])
def test_dilation_by_an_ellipsoid_is_by_a_ball_in_millimetres(
    spacing_mm: tuple[float, float, float], radius_mm: float
) -> None:
    mask = np.random.default_rng(0).random((15, 12, 9)) < 0.01
    expected = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= radius_mm
    i, j, k = (radius_mm / mm for mm in spacing_mm)
    assert np.array_equal(dilated(mask, (i, j, k)), expected)


def test_an_ellipsoid_without_extent_along_an_axis_stays_in_its_plane() -> None:
    mask = np.zeros((5, 5, 5), dtype=bool)
    mask[2, 2, 2] = True
    assert np.argwhere(dilated(mask, (1.0, 0.0, 0.0))).tolist() == [[1, 2, 2], [2, 2, 2], [3, 2, 2]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_slices_are_filled_as_scipy_fills_them(share: float) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (7, 1, 2), (12, 15, 6)):
        mask = rng.random(shape) < share
        expected = np.stack([ndimage.binary_fill_holes(one) for one in np.moveaxis(mask, 2, 0)], axis=2)
        assert np.array_equal(filled_by_slice(mask), expected)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_erosion_and_dilation_by_a_cube_are_scipy_s(steps: int) -> None:
    mask = np.random.default_rng(steps).random((9, 12, 7)) < 0.97
    mask[2:4, 2, 1] = False
    cube = np.ones((3, 3, 3))
    given = mask.copy()
    eroded = ndimage.binary_erosion(mask, cube, iterations=steps) if steps else mask
    grown = ndimage.binary_dilation(~mask, cube, iterations=steps) if steps else ~mask
    assert np.array_equal(eroded_by_cube(mask, steps), eroded)
    assert np.array_equal(dilated_by_cube(~mask, steps), grown)
    assert np.array_equal(mask, given)


def test_what_a_mask_encloses_is_filled_in_space() -> None:
    mask = np.random.default_rng(4).random((14, 12, 11)) < 0.72
    expected = ndimage.binary_fill_holes(mask)
    assert expected.sum() > mask.sum()
    assert np.array_equal(filled(mask), expected)
