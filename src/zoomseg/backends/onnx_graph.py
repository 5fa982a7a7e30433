"""A stage's network as ONNX: image and priors of one tile in, probabilities out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Index3


class _Answer(nn.Module):
    """What prediction does with a network: its logits at full resolution, made probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        logits: Tensor = self.network(x_BCIJK)[0]
        return logits.softmax(dim=1)


def to_onnx(network: nn.Module, channels: int, tile: Index3, half: bool = False) -> bytes:
    """``network`` for inputs ``[1, channels, *tile]`` of type float32, as an ONNX model whose output is the
    probabilities ``[1, classes, ...]``. The network is put into evaluation mode.

    Args:
        half: store the weights as float16. Runtimes make them float32 again when they load the model.

    Raises:
        ModelError: a weight does not fit in float16.
    """
    module = _Answer(network).eval()
    with _silent():
        program = torch.onnx.export(
            module,
            (torch.zeros(1, channels, *tile),),
            dynamo=True,
            verbose=False,
            input_names=["inputs"],
            output_names=["probabilities"],
        )
    assert program is not None  # only the older exporter, which is not used, returns nothing
    model = program.model_proto
    _forget_origin(model)
    if half:
        _store_half(model)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter's remarks (torchvision is missing, its own deprecations) help nobody here."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _forget_origin(model: ModelProto) -> None:
    """The exporter notes at every node which file and line it comes from: paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _store_half(model: ModelProto) -> None:
    """Every float32 weight becomes a float16 one that is cast back."""
    graph = model.graph
    weights = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    casts = []
    for tensor in weights:
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(values).all():
            raise ModelError(
                f"weight '{tensor.name}' does not fit in half precision; export it without --half"
            )
        name = f"{tensor.name}.half"
        casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(values, name))
    nodes = [*casts, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)
