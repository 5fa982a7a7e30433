from __future__ import annotations

import numpy as np
import pytest
import torch

from lattices import oriented
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.resample import (
    TIE_TOLERANCE,
    affine_coordinates,
    coordinates_box,
    linear_weights,
    nearest_index,
    resample,
    resample_data,
    resample_labels,
    sample,
)
from zoomseg.core.volume import LabelMap, Volume


def line(values: list[float]) -> tuple[torch.Tensor, Grid]:
    """Values along the first axis of an otherwise single-voxel grid of 1 mm."""
    return torch.tensor(values).reshape(1, -1, 1, 1), Grid.from_spacing((len(values), 1, 1), (1.0, 1.0, 1.0))


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
        assert torch.equal(noisy, torch.eye(5)[2:])

    def test_a_single_voxel_serves_everybody(self) -> None:
        assert linear_weights(1, 3, 0.3, -0.2, antialias=True).tolist() == [[1], [1], [1]]


class TestResample:
    def test_upsampled_values_lie_half_voxels_apart(self) -> None:
        data, grid = line([0, 4, 8])
        out = resample_data(data, grid, grid.with_shape((6, 1, 1)))
        assert out.flatten().tolist() == [0, 1, 3, 5, 7, 8]

    def test_downsampling_averages(self) -> None:
        data, grid = line([0, 0, 0, 8, 0, 0, 0, 0])
        out = resample_data(data, grid, grid.downsampled((2, 1, 1)))
        assert out.flatten().tolist() == [0, 3, 1, 0]
        thin = resample_data(data, grid, grid.downsampled((2, 1, 1)), antialias=False)
        assert thin.flatten().tolist() == [0, 4, 0, 0]

    def test_reorientation_is_exact(self) -> None:
        grid = Grid.from_spacing((2, 3, 4), (1.0, 2.0, 3.0))
        volume = Volume(torch.arange(24.0).reshape(1, 2, 3, 4).numpy(), grid)
        from zoomseg.core.geometry import Orientation

        turned = volume.reoriented(Orientation((2, 0, 1), (True, False, True)))
        assert np.array_equal(resample(turned, grid).data, volume.data)

    def test_the_same_lattice_is_copied_exactly(self) -> None:
        grid = oriented((6, 5, 4), (0.7, 0.7, 2.5), (13.7, -99.1, 3.3), angles_deg=(5, 10, 15))
        volume = Volume(torch.rand(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)).numpy(), grid)
        box = Box((1, 2, 0), (5, 5, 3))
        assert np.array_equal(resample(volume, grid.crop(box)).data, volume.crop(box).data)

    def test_integers_become_floats_on_every_grid(self) -> None:
        data, grid = line([1, 2, 3])
        integers = data.to(torch.int16)
        assert resample_data(integers, grid, grid).dtype == torch.float32
        assert resample_data(integers, grid, grid.with_shape((6, 1, 1))).dtype == torch.float32
        turned = oriented((3, 1, 1), angles_deg=(0, 0, 10))
        assert resample_data(integers, grid, turned).dtype == torch.float32

    def test_outside_the_edge_value_goes_on(self) -> None:
        data, grid = line([1, 2, 3])
        out = resample_data(data, grid, grid.crop(Box((-2, 0, 0), (5, 1, 1))))
        assert out.flatten().tolist() == [1, 1, 1, 2, 3, 3, 3]

    def test_off_axis_grids_are_sampled_point_by_point(self) -> None:
        grid = Grid.from_spacing((5, 5, 1), (1.0, 1.0, 1.0))
        data = torch.arange(25.0).reshape(1, 5, 5, 1)
        # A quarter of a right angle about the middle voxel: its right neighbour moves to (cos, sin).
        turn = oriented((1, 1, 1), origin_mm=(2 + np.cos(np.pi / 8), 2 + np.sin(np.pi / 8), 0))
        tilted = Grid((1, 1, 1), turn.affine @ oriented((1, 1, 1), angles_deg=(0, 0, 22.5)).affine)
        expected = 5 * (2 + np.cos(np.pi / 8)) + 2 + np.sin(np.pi / 8)
        assert resample_data(data, grid, tilted).item() == pytest.approx(expected, abs=1e-5)


