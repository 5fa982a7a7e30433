"""Untrained models of any recipe, and what a package of them holds, without the time that ONNX takes."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import nn

from zoomseg.backends.cpu import Network
from zoomseg.backends.torch_networks import build_network, state_dict
from zoomseg.core.labels import LabelSchema
from zoomseg.export.package import manifest
from zoomseg.export.runner.pipeline import Pipeline, parse
from zoomseg.export.runner.resample import FloatArray
from zoomseg.io.bundle import Bundle
from zoomseg.recipe.spec import Recipe


def lived(module: nn.Module) -> nn.Module:
    """``module`` with batch norms that have seen something, as those of trained networks have."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.running_mean.normal_()  # type: ignore[union-attr, operator]
            part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr, operator]
    return module.eval()


def untrained(
    recipe: Recipe, schema: LabelSchema, channels: tuple[str, ...] = ("CT",), seed: int = 0
) -> Bundle:
    torch.manual_seed(seed)
    modules = {s.name: lived(build_network(s, recipe, schema, len(channels))) for s in recipe.stages}
    return Bundle(
        recipe, schema, channels, {name: m.state_dict() for name, m in modules.items()}, {"seed": seed}
    )


def pipeline_of(bundle: Bundle) -> Pipeline:
    """What the runner reads from the package."""
    models = {stage.name: b"" for stage in bundle.recipe.stages}
    return parse(json.loads(json.dumps(manifest(bundle, models))))


def torch_networks(bundle: Bundle) -> dict[str, Network]:
    """The model's own networks where the runner has a runtime's."""

    def network(name: str) -> Network:
        stage = next(s for s in bundle.recipe.stages if s.name == name)
        module = build_network(stage, bundle.recipe, bundle.schema, len(bundle.channel_names)).eval()
        module.load_state_dict(state_dict(bundle, name))

        def compute(inputs: FloatArray) -> FloatArray:
            with torch.inference_mode():
                out: np.ndarray = module(torch.from_numpy(inputs))[0].softmax(dim=1).numpy()
            return out

        return compute

    return {stage.name: network(stage.name) for stage in bundle.recipe.stages}
