"""A stage's network in torch: with the model's weights, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.tiny_dataset import CPU
from helpers.untrained_models import untrained_bundle
from zoomseg.backends.networks import mean
from zoomseg.backends.torch_networks import as_network, check_tile, ready_network, trained_network, weightless
from zoomseg.core.arrays import Array
from zoomseg.core.errors import ModelError, RecipeError


class Linear(nn.Module):
    """Logits of two classes: 0, and ``slope`` times the input."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor]:
        return (torch.cat([torch.zeros_like(x_BCIJK), self.slope * x_BCIJK], dim=1),)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_several_networks_give_the_mean_of_their_probabilities(kind: Callable[[Array], Array]) -> None:
    x_BCIJK = np.array([-2.0, 0.0, 3.0], dtype=np.float32).reshape(1, 1, 3, 1, 1)
    found = mean([as_network(Linear(slope), CPU) for slope in (1.0, -2.0, 0.5)])(kind(x_BCIJK), ())
    second = sum(1 / (1 + np.exp(-slope * x_BCIJK)) for slope in (1.0, -2.0, 0.5)) / 3
    np.testing.assert_allclose(found, np.concatenate([1 - second, second], axis=1), rtol=0, atol=1e-6)


def test_a_network_gives_the_kind_of_array_that_it_gets() -> None:
    compute, x_BCIJK = as_network(Linear(1.0), CPU), np.ones((1, 1, 2, 2, 2), dtype=np.float32)
    from_numpy, from_torch = compute(x_BCIJK, ()), compute(torch.from_numpy(x_BCIJK), ())
    assert isinstance(from_numpy, np.ndarray)
    assert isinstance(from_torch, Tensor)
    assert np.array_equal(from_numpy, from_torch.numpy())


def test_a_ready_network_has_the_model_s_weights_and_evaluates() -> None:
    bundle = untrained_bundle()
    module = ready_network(bundle, "fine", CPU)
    assert not module.training
    for name, value in module.state_dict().items():
        assert np.array_equal(value, bundle.weights["fine"][name]), name


def test_half_precision_becomes_float32() -> None:
    bundle = untrained_bundle()
    half = {
        n: w.astype(np.float16) if w.dtype == np.float32 else w for n, w in bundle.weights["coarse"].items()
    }
    module = trained_network(
        replace(bundle, weights={**bundle.weights, "coarse": half}), bundle.recipe.stages[0]
    )
    for name, value in module.named_parameters():
        assert value.dtype == torch.float32
        assert np.array_equal(value.detach().numpy(), half[name].astype(np.float32))


def test_without_weights_a_network_takes_no_memory() -> None:
    bundle = untrained_bundle()
    module = weightless(bundle, bundle.recipe.stages[0])
    assert {value.device.type for value in module.parameters()} == {"meta"}
    shapes = {name: value.shape for name, value in bundle.weights["coarse"].items()}
    assert {name: value.shape for name, value in module.state_dict().items()} == shapes


def test_weights_of_another_network_are_refused() -> None:
    bundle = untrained_bundle()
    other = replace(bundle, weights={**bundle.weights, "coarse": bundle.weights["fine"]})
    with pytest.raises(ModelError, match="weights of stage 'coarse' do not fit its network"):
        trained_network(other, bundle.recipe.stages[0])


def test_a_tile_that_the_network_cannot_read_is_refused() -> None:
    stage = untrained_bundle().recipe.stages[0]
    check_tile(stage)
    odd = stage.model_copy(update={"grid": stage.grid.model_copy(update={"tile": (13, 12, 12)})})
    with pytest.raises(RecipeError, match=r"stage 'coarse', grid.tile: .*axis i: 13 \(nearest: 12 or"):
        check_tile(odd)
