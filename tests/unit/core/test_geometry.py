from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.grids import oriented
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import GEOMETRY_TOLERANCE_VOX, Box, Grid, Orientation

BOX = Box((1, 2, 3), (4, 6, 8))


class TestBox:
    def test_shape_and_voxels(self) -> None:
        assert BOX.shape == (3, 4, 5)
        assert BOX.voxels == 60
        assert not BOX.empty

    @pytest.mark.parametrize("stop", [(1, 9, 9), (0, 9, 9), (9, 9, 3)])
    def test_a_box_without_extent_is_empty(self, stop: tuple[int, int, int]) -> None:
        box = Box((1, 2, 3), stop)
        assert box.empty
        assert box.voxels == 0

    def test_slices_pick_the_box(self) -> None:
        array = np.arange(1000).reshape(10, 10, 10)
        picked = array[BOX.slices]
        assert picked[0, 0, 0] == 123
        assert picked[-1, -1, -1] == 357

    def test_slices_refuse_a_negative_start_which_numpy_would_count_from_the_end(self) -> None:
        with pytest.raises(GeometryError, match="starts outside its array"):
            _ = Box((-1, 0, 0), (2, 2, 2)).slices

    def test_expand_moves_both_faces(self) -> None:
        assert BOX.expand((1, 0, 2)) == Box((0, 2, 1), (5, 6, 10))

    def test_intersect_and_union(self) -> None:
        other = Box((2, 0, 5), (9, 4, 6))
        assert BOX.intersect(other) == Box((2, 2, 5), (4, 4, 6))
        assert BOX.union(other) == Box((1, 0, 3), (9, 6, 8))
        assert BOX.intersect(Box((4, 2, 3), (9, 9, 9))).empty

    def test_shift_and_relative_to_undo_each_other(self) -> None:
        assert BOX.shift((1, -1, 2)) == Box((2, 1, 5), (5, 5, 10))
        assert BOX.relative_to(BOX.start) == Box((0, 0, 0), BOX.shape)
        assert BOX.relative_to((4, 4, 4)).shift((4, 4, 4)) == BOX