class TestNearest:
    SCHEMA = LabelSchema.consecutive(["a", "b"])

    def test_labels_are_taken_never_mixed(self) -> None:
        grid = Grid.from_spacing((3, 1, 1), (1.0, 1.0, 1.0))
        labels = LabelMap(
            torch.tensor([0, 2, 1], dtype=torch.uint8).reshape(3, 1, 1).numpy(), grid, self.SCHEMA
        )
        fine = resample_labels(labels, grid.with_shape((6, 1, 1)))
        assert fine.data.flatten().tolist() == [0, 0, 2, 2, 1, 1]
        assert fine.data.dtype == np.uint8
        assert fine.schema is self.SCHEMA

    @pytest.mark.parametrize("outside", [None, 0, 255])
    def test_outside(self, outside: int | None) -> None:
        grid = Grid.from_spacing((2, 1, 1), (1.0, 1.0, 1.0))
        labels = torch.tensor([7, 9], dtype=torch.uint8).reshape(2, 1, 1)
        out = nearest_index(labels, grid, grid.crop(Box((-1, 0, 0), (4, 1, 1))), outside)
        left, right = (7, 9) if outside is None else (outside, outside)
        assert out.flatten().tolist() == [left, 7, 9, right, right]

    def test_halfway_points_all_go_the_same_way(self) -> None:
        # Halving puts every centre between two voxels; noise in the affine must not decide for each.
        grid = oriented((40, 1, 1), (0.7, 1.0, 1.0), (13.37, -99.1, 3.3))
        index = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1)
        out = nearest_index(index, grid, grid.downsampled((2, 1, 1)))
        assert out.flatten().tolist() == list(range(1, 40, 2))

    def test_both_paths_break_ties_alike(self) -> None:
        data = torch.arange(6, dtype=torch.uint8).reshape(1, 6, 1, 1)
        at = torch.tensor([0.5, 1.5 - TIE_TOLERANCE / 2, 2.5 + 1e-6, 3.4]).reshape(4, 1, 1, 1)
        points = torch.cat([at, torch.zeros(4, 1, 1, 2)], dim=-1)
        assert sample(data, points, "nearest").flatten().tolist() == [1, 2, 3, 3]


class TestSample:
    def test_linear_between_voxels(self) -> None:
        data = torch.arange(8.0).reshape(1, 2, 2, 2)
        points = torch.tensor([[0.5, 0.5, 0.5], [0.25, 0, 1], [1, 1, 0]]).reshape(3, 1, 1, 3)
        assert sample(data, points, "linear").flatten().tolist() == pytest.approx([3.5, 2.0, 6.0])

    @pytest.mark.parametrize("mode", ["linear", "nearest"])
    def test_outside_value(self, mode: str) -> None:
        data = torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1)
        points = torch.tensor([[-0.6, 0, 0], [-0.4, 0, 0], [1.4, 0, 0], [1.6, 0, 0], [0, 0, 0.7]])
        points = points.reshape(5, 1, 1, 3)
        assert sample(data, points, mode).flatten().tolist() == [3, 3, 5, 5, 3]  # type: ignore[arg-type]
        outside = sample(data, points, mode, outside=9)  # type: ignore[arg-type]
        assert outside.flatten().tolist() == [9, 3, 5, 9, 9]

    def test_nearest_keeps_the_type_and_all_channels(self) -> None:
        data = torch.arange(12, dtype=torch.int16).reshape(2, 3, 2, 1)
        out = sample(data, torch.tensor([1.2, 0.8, 0.0]).reshape(1, 1, 1, 3), "nearest")
        assert out.dtype == torch.int16
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
    def test_coordinates_box(self, low: float, high: float, expected: tuple[int, int]) -> None:
        points = torch.tensor([[low, 0, 0], [high, 0, 0]])
        box = coordinates_box(points, (10, 1, 1))
        assert (box.start[0], box.stop[0]) == expected
        assert (box.start[1:], box.stop[1:]) == ((0, 0), (1, 1))
