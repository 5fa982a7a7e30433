"""Shapes follow from the spec alone, and what the spec says is what the module does."""

from __future__ import annotations

import pytest
import torch

from zoomseg.core.errors import RecipeError
from zoomseg.networks import build as networks
from zoomseg.recipe.spec import ResEncUNet, UNet3D


def residual(**changes: object) -> ResEncUNet:
    given: dict[str, object] = {
        "channels": (4, 6, 8),
        "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
        "blocks": (1, 1, 2),
    }
    return ResEncUNet.model_validate(given | changes)


@pytest.mark.parametrize(("levels", "halo"), [(2, 8), (3, 20), (4, 44)])
def test_valid_halo_by_levels(levels: int, halo: int) -> None:
    # Counted by hand from a lowest level of 9 voxels for four levels: 132 in, 44 out.
    spec = UNet3D(channels=(2,) * levels)
    assert networks.halo(spec, "valid") == (halo,) * 3
    assert networks.halo(spec, "same") == (0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((132, 132, 116), (44, 44, 28)), ((92, 92, 92), (4, 4, 4)), ((100, 92, 140), (12, 4, 52))],
)
def test_output_shape_of_the_valid_net(shape: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    assert networks.check_input_shape(UNet3D(), "valid", shape) == expected


@pytest.mark.parametrize("levels", [2, 3])
def test_valid_shapes_are_exactly_those_the_module_can_take(levels: int) -> None:
    """Every size up to a limit: allowed if and only if the module gives the predicted shape."""
    spec = UNet3D(channels=(2,) * levels)
    module = networks.build(spec, 1, 2, "valid").eval()
    lost = 2 * networks.halo(spec, "valid")[0]
    for size in range(lost - 3, lost + 10):
        try:
            expected = networks.check_input_shape(spec, "valid", (size, size, size))
        except RecipeError:
            expected = None
        try:
            with torch.no_grad():
                found = tuple(module(torch.zeros(1, 1, size, size, size))[0].shape[2:])
        except RuntimeError:
            found = None
        # Pooling drops an odd voxel silently, so a module may run on a shape whose halo is not
        # symmetric; such shapes must be refused.
        if expected is not None:
            assert found == expected
        else:
            assert found is None or found[0] != size - lost


def test_refused_shape_names_the_nearest_allowed() -> None:
    with pytest.raises(
        RecipeError, match=r"130x132x60; axis i: 130 \(nearest: 124 or 132\).*k: 60 \(nearest: 92\)"
    ):
        networks.check_input_shape(UNet3D(), "valid", (130, 132, 60))
    with pytest.raises(RecipeError, match=r"axis j: 30 \(nearest: 28 or 32\)"):
        networks.check_input_shape(residual(), "same", (32, 30, 16))
    with pytest.raises(RecipeError, match=r"axis k: 1 \(nearest: 2\)"):
        networks.check_input_shape(residual(), "same", (32, 32, 1))


def test_single_voxel_at_the_lowest_level_is_refused() -> None:
    assert networks.divisor(residual()) == (4, 4, 2)
    with pytest.raises(RecipeError, match="lowest level would be a single voxel"):
        networks.check_input_shape(residual(), "same", (4, 4, 2))
    assert networks.check_input_shape(residual(), "same", (4, 4, 4)) == (4, 4, 4)


def test_divisor_counts_the_stem_stride() -> None:
    spec = residual(strides=((2, 2, 1), (2, 2, 2), (2, 2, 2)))
    assert networks.divisor(spec) == (8, 8, 4)
    assert networks.divisor(UNet3D(channels=(2, 4, 8))) == (4, 4, 4)


def test_networks_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match="use padding 'same', got 'valid'"):
        networks.build(residual(), 1, 2, "valid")
    with pytest.raises(RecipeError, match="odd sizes, got \\[3, 2, 3\\]"):
        networks.build(residual(kernels=((3, 3, 3), (3, 2, 3), (3, 3, 3))), 1, 2, "same")
    with pytest.raises(RecipeError, match="at least 2 levels"):
        networks.build(UNet3D(channels=(8,)), 1, 2, "same")


def test_equal_seeds_give_equal_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in networks.build(residual(), 1, 2, "same").parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_parameters_counts_only_what_learns() -> None:
    module = torch.nn.Linear(3, 2)
    assert networks.parameters(module) == 8
    module.bias.requires_grad_(False)
    assert networks.parameters(module) == 6
