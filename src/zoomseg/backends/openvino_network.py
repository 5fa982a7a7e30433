"""A network computed by OpenVINO on the CPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoomseg.backends.cpu import Channels, Float32Array, Network, Precision, require_channels, usable_threads
from zoomseg.core.tiling import PointwiseHead

if TYPE_CHECKING:
    import openvino


def load(
    graph: Path | bytes,
    precision: Precision = "fastest",
    threads: int | None = None,
    without_head: bool = False,
    channels: Channels | None = None,
) -> Network:
    """A network, compiled for this machine from its ONNX graph.

    Shapes stay dynamic: one compiled network accepts any batch and tile, as fast as one compiled for a single
    shape, and compiling takes so little time (0.1 to 0.2 s) that a cache on disk saves less than 0.1 s
    (docs/decisions/0018-networks-without-torch.md).

    Args:
        graph: a file, as graphs with external weights name these by a relative path; or the content.
        threads: number of threads; None: as many as this process may use.
        without_head: compute only the input of its ``pointwise_head``.
        channels: those that the graph must have; None: any.

    Raises:
        ModelError: it has others.
        Exception: from OpenVINO, if it cannot read the graph; its errors have no common base.
    """
    settings: dict[str, str | int] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_threads() if threads is None else threads,
    }
    if precision == "float32":  # otherwise bfloat16, if the CPU supports it
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    model = _core().read_model(graph)
    require_channels((_channels(model.input(0)), _channels(model.output(0))), channels)
    if without_head:
        import openvino

        last = _last_layer(model)
        assert last is not None  # callers have its head
        model = openvino.Model([last.convolution.input_value(0)], model.get_parameters())
    compiled = _core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def compute(inputs: Float32Array) -> Float32Array:
        # Not copied: with a hundred classes, a tile's output takes a gigabyte.
        out: Float32Array = request.infer({0: inputs}, share_outputs=True)[0]
        compiled.release_memory()  # of hidden layers, otherwise kept while results are written
        return out

    return compute


def _channels(port: openvino.Output) -> int | None:
    """None if the graph leaves them open."""
    shape = port.get_partial_shape()
    is_known = shape.rank.is_static and len(shape) > 1 and shape[1].is_static
    return int(shape[1].get_length()) if is_known else None


def pointwise_head(graph: Path | bytes) -> PointwiseHead | None:
    """The last layer before softmax; None if it is not a 1x1x1 convolution with a bias for each class.

    Raises:
        Exception: as ``load``.
    """
    found = _last_layer(_core().read_model(graph))
    if found is None:
        return None
    weight, bias = _constant(found.convolution.input_value(1)), _constant(found.bias)
    if weight is None or bias is None or bias.size != len(weight):
        return None
    return PointwiseHead(weight.reshape(weight.shape[:2]), bias.ravel())


@dataclass(frozen=True)
class _LastLayer:
    convolution: openvino.Node
    bias: openvino.Output


def _last_layer(model: openvino.Model) -> _LastLayer | None:
    """The last layer of a network ``Softmax(Convolution(features, weight) + bias)`` with a 1x1x1 kernel."""
    softmax = model.get_results()[0].input_value(0).get_node()
    added = softmax.input_value(0).get_node()
    if softmax.get_type_name() != "Softmax" or added.get_type_name() != "Add":
        return None
    convolution, bias = added.input_value(0).get_node(), added.input_value(1)
    if convolution.get_type_name() != "Convolution":
        return None
    kernel = tuple(convolution.input_value(1).get_shape())[2:]
    return _LastLayer(convolution, bias) if set(kernel) == {1} else None


def _constant(value: openvino.Output) -> Float32Array | None:
    """A constant in float32. Half-precision weights are cast, and biases reshaped, by nodes of the graph."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return np.array(node.data, dtype=np.float32) if node.get_type_name() == "Constant" else None


@functools.cache
def _core() -> openvino.Core:
    """A single instance per process. OpenVINO's CPU plugin gives signal handlers a separate stack during its
    lifetime; if several are destroyed in the order of their creation, the remaining stack is invalid memory,
    and the next signal (Ctrl-C) ends the process with a segmentation fault."""
    import openvino

    return openvino.Core()
