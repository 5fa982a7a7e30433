"""Known values, of numpy arrays and of tensors."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from helpers.grids import as_matrix, linear_weights, oriented, rotation
from zoomseg.core import resample as resampling
from zoomseg.core.arrays import Array
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.resample import (
    MAX_TAPS,
    POINTS,
    TIE_TOLERANCE,
    affine_coordinates,
    coordinates_box,
    cubic_weights,
    nearest_index,
    read_box,
    resample,
    resample_data,
    resample_labels,
    sample_linear,
    sample_nearest,
)
from zoomseg.core.volume import LabelMap, Volume

Make = Callable[[npt.ArrayLike], Array]


@pytest.fixture(
    params=[np.asarray, lambda values: torch.from_numpy(np.array(values))], ids=["numpy", "torch"]
)
def make(request: pytest.FixtureRequest) -> Make:
    """Converts values to an array."""
    found: Make = request.param
    return found


def line(make: Make, values: list[float]) -> tuple[Array, Grid]:
    """Values along the first axis of an otherwise single-voxel grid of 1 mm."""
    data = make(np.array(values, dtype=np.float32).reshape(1, -1, 1, 1))
    return data, Grid.from_spacing((len(values), 1, 1), (1.0, 1.0, 1.0))


class TestLinearWeights:
    def test_between_two_voxels(self) -> None:
        weights = linear_weights(4, 3, 1.0, 0.25, antialias=True)
        assert weights.tolist() == [[0.75, 0.25, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0.75, 0.25]]

    def test_beyond_the_edge_the_edge_voxel_counts(self) -> None:
        weights = linear_weights(3, 4, 2.0, -2.0, antialias=False)
        assert weights.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]

    def test_backwards(self) -> None:
        assert linear_weights(3, 3, -1.0, 2.0, antialias=True).tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]

    def test_shrinking_widens_to_a_triangle(self) -> None:
        row = linear_weights(8, 4, 2.0, 0.5, antialias=True)[1]
        assert row.tolist() == [0, 0.125, 0.375, 0.375, 0.125, 0, 0, 0]
        narrow = linear_weights(8, 4, 2.0, 0.5, antialias=False)[1]
        assert narrow.tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0]

    def test_rounding_noise_gives_an_exact_copy(self) -> None:
        noisy = linear_weights(5, 3, 1.0 + 1e-12, 2.0 - 1e-12, antialias=True)
        assert np.array_equal(noisy, np.eye(5)[2:])

    def test_a_single_voxel_serves_everybody(self) -> None:
        assert linear_weights(1, 3, 0.3, -0.2, antialias=True).tolist() == [[1], [1], [1]]

    def test_shrinking_by_a_fraction_keeps_the_mean_position(self) -> None:
        found = linear_weights(40, 5, 2.3, 15.0, antialias=True).astype(np.float64)
        assert found.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-6)
        assert found @ np.arange(40) == pytest.approx(15.0 + 2.3 * np.arange(5), abs=1e-5)

    @pytest.mark.parametrize("voxel_mm", [1e-6, 1e-7, 1e-30])
    def test_a_source_far_smaller_than_a_voxel_is_refused_unallocated(self, voxel_mm: float) -> None:
        """Otherwise, gigabytes for a scan of 24 voxels."""
        with pytest.raises(
            GeometryError, match=r"too small for the model's grid: one voxel .* covers 4e\+.* of its 24"
        ):
            linear_weights(24, 2, 4 / voxel_mm, 0.0, antialias=True)

    @pytest.mark.parametrize("size", [1, 24, 4096])
    def test_sources_of_any_size_that_fill_a_voxel_of_the_target_are_none_of_these(self, size: int) -> None:
        """Taps are at most four for each voxel of either grid."""
        for scale in (1 / 8, 1.0, 7.3, float(size)):
            count = -(-size // max(1, int(scale))) if scale >= 1 else size * 8
            assert count * (2 * scale + 4) < MAX_TAPS
            assert linear_weights(size, min(count, 64), scale, 0.0, antialias=True).sum() == pytest.approx(
                min(count, 64)
            )


class TestResample:
    def test_upsampled_values_lie_half_voxels_apart(self, make: Make) -> None:
        data, grid = line(make, [0, 4, 8])
        out = resample_data(data, grid, grid.with_shape((6, 1, 1)))
        assert type(out) is type(data)
        assert out.flatten().tolist() == [0, 1, 3, 5, 7, 8]

    def test_downsampling_averages(self, make: Make) -> None:
        data, grid = line(make, [0, 0, 0, 8, 0, 0, 0, 0])
        out = resample_data(data, grid, grid.downsampled((2, 1, 1)))
        assert out.flatten().tolist() == [0, 3, 1, 0]
        thin = resample_data(data, grid, grid.downsampled((2, 1, 1)), antialias=False)
        assert thin.flatten().tolist() == [0, 4, 0, 0]

    def test_reorientation_is_exact(self) -> None:
        grid = Grid.from_spacing((2, 3, 4), (1.0, 2.0, 3.0))
        volume = Volume(np.arange(24.0).reshape(1, 2, 3, 4), grid)
        turned = volume.reoriented(Orientation((2, 0, 1), (True, False, True)))
        assert np.array_equal(resample(turned, grid).data, volume.data)

    def test_the_same_lattice_is_copied_exactly(self, make: Make) -> None:
        grid = oriented((6, 5, 4), (0.7, 0.7, 2.5), (13.7, -99.1, 3.3), angles_deg=(5, 10, 15))
        volume = Volume(make(np.random.default_rng(0).random((2, 6, 5, 4), dtype=np.float32)), grid)
        box = Box((1, 2, 0), (5, 5, 3))
        part = resample(volume, grid.crop(box))
        assert part.grid == grid.crop(box)
        assert np.array_equal(part.data, volume.crop(box).data)

    @pytest.mark.parametrize("dtype", [np.int16, np.float16])
    def test_integers_and_halves_become_floats_on_every_grid(self, make: Make, dtype: type) -> None:
        data = make(np.array([1, 2, 3], dtype=dtype).reshape(1, 3, 1, 1))
        grid = Grid.from_spacing((3, 1, 1), (1.0, 1.0, 1.0))
        for target in (grid, grid.with_shape((6, 1, 1)), oriented((3, 1, 1), angles_deg=(0, 0, 10))):
            out = resample_data(data, grid, target)
            assert str(out.dtype).endswith("float32")
            assert 1 <= out.min() <= out.max() <= 3

    def test_outside_the_edge_value_goes_on(self, make: Make) -> None:
        data, grid = line(make, [1, 2, 3])
        out = resample_data(data, grid, grid.crop(Box((-2, 0, 0), (5, 1, 1))))
        assert out.flatten().tolist() == [1, 1, 1, 2, 3, 3, 3]

    def test_off_axis_grids_are_sampled_point_by_point(self, make: Make) -> None:
        grid = Grid.from_spacing((5, 5, 1), (1.0, 1.0, 1.0))
        data = make(np.arange(25.0).reshape(1, 5, 5, 1))
        # A quarter of a right angle about the middle voxel: its right neighbour moves to (cos, sin).
        turn = oriented((1, 1, 1), origin_mm=(2 + np.cos(np.pi / 8), 2 + np.sin(np.pi / 8), 0))
        tilted = Grid((1, 1, 1), turn.affine @ oriented((1, 1, 1), angles_deg=(0, 0, 22.5)).affine)
        expected = 5 * (2 + np.cos(np.pi / 8)) + 2 + np.sin(np.pi / 8)
        assert resample_data(data, grid, tilted).item() == pytest.approx(expected, abs=1e-5)

    def test_many_points_are_sampled_in_parts(self, make: Make) -> None:
        """A ramp along each axis shows where every voxel was read."""
        grid = oriented((100, 90, 80), angles_deg=(0, 0, 10))
        assert grid.box.voxels > POINTS
        source = Grid.from_spacing((200, 150, 85), (1.0, 1.0, 1.0), (-50.0, -20.0, 0.0))
        axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in source.shape), indexing="ij")
        found = resample_data(make(np.stack(axes)), source, grid)
        expected = np.moveaxis(affine_coordinates(grid.to_index_of(source), grid.shape), -1, 0)
        assert np.abs(np.asarray(found) - expected).max() < 1e-3

    @pytest.mark.parametrize("turned_deg", [0, 30])
    def test_a_target_in_halves_is_the_same(
        self, make: Make, turned_deg: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = make(np.random.default_rng(0).random((2, 30, 20, 10)).astype(np.float32))
        source = Grid.from_spacing((30, 20, 10), (1.0, 1.0, 2.0))
        affine = np.eye(4)
        affine[:3, :3] = rotation((0, 0, turned_deg)) * (1.3, 0.7, 1.1)
        target = Grid((23, 28, 17), affine)
        whole = np.asarray(resample_data(data, source, target))
        monkeypatch.setattr(resampling, "MAX_WEIGHTS", 16)
        monkeypatch.setattr(resampling, "POINTS", 10)
        assert np.abs(np.asarray(resample_data(data, source, target)) - whole).max() < 1e-5

    def test_a_long_axis_takes_little_memory(self) -> None:
        """As one matrix, its weights would be 1.8 GB."""
        data = np.zeros((1, 30_000, 1, 1), dtype=np.int16)
        data[0, 1234] = 7
        source = Grid.from_spacing((30_000, 1, 1), (1.0, 1.0, 1.0))
        tracemalloc.start()
        try:
            found = resample_data(data, source, source.with_spacing((2.0, 1.0, 1.0)))
            assert tracemalloc.get_traced_memory()[1] < 250e6
        finally:
            tracemalloc.stop()
        assert found[0, 616:619, 0, 0].tolist() == pytest.approx([7 / 8, 21 / 8, 0], abs=1e-5)

    def test_a_large_plane_is_sampled_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        affine = np.eye(4)
        affine[:3, :3] = rotation((0, 0, 30))
        target, asked = Grid((2, 40, 30), affine), []
        monkeypatch.setattr(resampling, "POINTS", 100)

        def sample(data: Array, points: Array, outside: int | None) -> Array:
            asked.append(points[..., 0].size)
            return sample_nearest(data, points, outside)

        monkeypatch.setattr(resampling, "sample_nearest", sample)
        found = nearest_index(np.ones((5, 5, 5), np.uint8), Grid((5, 5, 5), np.eye(4)), target)
        assert (found == 1).all()
        assert found.shape == target.shape
        assert max(asked) <= 100

    @pytest.mark.parametrize("spacing_mm", [2.7, 0.8])
    def test_a_large_scan_is_changed_in_pieces_and_as_it_lies_in_memory(
        self, make: Make, spacing_mm: float
    ) -> None:
        grid = Grid.from_spacing((170, 160, 155), (1.0, 1.0, 1.0))
        scan = np.random.default_rng(0).integers(-1000, 1000, (1, *grid.shape)).astype(np.int16)
        target = grid.with_spacing((spacing_mm, 2.0, 3.0))
        sizes: list[int] = []

        def change(part: Array) -> Array:
            sizes.append(int(np.prod(part.shape)))
            return part * np.float32(0.5)

        one = resample_data(make(scan), grid, target, change=change)
        assert max(sizes) <= scan.size / 2
        assert sum(sizes) == scan.size
        turned = make(np.asfortranarray(scan[0])[None])
        two = resample_data(turned, grid, target, change=change)
        whole = scan.astype(np.float64) / 2
        for a in range(3):
            weights = linear_weights(grid.shape[a], target.shape[a], *steps(grid, target, a), True)
            whole = np.moveaxis(np.tensordot(weights.astype(np.float64), whole, (1, 1 + a)), 0, 1 + a)
        for found in (one, two):
            assert np.abs(np.asarray(found) - whole).max() < 1e-3

    def test_only_a_box_is_read(self) -> None:
        source = Grid.from_spacing((20, 20, 20), (1.0, 1.0, 1.0))
        part = source.crop(Box((3, 4, 5), (6, 8, 11)))
        assert read_box(source, part) == Box((3, 4, 5), (6, 8, 11))
        half = source.downsampled((2, 2, 2)).crop(Box((2, 2, 2), (4, 4, 4)))
        assert read_box(source, half, antialias=False) == Box((4, 4, 4), (8, 8, 8))
        assert read_box(source, half) == Box((3, 3, 3), (9, 9, 9))
        assert read_box(source, half, kernels=("nearest",) * 3) == Box((5, 5, 5), (8, 8, 8))
        beyond = source.crop(Box((-9, 0, 18), (-2, 20, 30)))
        assert read_box(source, beyond) == Box((0, 0, 18), (1, 20, 20))
        turned = oriented((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), angles_deg=(10, 20, 5))
        assert read_box(source, turned) == source.box


def steps(source: Grid, target: Grid, axis: int) -> tuple[float, float]:
    """Scale and offset of a target's indices in a source whose axes are the same."""
    matrix = target.to_index_of(source)
    return float(matrix[axis, axis]), float(matrix[axis, 3])