class TestGrid:
    @pytest.mark.parametrize(
        ("affine", "message"),
        [
            (np.eye(3), "4x4 and finite"),
            (np.diag([1, 1, np.nan, 1]), "4x4 and finite"),
            (np.diag([1, np.inf, 1, 1]), "4x4 and finite"),
            (np.diag([1, 1, 1, 2]), "end in the row 0 0 0 1"),
            (np.diag([1, 1, 0, 1]), "singular"),
            (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
            (np.array([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        ],
    )
    def test_refuses_an_impossible_affine(self, affine: np.ndarray, message: str) -> None:
        with pytest.raises(GeometryError, match=message):
            Grid((2, 2, 2), affine)

    @pytest.mark.parametrize("shape", [(2, 2), (0, 2, 2), (2, -1, 2), (2, 2, 2, 2)])
    def test_refuses_an_impossible_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(GeometryError, match="three positive sizes"):
            Grid(shape, np.eye(4))  # type: ignore[arg-type]

    def test_accepts_small_but_real_voxels(self) -> None:
        assert Grid.from_spacing((2, 2, 2), (1e-3, 1e-3, 1e-3)).voxel_volume_ml == pytest.approx(1e-12)

    def test_the_affine_cannot_be_changed_from_outside(self) -> None:
        affine = np.eye(4)
        grid = Grid((2, 2, 2), affine)
        affine[0, 3] = 5
        assert grid.affine[0, 3] == 0
        with pytest.raises(ValueError, match="read-only"):
            grid.affine[0, 3] = 5

    def test_from_spacing(self) -> None:
        grid = Grid.from_spacing((2, 3, 4), (0.5, 1.0, 2.5), (10, -20, 30))
        assert grid.world((1, 1, 1)).tolist() == [10.5, -19, 32.5]
        assert grid.spacing_mm == (0.5, 1.0, 2.5)
        assert grid.extent_mm == (1.0, 3.0, 10.0)
        assert grid.voxel_volume_ml == pytest.approx(1.25e-3)
        assert grid.box == Box((0, 0, 0), (2, 3, 4))

    def test_equal_values_are_equal_and_hash_alike(self) -> None:
        one, same = Grid((2, 3, 4), np.eye(4)), Grid((2, 3, 4), np.eye(4))
        assert one == same
        assert hash(one) == hash(same)
        negative = np.eye(4)
        negative[0, 1:] = -0.0
        assert (Grid((2, 3, 4), negative), hash(Grid((2, 3, 4), negative))) == (one, hash(one))
        assert one != Grid((2, 3, 5), np.eye(4))
        assert one != Grid.from_spacing((2, 3, 4), (1, 1, 1.001))
        assert one != "grid"

    def test_spacing_and_volume_of_a_turned_grid(self) -> None:
        grid = oriented((2, 2, 2), (1, 2, 3), order=(2, 0, 1), flip=(1, 0, 1), angles_deg=(10, 20, 30))
        assert grid.spacing_mm == pytest.approx((1, 2, 3))
        assert grid.voxel_volume_ml == pytest.approx(6e-3)

    def test_index_undoes_world(self) -> None:
        grid = oriented((5, 6, 7), (1, 2, 3), (5, -6, 70), (1, 2, 0), (0, 1, 0), (10, -5, 3))
        points = np.array([[0, 0, 0], [4.5, 5.5, 6.5], [-3, 2, 100]])
        assert grid.index(grid.world(points)) == pytest.approx(points)

    def test_to_index_of_goes_through_the_world(self) -> None:
        one = oriented((5, 6, 7), (1, 2, 3), (5, -6, 70), (1, 2, 0), (0, 1, 0), (10, -5, 3))
        two = oriented((4, 4, 4), (2, 1, 1), (1, 2, 3), angles_deg=(0, 0, 15))
        moved = one.to_index_of(two) @ [1, 2, 3, 1]
        assert moved[:3] == pytest.approx(two.index(one.world((1, 2, 3))))

    def test_crop_keeps_world_coordinates_also_outside(self) -> None:
        grid = oriented((5, 6, 7), (1, 2, 3), (5, -6, 70), (1, 2, 0), (0, 1, 0))
        part = grid.crop(Box((-2, 1, 3), (3, 9, 5)))
        assert part.shape == (5, 8, 2)
        assert part.world((2, 0, 0)) == pytest.approx(grid.world((0, 1, 3)))

    def test_crop_refuses_an_empty_box(self) -> None:
        with pytest.raises(GeometryError, match="positive sizes"):
            Grid((2, 2, 2), np.eye(4)).crop(Box((1, 0, 0), (1, 2, 2)))

    def test_with_shape_keeps_the_field_of_view(self) -> None:
        grid = Grid.from_spacing((10, 12, 8), (1, 1, 3), (100, 0, -50))
        other = grid.with_shape((5, 24, 3))
        assert other.spacing_mm == pytest.approx((2, 0.5, 8))
        assert other.world((-0.5, -0.5, -0.5)) == pytest.approx(grid.world((-0.5, -0.5, -0.5)))
        assert other.world((4.5, 23.5, 2.5)) == pytest.approx(grid.world((9.5, 11.5, 7.5)))

    def test_with_spacing_keeps_the_first_corner_and_covers_the_rest(self) -> None:
        grid = Grid.from_spacing((10, 12, 8), (1, 1, 3), (100, 0, -50))
        other = grid.with_spacing((3, 0.5, 3))
        assert other.shape == (4, 24, 8)
        assert other.spacing_mm == pytest.approx((3, 0.5, 3))
        # The first 3 mm voxel covers the first three 1 mm voxels: its centre is the second's.
        assert other.world((0, 0, 0)) == pytest.approx([101, -0.25, -50])

    def test_with_spacing_adds_no_slice_for_rounding_noise_but_one_for_real_length(self) -> None:
        grid = Grid.from_spacing((10, 10, 10), (1, 1, 1))
        assert grid.with_spacing((0.9999, 1.0001, 0.3333)).shape == (10, 10, 30)
        assert grid.with_spacing((0.99, 1.02, 0.33)).shape == (11, 10, 31)

    def test_with_spacing_has_at_least_one_voxel(self) -> None:
        assert Grid.from_spacing((1, 1, 1), (1, 1, 1)).with_spacing((500, 200, 101)).shape == (1, 1, 1)

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
    def test_with_spacing_refuses_what_is_no_spacing(self, bad: float) -> None:
        with pytest.raises(GeometryError, match="spacing must be positive"):
            Grid((2, 2, 2), np.eye(4)).with_spacing((1, bad, 1))

    def test_downsampled_by_two_puts_centres_between_pairs(self) -> None:
        grid = Grid.from_spacing((4, 5, 6), (1, 1, 2))
        half = grid.downsampled((2, 2, 1))
        assert half.shape == (2, 3, 6)
        assert half.world((0, 0, 0)).tolist() == [0.5, 0.5, 0]
        assert half.world((1, 1, 1)).tolist() == [2.5, 2.5, 2]

    def test_box_of_covers_voxel_faces(self) -> None:
        fine = Grid.from_spacing((12, 12, 12), (1, 1, 1))
        coarse = fine.downsampled((3, 3, 3))
        assert coarse.box_of(fine, Box((0, 2, 3), (1, 4, 6))) == Box((0, 0, 1), (1, 2, 2))
        assert fine.box_of(coarse, Box((1, 0, 2), (2, 1, 4))) == Box((3, 0, 6), (6, 3, 12))

    def test_box_of_in_another_orientation(self) -> None:
        grid = Grid.from_spacing((10, 20, 30), (1, 1, 1))
        turned = Orientation((2, 0, 1), (True, False, True))
        assert turned.grid(grid).box_of(grid, Box((1, 2, 3), (4, 6, 9))) == Box((21, 1, 14), (27, 4, 18))

    def test_distance_is_at_the_farthest_corner(self) -> None:
        grid = Grid.from_spacing((11, 11, 11), (1, 1, 1))
        assert grid.distance_mm(Grid.from_spacing((11, 11, 11), (1, 1.02, 1))) == pytest.approx(0.2)
        assert grid.distance_mm(Grid.from_spacing((11, 11, 12), (1, 1, 1))) == math.inf

    def test_same_as_uses_the_named_tolerance(self) -> None:
        grid = Grid.from_spacing((3, 3, 3), (1, 1, 1))
        assert grid.same_as(Grid.from_spacing((3, 3, 3), (1, 1, 1), (0.9 * GEOMETRY_TOLERANCE_VOX, 0, 0)))
        off = Grid.from_spacing((3, 3, 3), (1, 1, 1), (1.1 * GEOMETRY_TOLERANCE_VOX, 0, 0))
        assert not grid.same_as(off)
        assert grid.same_as(off, tolerance_vox=0.1)

    @pytest.mark.parametrize("edge", [1e-4, 0.005, 1.0, 40.0])
    def test_what_is_the_same_is_a_matter_of_voxels(self, edge):
        spacing = (edge, 2 * edge, 5 * edge)
        grid = Grid.from_spacing((3, 4, 5), spacing)
        for axis in range(3):
            for share, same in ((0.009, True), (0.011, False), (1.0, False)):
                off = np.zeros(3)
                off[axis] = share * spacing[axis]
                other = Grid.from_spacing((3, 4, 5), spacing, tuple(off))
                assert grid.distance_vox(other) == pytest.approx(share)
                assert grid.same_as(other) is same
        assert grid.distance_vox(Grid.from_spacing((3, 4, 6), spacing)) == math.inf

    def test_voxels_off_on_an_oblique_grid_are_counted_along_its_axes(self):
        affine = np.array([[0.0, -3, 0, 5], [2, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
        moved = affine.copy()
        moved[:3, 3] += affine[:3, 1] * 0.25
        grid = Grid((3, 3, 3), affine)
        assert grid.distance_vox(Grid((3, 3, 3), moved)) == pytest.approx(0.25)
        assert grid.distance_mm(Grid((3, 3, 3), moved)) == pytest.approx(0.75)


class TestOrientation:
    def test_ras_is_left_alone(self) -> None:
        assert Orientation.to_canonical(Grid.from_spacing((2, 3, 4), (1, 2, 3))).identity

    def test_lps_is_flipped(self) -> None:
        grid = oriented((2, 3, 4), (1, 2, 3), flip=(1, 1, 0))
        assert Orientation.to_canonical(grid) == Orientation((0, 1, 2), (True, True, False))

    def test_sagittal_slices_are_permuted(self) -> None:
        # i runs along A, j along S, k from right to left.
        grid = oriented((5, 6, 7), (1, 1, 3), order=(1, 2, 0), flip=(0, 0, 1))
        orientation = Orientation.to_canonical(grid)
        assert orientation == Orientation((2, 0, 1), (True, False, False))
        assert orientation.grid(grid).shape == (7, 5, 6)
        assert orientation.grid(grid).spacing_mm == (3, 1, 1)

    def test_a_slightly_turned_grid_keeps_its_axes(self) -> None:
        grid = oriented((2, 3, 4), (1, 1, 1), angles_deg=(20, -15, 10))
        assert Orientation.to_canonical(grid).identity

    @pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PSR", "SLA", "IRP"])
    def test_axes_can_be_brought_into_any_directions(self, axes: str) -> None:
        grid = oriented((5, 6, 7), (1, 1, 3), order=(1, 2, 0), flip=(0, 0, 1))
        assert grid.axes == "ASL"
        orientation = Orientation.towards(axes, grid)
        assert orientation.grid(grid).axes == axes
        assert orientation.inverse.grid(orientation.grid(grid)).same_as(grid)
        assert Orientation.towards("RAS", grid) == Orientation.to_canonical(grid)

    def test_inverse_of_a_cycle(self) -> None:
        orientation = Orientation((2, 0, 1), (True, False, False))
        assert orientation.inverse == Orientation((1, 2, 0), (False, False, True))
