"""Shapes follow from the spec alone, and the module agrees with the spec."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoomseg.core.errors import RecipeError
from zoomseg.networks import build as networks
from zoomseg.recipe import network_shapes
from zoomseg.recipe.spec import (
    NetworkSpec,
    PlainConvUNet,
    ResEncUNet,
    ResidualFCN,
    ResUNetASPP,
    UNet2D,
    UNet3D,
)


def residual(**changes: object) -> ResEncUNet:
    given: dict[str, object] = {
        "channels": (4, 6, 8),
        "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
        "blocks": (1, 1, 2),
    }
    return ResEncUNet.model_validate(given | changes)


@pytest.mark.parametrize("levels", [2, 3])
def test_valid_shapes_are_exactly_those_the_module_can_take(levels: int) -> None:
    """Every size up to a limit: allowed if and only if the module gives the predicted shape."""
    spec = UNet3D(channels=(2,) * levels)
    module = networks.build(spec, 1, 2, "valid").eval()
    lost = 2 * network_shapes.halo(spec, "valid")[0]
    for size in range(lost - 3, lost + 10):
        try:
            expected = network_shapes.check_input_shape(spec, "valid", (size, size, size))
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
        network_shapes.check_input_shape(UNet3D(), "valid", (130, 132, 60))
    with pytest.raises(RecipeError, match=r"axis j: 30 \(nearest: 28 or 32\)"):
        network_shapes.check_input_shape(residual(), "same", (32, 30, 16))
    with pytest.raises(RecipeError, match=r"axis k: 1 \(nearest: 2\)"):
        network_shapes.check_input_shape(residual(), "same", (32, 32, 1))


def test_single_voxel_at_the_lowest_level_is_refused() -> None:
    assert network_shapes.divisor(residual()) == (4, 4, 2)
    with pytest.raises(RecipeError, match="lowest level would be a single voxel"):
        network_shapes.check_input_shape(residual(), "same", (4, 4, 2))
    assert network_shapes.check_input_shape(residual(), "same", (4, 4, 4)) == (4, 4, 4)


def test_divisor_counts_the_stem_stride() -> None:
    spec = residual(strides=((2, 2, 1), (2, 2, 2), (2, 2, 2)))
    assert network_shapes.divisor(spec) == (8, 8, 4)
    assert network_shapes.divisor(UNet3D(channels=(2, 4, 8))) == (4, 4, 4)


def test_networks_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match="use padding 'same', got 'valid'"):
        networks.build(residual(), 1, 2, "valid")
    with pytest.raises(RecipeError, match="residual_fcn keeps its input's shape"):
        networks.build(ResidualFCN(), 1, 2, "valid")
    with pytest.raises(RecipeError, match="resunet_aspp keeps its input's shape"):
        network_shapes.halo(ResUNetASPP(channels=(4, 8), dilations=(2,)), "valid")
    with pytest.raises(RecipeError, match="unet2d needs at least 2 levels"):
        networks.build(UNet2D(plane="axial", channels=(8,)), 1, 2, "same")
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


@pytest.mark.parametrize(
    ("spec", "factors"),
    [
        (ResidualFCN(), (8, 8, 8)),
        (ResidualFCN(channels=(4, 8), strides=((2, 2, 1), (3, 2, 2))), (6, 4, 2)),
        (ResUNetASPP(channels=(4, 6, 8), dilations=(2,)), (8, 8, 8)),
    ],
)
def test_divisor_is_the_smallest_step_that_keeps_the_shape(
    spec: NetworkSpec, factors: tuple[int, int, int]
) -> None:
    assert network_shapes.divisor(spec) == factors
    module = networks.build(spec, 1, 2, "same").eval()
    for times in (1, 2):
        shape = network_shapes.check_input_shape(
            spec, "same", (times * factors[0], times * factors[1], times * factors[2])
        )
        with torch.no_grad():
            assert tuple(module(torch.zeros(1, 1, *shape))[0].shape[2:]) == shape
    with pytest.raises(RecipeError, match=rf"axis i: {factors[0] + 1} \(nearest: {factors[0]} or"):
        network_shapes.check_input_shape(spec, "same", (factors[0] + 1, factors[1], factors[2]))


def test_multiply_adds_of_convolutions_by_hand() -> None:
    strided = nn.Conv3d(3, 5, (3, 3, 1), stride=2, padding=(1, 1, 0))
    assert networks.multiply_adds(strided, (3, 8, 6, 4)) == (4 * 3 * 2) * 5 * (3 * 9)
    depthwise = nn.Conv3d(4, 4, 3, padding=2, dilation=2, groups=4)
    assert networks.multiply_adds(depthwise, (4, 5, 5, 5)) == 5**3 * 4 * 27
    up = nn.ConvTranspose3d(6, 2, 2, stride=2)
    assert networks.multiply_adds(up, (6, 3, 4, 5)) == (3 * 4 * 5) * 8 * 6 * 2
    assert networks.multiply_adds(nn.Sequential(depthwise, depthwise), (4, 5, 5, 5)) == 2 * 5**3 * 4 * 27


def test_multiply_adds_of_a_network_by_hand() -> None:
    """Two levels of 4 and 6 channels on 8x8x8 voxels, 2 classes."""
    module = networks.build(UNet3D(channels=(4, 6)), 1, 2, "same")
    high = 27 * (1 * 2 + 2 * 4) + 27 * ((4 + 6) * 4 + 4 * 4) + 4 * 2
    low = 27 * (4 * 3 + 3 * 6) + 8 * 6 * 6  # the transposed convolution counts per voxel that enters
    assert networks.multiply_adds(module, (1, 8, 8, 8)) == 8**3 * high + 4**3 * low


def test_counting_leaves_the_module_as_it_was() -> None:
    module = networks.build(ResUNetASPP(channels=(2, 4), dilations=(1,)), 1, 2, "same").train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    networks.multiply_adds(module, (1, 8, 8, 8))
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert module.training


def test_heads_of_training_count_in_training_only() -> None:
    module = networks.build(residual(), 1, 2, "same")
    extra = networks.multiply_adds(module.train(), (1, 8, 8, 4)) - networks.multiply_adds(
        module.eval(), (1, 8, 8, 4)
    )
    assert extra == 0  # two decoder levels: the lower has no head
    deeper = residual(
        channels=(4, 6, 8, 8),
        strides=((1, 1, 1), *((2, 2, 2),) * 3),
        kernels=((3, 3, 3),) * 4,
        blocks=(1,) * 4,
    )
    module = networks.build(deeper, 1, 2, "same")
    extra = networks.multiply_adds(module.train(), (1, 16, 16, 16)) - networks.multiply_adds(
        module.eval(), (1, 16, 16, 16)
    )
    assert extra == 8**3 * 6 * 2


def test_the_plain_unet_steps_by_its_strides() -> None:
    spec = PlainConvUNet(
        channels=(4, 6),
        strides=((1, 1, 1), (2, 1, 4)),
        kernels=((3, 3, 3), (3, 3, 3)),
        convolutions=(1, 1),
        decoder_convolutions=(1,),
    )
    assert network_shapes.divisor(spec) == (2, 1, 4)
    with pytest.raises(RecipeError, match="kernels must have odd sizes"):
        network_shapes.check(spec.model_copy(update={"kernels": ((3, 3, 3), (2, 3, 3))}), "same")
