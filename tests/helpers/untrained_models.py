"""Models without training: the tiny recipe, or any, with initial weights."""

from __future__ import annotations

import torch
from torch import nn

from helpers.tiny_dataset import CPU, SCHEMA, tiny_recipe
from zoomseg.backends.torch_networks import build_network
from zoomseg.core.labels import LabelSchema
from zoomseg.inference.predictor import Predictor
from zoomseg.io.bundle import Bundle
from zoomseg.recipe.spec import Recipe, UNet3D


def untrained_bundle(seed: int = 0) -> Bundle:
    return _with_first_weights(tiny_recipe(together=True), seed)


def valid_bundle() -> Bundle:
    """A model whose first stage computes without padding."""
    recipe = tiny_recipe(together=True)
    coarse, fine = recipe.stages
    grid = coarse.grid.model_copy(update={"tile": (44, 44, 44), "padding": "valid"})
    coarse = coarse.model_copy(update={"network": UNet3D(channels=(8, 16)), "grid": grid})
    return _with_first_weights(recipe.model_copy(update={"stages": (coarse, fine)}), seed=0)


def _with_first_weights(recipe: Recipe, seed: int) -> Bundle:
    torch.manual_seed(seed)
    weights = {s.name: build_network(s, recipe, SCHEMA, 1).state_dict() for s in recipe.stages}
    return Bundle(recipe, SCHEMA, ("CT",), weights, {})


def predictor(seed: int = 0) -> Predictor:
    return Predictor(untrained_bundle(seed), CPU)


def lived(module: nn.Module) -> nn.Module:
    """``module`` with non-trivial statistics of batch norms, as in trained networks."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.running_mean.normal_()  # type: ignore[union-attr, operator]
            part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]
    return module.eval()


def untrained(
    recipe: Recipe, schema: LabelSchema, channels: tuple[str, ...] = ("CT",), seed: int = 0
) -> Bundle:
    """A model of any recipe, with statistics of batch norms as in trained networks."""
    torch.manual_seed(seed)
    modules = {s.name: lived(build_network(s, recipe, schema, len(channels))) for s in recipe.stages}
    return Bundle(
        recipe, schema, channels, {name: m.state_dict() for name, m in modules.items()}, {"seed": seed}
    )
