"""Models of one stage whose networks also exist as ONNX graphs: each kind of network once, tiny."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from helpers.tiny_dataset import SCHEMA, tiny_recipe
from helpers.untrained_models import untrained
from zoomseg.backends.onnx_graph import write_graphs
from zoomseg.core.geometry import Index3
from zoomseg.core.resample import Float32Array
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.recipe import spec
from zoomseg.recipe.network_shapes import Padding

KINDS: dict[str, tuple[spec.NetworkSpec, Padding, Index3]] = {
    "unet3d": (spec.UNet3D(channels=(4, 8)), "same", (8, 12, 4)),
    "unet3d-valid": (spec.UNet3D(channels=(4, 8)), "valid", (20, 24, 20)),
    "unet2d": (spec.UNet2D(plane="coronal", channels=(4, 8)), "same", (8, 3, 12)),
    "residual_fcn": (
        spec.ResidualFCN(channels=(4, 8, 6), strides=((2, 1, 1), (2, 2, 2), (2, 2, 1))),
        "same",
        (16, 8, 6),
    ),
    "residual_fcn-relu6": (
        spec.ResidualFCN(channels=(4, 8), strides=((1, 1, 1), (2, 2, 2)), activation="relu6"),
        "same",
        (8, 6, 4),
    ),
    "resunet_aspp": (spec.ResUNetASPP(channels=(4, 4), dilations=(1, 2)), "same", (12, 8, 8)),
    "resenc_unet": (
        spec.ResEncUNet(
            channels=(4, 8, 8),
            strides=((1, 1, 2), (2, 2, 1), (2, 2, 2)),
            kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
            blocks=(1, 1, 1),
        ),
        "same",
        (8, 12, 8),
    ),
    "plain_conv_unet": (
        spec.PlainConvUNet(
            channels=(4, 8, 8),
            strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
            kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
            convolutions=(1, 2, 2),
            decoder_convolutions=(2, 1),
        ),
        "same",
        (8, 12, 8),
    ),
}


def one_stage(kind: str, seed: int = 0) -> Bundle:
    """A model with two channels and a single stage for the whole scan, with a network of this kind."""
    network, padding, tile = KINDS[kind]
    recipe = tiny_recipe(together=False)
    stage = recipe.stages[0]
    grid = stage.grid.model_copy(update={"tile": tile, "padding": padding})
    stage = stage.model_copy(update={"network": network, "grid": grid})
    return untrained(recipe.model_copy(update={"stages": (stage,)}), SCHEMA, ("T1", "T2"), seed)


def converted(kind: str, folder: Path, half: bool = False, seed: int = 0) -> Bundle:
    """A model of one stage, ``coarse``, as read from the folder."""
    bundle.save(one_stage(kind, seed), folder, half)
    write_graphs(folder)
    return bundle.load(folder)


def doubling() -> bytes:
    """A network that doubles its input."""
    return _graph("doubling", [helper.make_node("Add", ["inputs", "inputs"], ["probabilities"])], 1)


def classifying(classes: int, biases: int) -> bytes:
    """A 1x1x1 convolution of one channel to ``classes``, weights of 1, biases of 0.5, then softmax."""
    weight, bias = np.ones((classes, 1, 1, 1, 1), np.float32), np.full((biases, 1, 1, 1), 0.5, np.float32)
    nodes = [
        helper.make_node("Conv", ["inputs", "weight"], ["convolved"]),
        helper.make_node("Add", ["convolved", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return _graph("classifying", nodes, classes, {"weight": weight, "bias": bias})


def _graph(
    name: str,
    nodes: list[NodeProto],
    classes: int,
    weights: Mapping[str, Float32Array] = MappingProxyType({}),
) -> bytes:
    """From one input channel, ``inputs``, to ``probabilities`` of ``classes``."""
    inputs, outputs = (
        helper.make_tensor_value_info(port, TensorProto.FLOAT, ["batch", channels, "i", "j", "k"])
        for port, channels in (("inputs", 1), ("probabilities", classes))
    )
    stored = [numpy_helper.from_array(values, key) for key, values in weights.items()]
    made = helper.make_model(
        helper.make_graph(nodes, name, [inputs], [outputs], stored),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    content: bytes = made.SerializeToString()
    return content