class TestNearest:
    SCHEMA = LabelSchema.consecutive(["a", "b"])

    def test_labels_are_taken_never_mixed(self) -> None:
        grid = Grid.from_spacing((3, 1, 1), (1.0, 1.0, 1.0))
        labels = LabelMap(np.array([0, 2, 1], dtype=np.uint8).reshape(3, 1, 1), grid, self.SCHEMA)
        fine = resample_labels(labels, grid.with_shape((6, 1, 1)))
        assert fine.data.flatten().tolist() == [0, 0, 2, 2, 1, 1]
        assert fine.data.dtype == np.uint8
        assert fine.schema is self.SCHEMA

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("outside", [None, 0, 255])
    def test_outside(self, make: Make, outside: int | None, dtype: type) -> None:
        grid = Grid.from_spacing((2, 1, 1), (1.0, 1.0, 1.0))
        labels = make(np.array([7, 9], dtype=dtype).reshape(2, 1, 1))
        out = nearest_index(labels, grid, grid.crop(Box((-1, 0, 0), (4, 1, 1))), outside)
        left, right = (7, 9) if outside is None else (outside, outside)
        assert type(out) is type(labels)
        assert out.dtype == labels.dtype
        assert out.flatten().tolist() == [left, 7, 9, right, right]

    def test_a_mask_stays_a_mask(self, make: Make) -> None:
        mask = make(np.ones((2, 1, 1), dtype=np.bool_))
        grid = Grid.from_spacing((2, 1, 1), (1.0, 1.0, 1.0))
        out = nearest_index(mask, grid, grid.crop(Box((-1, 0, 0), (3, 1, 1))), outside=0)
        assert out.dtype == mask.dtype
        assert out.flatten().tolist() == [False, True, True, False]

    def test_halfway_points_all_go_the_same_way(self, make: Make) -> None:
        # With half the voxels, every centre lies between two voxels; rounding in the affine must not decide.
        grid = oriented((40, 1, 1), (0.7, 1.0, 1.0), (13.37, -99.1, 3.3))
        index = make(np.arange(40, dtype=np.uint8).reshape(40, 1, 1))
        out = nearest_index(index, grid, grid.downsampled((2, 1, 1)))
        assert out.flatten().tolist() == list(range(1, 40, 2))

    def test_both_paths_break_ties_alike(self, make: Make) -> None:
        data = make(np.arange(6, dtype=np.uint8).reshape(1, 6, 1, 1))
        points = np.zeros((4, 1, 1, 3), dtype=np.float32)
        points[:, 0, 0, 0] = [0.5, 1.5 - TIE_TOLERANCE / 2, 2.5 + 1e-6, 3.4]
        assert sample_nearest(data, make(points)).flatten().tolist() == [1, 2, 3, 3]


