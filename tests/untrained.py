"""A predictor that needs no training: the tiny recipe with the weights it starts from."""

from __future__ import annotations

import torch

from tiny import CPU, SCHEMA, tiny_recipe
from zoomseg.engine.predict import Predictor, build_network
from zoomseg.io.bundle import Bundle


def untrained_bundle(seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    recipe = tiny_recipe(together=True)
    weights = {s.name: build_network(s, recipe, SCHEMA, 1).state_dict() for s in recipe.stages}
    return Bundle(recipe, SCHEMA, ("CT",), weights, {})


def predictor(seed: int = 0) -> Predictor:
    return Predictor(untrained_bundle(seed), CPU)
