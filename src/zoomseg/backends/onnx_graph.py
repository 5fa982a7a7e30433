"""A stage's network as ONNX: from image and priors of one tile to probabilities.

The graph is stored beside the model's weights, which it references: every weight is a tensor at its position
in the safetensors file of the stage (ONNX external data), so that weights exist once.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from onnxscript import optimizer
from torch import Tensor, nn
from torch.export import Dim

from zoomseg.backends.networks import costs_of
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Index3
from zoomseg.io import bundle as bundles
from zoomseg.networks import build as networks
from zoomseg.pipeline.inputs import network_channels
from zoomseg.recipe import network_shapes
from zoomseg.recipe.network_shapes import Padding
from zoomseg.recipe.spec import NetworkSpec

INPUTS, PROBABILITIES = "inputs", "probabilities"
STORED_TYPES = {
    "F64": TensorProto.DOUBLE,
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
}
"""ONNX's names for safetensors' types of real numbers."""

_Shapes: TypeAlias = "dict[str, dict[int, Any]]"


class _Probabilities(nn.Module):
    """The network as used in prediction: probabilities from its logits at full resolution."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        logits: Tensor = self.network(x_BCIJK)[0]
        return logits.softmax(dim=1)


_PREFIX = "network."
"""Prefix of the names of weights in a graph, from the attribute of ``_Probabilities``."""


def write_graphs(folder: Path) -> None:
    """Write the network of every stage of the model in ``folder`` beside its weights, as an ONNX graph for
    any batch and any tile that the network accepts. Weights stored in half precision remain so, and are
    converted to float32 when a runtime loads the graph.

    The same model gives the same bytes, with the same versions of torch and onnxscript.

    Raises:
        ModelError: the model is damaged, its weights do not fit its networks, or a network has no ONNX form.
        OutputError: no permission, full disk; the model is still usable.
    """
    model = bundles.load(folder)
    files, costs = bundles.weights_files(folder), costs_of(model, "torch")
    graphs: dict[str, bundles.NetworkGraph] = {}
    for stage in model.recipe.stages:
        read, classes = network_channels(stage, model.recipe, model.schema, len(model.channel_names))
        try:
            architecture = _architecture(stage.network, stage.grid.padding, read, classes)
        except torch.onnx.OnnxExporterError as error:
            line = str(error).strip().splitlines()[-1]
            raise ModelError(f"stage '{stage.name}' of {folder} has no ONNX form ({line})") from error
        content = _with_weights_in(files[stage.name], architecture)
        own, tile = costs[stage.name], stage.grid.tile
        graphs[stage.name] = bundles.NetworkGraph(content, own.flops(tile), own.activation_bytes(tile))
    bundles.store_graphs(folder, graphs)


@lru_cache(maxsize=16)
def _architecture(spec: NetworkSpec, padding: Padding, channels: int, classes: int) -> bytes:
    """The graph of a network of this kind, with weights without content. Nothing is folded into them, so that
    each keeps the name and shape of a state dict: a runtime folds batch norms itself."""
    with torch.random.fork_rng(devices=[]):
        module = networks.build(spec, channels, classes, padding)
    model = _exported(module, (2, channels, *_example(spec, padding)), _open_shapes(spec, padding))
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        # The exporter gives convolutions without bias a zero one, in 3D even of a wrong shape, and relies on
        # the optimiser, which also folds batch norms, to remove it.
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] not in weights:
            del node.input[2]
    optimizer.remove_unused_nodes(model)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    for value, sides in ((model.graph.input[0], "ijk"), (model.graph.output[0], ("i_out", "j_out", "k_out"))):
        for axis, name in zip((0, 2, 3, 4), ("batch", *sides), strict=True):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    model.graph.ClearField("value_info")  # of every layer; a runtime recomputes them
    content: bytes = model.SerializeToString()
    return content


def _open_shapes(spec: NetworkSpec, padding: Padding) -> _Shapes:
    """Dynamic batch and sides for the exporter: multiples of the network's divisor, plus a constant with
    valid padding."""
    sides = zip(network_shapes.divisor(spec), _offset(spec, padding), strict=True)
    opened: dict[int, Any] = {0: Dim("batch")}
    for axis, (factor, offset) in enumerate(sides, start=2):
        side = Dim(f"side_{axis}")
        multiple = factor * side if factor > 1 else side
        opened[axis] = multiple + offset if offset else multiple
    return {"x_BCIJK": opened}


def _example(spec: NetworkSpec, padding: Padding) -> Index3:
    """A shape that the network accepts, with different sides, so that none is mistaken for another."""
    least, divisor = network_shapes.readable(spec, padding, (1, 1, 1)), network_shapes.divisor(spec)
    i, j, k = (n + (2 + axis) * f for axis, (n, f) in enumerate(zip(least, divisor, strict=True)))
    return (i, j, k)


def _offset(spec: NetworkSpec, padding: Padding) -> Index3:
    least, divisor = network_shapes.readable(spec, padding, (1, 1, 1)), network_shapes.divisor(spec)
    i, j, k = (n % f for n, f in zip(least, divisor, strict=True))
    return (i, j, k)


def _with_weights_in(file: Path, architecture: bytes) -> bytes:
    """The graph with its weights in this safetensors file, each at its position in the file's header.

    Raises:
        ModelError: the file has other weights than the network.
    """
    model = onnx.load_from_string(architecture)
    start, stored = _header(file)
    casts = []
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix(_PREFIX)
        entry = stored.get(name)
        if entry is None or entry["shape"] != list(tensor.dims) or entry["dtype"] not in STORED_TYPES:
            raise ModelError(f"weight '{name}' in {file} does not fit its network")
        tensor.data_type = STORED_TYPES[entry["dtype"]]
        if tensor.data_type != TensorProto.FLOAT:
            casts.append(_cast_to_float32(tensor))
        begin, end = entry["data_offsets"]
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": file.name, "offset": start + begin, "length": end - begin}
        tensor.external_data.extend(
            onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()
        )
    _put_first(casts, model)
    content: bytes = model.SerializeToString()
    return content


def _header(file: Path) -> tuple[int, Mapping[str, Any]]:
    """The header of a safetensors file: the start of its tensors, and each one's type, shape and position
    from there (huggingface.co/docs/safetensors, "Format")."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return 8 + length, json.loads(stream.read(length))


def _exported(network: nn.Module, shape: tuple[int, ...], opened: _Shapes) -> ModelProto:
    """Traced with an input of ``shape``, for all shapes that ``opened`` allows; not optimised."""
    with _silent():
        program = torch.onnx.export(
            _Probabilities(network).eval(),
            (torch.zeros(shape),),
            dynamo=True,
            verbose=False,
            input_names=[INPUTS],
            output_names=[PROBABILITIES],
            dynamic_shapes=opened,
            optimize=False,
        )
    assert program is not None  # only the older exporter, which is not used, returns nothing
    model = program.model_proto
    _forget_origin(model)
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the exporter's remarks (torchvision is missing, its own deprecations), which are irrelevant
    here."""
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
    """Remove the exporter's notes on the file and line of every node: paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _cast_to_float32(tensor: TensorProto) -> onnx.NodeProto:
    """A node that gives the tensor in float32 under its name; the tensor itself is renamed."""
    name = tensor.name
    tensor.name = f"{name}.stored"
    return helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)


def _put_first(nodes: list[onnx.NodeProto], model: ModelProto) -> None:
    """Insert before all others, as a node may only read the results of earlier ones."""
    ordered = [*nodes, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(ordered)