class TestSample:
    def test_linear_between_voxels(self, make: Make) -> None:
        data = make(np.arange(8.0).reshape(1, 2, 2, 2))
        points = np.array([[0.5, 0.5, 0.5], [0.25, 0, 1], [1, 1, 0]], dtype=np.float32)
        out = sample_linear(data, make(points.reshape(3, 1, 1, 3)))
        assert out.flatten().tolist() == pytest.approx([3.5, 2.0, 6.0])

    def test_outside(self, make: Make) -> None:
        data = make(np.array([3, 5], dtype=np.uint8).reshape(1, 2, 1, 1))
        rows = [[-0.6, 0, 0], [-0.4, 0, 0], [1.4, 0, 0], [1.6, 0, 0], [0, 0, 0.7]]
        points = make(np.array(rows, dtype=np.float32).reshape(5, 1, 1, 3))
        assert sample_linear(data, points).flatten().tolist() == [3, 3, 5, 5, 3]
        assert sample_nearest(data, points).flatten().tolist() == [3, 3, 5, 5, 3]
        assert sample_nearest(data, points, outside=9).flatten().tolist() == [9, 3, 5, 9, 9]

    def test_nearest_keeps_the_type_and_all_channels(self, make: Make) -> None:
        data = make(np.arange(12, dtype=np.int16).reshape(2, 3, 2, 1))
        point = np.array([1.2, 0.8, 0.0], dtype=np.float32).reshape(1, 1, 1, 3)
        out = sample_nearest(data, make(point))
        assert out.dtype == data.dtype
        assert out.flatten().tolist() == [3, 9]


