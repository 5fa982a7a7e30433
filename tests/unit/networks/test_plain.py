"""The plain U-Net: levels, kernels and strides of the spec; shapes that it accepts."""

from __future__ import annotations

import pytest
import torch

from zoomseg.core.errors import RecipeError
from zoomseg.networks import build as networks
from zoomseg.recipe import network_shapes
from zoomseg.recipe.spec import PlainConvUNet

SPEC = PlainConvUNet(
    channels=(4, 6, 8),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    convolutions=(1, 2, 3),
    decoder_convolutions=(2, 1),
)


def test_it_has_the_convolutions_of_every_level() -> None:
    state = networks.build(SPEC, 2, 5, "same").state_dict()
    kernels = {name: tuple(value.shape) for name, value in state.items() if value.ndim == 5}
    assert kernels == {
        "encoder.0.0.0.weight": (4, 2, 3, 3, 1),
        "encoder.1.0.0.weight": (6, 4, 3, 3, 3),
        "encoder.1.1.0.weight": (6, 6, 3, 3, 3),
        "encoder.2.0.0.weight": (8, 6, 3, 3, 3),
        "encoder.2.1.0.weight": (8, 8, 3, 3, 3),
        "encoder.2.2.0.weight": (8, 8, 3, 3, 3),
        "up.0.weight": (6, 4, 2, 2, 1),
        "up.1.weight": (8, 6, 2, 2, 2),
        "decoder.0.0.0.weight": (4, 8, 3, 3, 1),
        "decoder.0.1.0.weight": (4, 4, 3, 3, 1),
        "decoder.1.0.0.weight": (6, 12, 3, 3, 3),
        "last.weight": (5, 4, 1, 1, 1),
    }


def test_it_answers_at_the_inputs_resolution_for_multiples_of_its_strides() -> None:
    module = networks.build(SPEC, 2, 5, "same").eval()
    with torch.no_grad():
        assert module(torch.randn(1, 2, 8, 4, 6))[0].shape == (1, 5, 8, 4, 6)
    assert network_shapes.divisor(SPEC) == (4, 4, 2)
    with pytest.raises(RecipeError, match=r"axis j: 6 \(nearest: 4 or 8\)"):
        network_shapes.check_input_shape(SPEC, "same", (8, 6, 6))
    with pytest.raises(RecipeError, match="lowest level would be a single voxel"):
        network_shapes.check_input_shape(SPEC, "same", (4, 4, 2))


def test_numbers_that_are_no_network_are_refused() -> None:
    given = SPEC.model_dump()
    with pytest.raises(ValueError, match="decoder_convolutions one less"):
        PlainConvUNet.model_validate(given | {"decoder_convolutions": (1, 1, 1)})
    with pytest.raises(ValueError, match=r"the first of strides must be \[1, 1, 1\]"):
        PlainConvUNet.model_validate(given | {"strides": ((2, 1, 1), (2, 2, 1), (2, 2, 2))})
