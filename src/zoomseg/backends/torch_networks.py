"""A stage's network in torch, with a model's weights, in the form used by the pipeline."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from zoomseg.backends.device import Device
from zoomseg.core.arrays import Array, to_numpy
from zoomseg.core.errors import ModelError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.tiling import Tile
from zoomseg.io.bundle import Bundle
from zoomseg.networks import build as networks
from zoomseg.pipeline.inputs import network_channels
from zoomseg.pipeline.sliding_window import StageNetwork
from zoomseg.recipe import graph
from zoomseg.recipe.network_shapes import check_tile
from zoomseg.recipe.spec import Recipe, Stage


def build_network(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> nn.Module:
    read, classes = network_channels(stage, recipe, schema, channels)
    return networks.build(stage.network, read, classes, stage.grid.padding)


def trained_network(bundle: Bundle, stage: Stage) -> nn.Module:
    """A stage's network with the model's weights, in float32; both share their memory.

    Raises:
        ModelError: the weights do not fit the network.
        RecipeError: the network does not accept the stage's tiles.
    """
    check_tile(stage)
    module = weightless(bundle, stage)  # the recipe's network needs no memory before weights are assigned
    try:  # assigned: a copy would double the memory
        module.load_state_dict(state_dict(bundle, stage.name), assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ModelError(f"weights of stage '{stage.name}' do not fit its network ({detail})") from error
    return module.float()


def state_dict(bundle: Bundle, stage: str) -> dict[str, Tensor]:
    """A stage's weights as torch tensors, which share the memory."""
    return {name: torch.from_numpy(values) for name, values in bundle.weights[stage].items()}


def weightless(bundle: Bundle, stage: Stage) -> nn.Module:
    """A stage's network on the meta device: shapes alone."""
    with networks.without_memory():
        return build_network(stage, bundle.recipe, bundle.schema, len(bundle.channel_names))


def ready_network(bundle: Bundle, name: str, device: Device) -> nn.Module:
    """A model's network of the stage of this name, ready for prediction: on the device, in evaluation
    mode."""
    stage = graph.stage_of(bundle.recipe, name)
    return networks.laid_out(stage.network, trained_network(bundle, stage).to(device.torch_device)).eval()


def as_network(module: nn.Module, device: Device) -> StageNetwork:
    """A trained module in the form that ``SlidingWindow`` uses."""

    def compute(x_BCIJK: Array, tiles: tuple[Tile, ...]) -> Array:
        # Not inference mode, whose tensors ``backends.networks.mean`` could not add to in place.
        with torch.no_grad(), device.autocast():
            probabilities = _softmax(module(torch.as_tensor(x_BCIJK, device=device.torch_device))[0].float())
        return to_numpy(probabilities) if isinstance(x_BCIJK, np.ndarray) else probabilities

    return compute


def _softmax(logits_BCIJK: Tensor) -> Tensor:
    """In place; torch's own over an axis that is not the last takes twice as long."""
    logits_BCIJK -= logits_BCIJK.amax(dim=1, keepdim=True)
    return logits_BCIJK.exp_().div_(logits_BCIJK.sum(dim=1, keepdim=True))