class TestCoordinates:
    def test_affine_coordinates_apply_the_matrix(self) -> None:
        matrix = np.array([[0, 2, 0, 1], [1, 0, 0.5, -3], [0, 0, -1, 4], [0, 0, 0, 1]])
        out = affine_coordinates(matrix, (2, 3, 4))
        assert out.shape == (2, 3, 4, 3)
        assert out[1, 2, 3].tolist() == [5, -0.5, 1]

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [
            (2.0, 4.0, (2, 6)),
            (2.3, 4.6, (2, 6)),
            (-3.0, 1.5, (0, 3)),
            (8.2, 30.0, (8, 10)),
            (-30.0, -20.0, (0, 1)),
            (20.0, 30.0, (9, 10)),
        ],
    )
    def test_coordinates_box(self, make: Make, low: float, high: float, expected: tuple[int, int]) -> None:
        points = make(np.array([[low, 0, 0], [high, 0, 0]], dtype=np.float32))
        box = coordinates_box(points, (10, 1, 1))
        assert (box.start[0], box.stop[0]) == expected
        assert (box.start[1:], box.stop[1:]) == ((0, 0), (1, 1))


class TestCubic:
    @pytest.mark.parametrize(("size", "count"), [(7, 19), (19, 7), (3, 8), (1, 4), (30, 30)])
    def test_weights_are_scipys_spline(self, size: int, count: int) -> None:
        data = np.random.default_rng(0).normal(size=size)
        expected = ndimage.zoom(data, count / size, order=3, mode="nearest", grid_mode=True)
        weights = as_matrix(cubic_weights(size, count, size / count, size / count / 2 - 0.5), size)
        np.testing.assert_allclose(weights @ data, expected, atol=1e-6)

    def test_values_stay_within_the_images_and_slices_apart_within_their_own(self) -> None:
        data = np.random.default_rng(0).normal(size=(1, 8, 9, 4)).astype(np.float32)
        grid = Grid.from_spacing((8, 9, 4), (1.0, 1.0, 4.0))
        target = grid.with_shape((13, 15, 6))
        zoom: dict[str, Any] = {"order": 3, "mode": "nearest", "grid_mode": True}
        whole = resample_data(data, grid, target, kernels=("cubic", "cubic", "cubic"))[0]
        raw = ndimage.zoom(data[0].astype(np.float64), (13 / 8, 15 / 9, 6 / 4), **zoom)
        assert raw.max() > data.max()
        np.testing.assert_allclose(whole, raw.clip(data.min(), data.max()), atol=1e-5)
        apart = resample_data(data, grid, target, kernels=("cubic", "cubic", "nearest"))[0]
        for k, source in enumerate((0, 1, 1, 2, 3, 3)):  # of 2/3 (k + 1/2) - 1/2, halfway points go up
            plane = data[0, :, :, source]
            own = ndimage.zoom(plane.astype(np.float64), (13 / 8, 15 / 9), **zoom).clip(
                plane.min(), plane.max()
            )
            np.testing.assert_allclose(apart[:, :, k], own, atol=1e-5)
