"""Shapes of networks, counted by hand; the modules' tests check that they agree."""

from __future__ import annotations

import pytest

from helpers.tiny_dataset import tiny_recipe
from zoomseg.core.errors import RecipeError
from zoomseg.recipe import network_shapes
from zoomseg.recipe.spec import UNet2D, UNet3D


@pytest.mark.parametrize(("levels", "halo"), [(2, 8), (3, 20), (4, 44)])
def test_valid_halo_by_levels(levels: int, halo: int) -> None:
    # Counted by hand from a lowest level of 9 voxels for four levels: 132 in, 44 out.
    spec = UNet3D(channels=(2,) * levels)
    assert network_shapes.halo(spec, "valid") == (halo,) * 3
    assert network_shapes.halo(spec, "same") == (0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((132, 132, 116), (44, 44, 28)), ((92, 92, 92), (4, 4, 4)), ((100, 92, 140), (12, 4, 52))],
)
def test_output_shape_of_the_valid_net(shape: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    assert network_shapes.check_input_shape(UNet3D(), "valid", shape) == expected


@pytest.mark.parametrize(("plane", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_a_plane_needs_nothing_of_the_axis_across_it(plane: str, axis: int) -> None:
    spec = UNet2D.model_validate({"plane": plane, "channels": (2, 2, 2, 2)})
    assert network_shapes.divisor(spec) == tuple(1 if a == axis else 8 for a in range(3))
    assert network_shapes.halo(spec, "valid") == tuple(0 if a == axis else 44 for a in range(3))
    shape = [96, 96, 96]
    shape[axis] = 7
    assert network_shapes.check_input_shape(spec, "same", (shape[0], shape[1], shape[2])) == tuple(shape)
    shape[axis - 1] = 97
    with pytest.raises(RecipeError, match=rf"axis {'ijk'[axis - 1]}: 97 \(nearest: 96 or 104\)"):
        network_shapes.check_input_shape(spec, "same", (shape[0], shape[1], shape[2]))


def test_the_field_with_a_shape_that_the_network_does_not_accept_is_named() -> None:
    stage = tiny_recipe(together=False).stages[0]
    network_shapes.check_tile(stage)
    network_shapes.check_patch(stage)
    tile = stage.model_copy(update={"grid": stage.grid.model_copy(update={"tile": (13, 12, 12)})})
    with pytest.raises(RecipeError, match=r"stage 'coarse', grid\.tile: .*axis i: 13 \(nearest: 12 or 14\)"):
        network_shapes.check_tile(tile)
    patch = stage.model_copy(update={"training": stage.training.model_copy(update={"patch": (12, 12, 5)})})
    with pytest.raises(RecipeError, match=r"stage 'coarse', training\.patch: .*: 5 \(nearest: 4 or 6\)"):
        network_shapes.check_patch(patch)


@pytest.mark.parametrize(
    ("shape", "largest"),
    [((132, 132, 132), (132, 132, 132)), ((139, 131, 20), (132, 124, 92))],
)
def test_the_largest_shape_that_a_valid_net_can_read(
    shape: tuple[int, int, int], largest: tuple[int, int, int]
) -> None:
    """Not above the given one or, if all are, the smallest."""
    assert network_shapes.readable(UNet3D(), "valid", shape) == largest
    assert network_shapes.readable(UNet3D(channels=(2, 2, 2)), "same", (15, 16, 3)) == (12, 16, 4)
