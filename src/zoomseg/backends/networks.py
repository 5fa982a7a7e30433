"""A model's networks as callables, with the chosen backend."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoomseg.backends import compilers, graph_check
from zoomseg.backends.choice import Backend
from zoomseg.backends.compilers import Compiler
from zoomseg.backends.cpu import Channels, Precision
from zoomseg.backends.device import Device
from zoomseg.backends.network_costs import CountedTile, NetworkCosts
from zoomseg.core.arrays import Array, namespace
from zoomseg.core.errors import ModelError
from zoomseg.core.tiling import PointwiseHead, Tile, logarithms, normalised
from zoomseg.io.bundle import Bundle, NetworkFiles
from zoomseg.io.files import read_file
from zoomseg.pipeline.inputs import network_channels
from zoomseg.pipeline.sliding_window import SplitNetwork, StageNetwork
from zoomseg.recipe.spec import MeanKind, Stage


def networks_of(
    models: Sequence[Bundle],
    backend: Backend,
    device: Device,
    threads: int | None = None,
) -> dict[str, StageNetwork]:
    """The network of every stage of the models' common recipe; for several models, their mean probabilities,
    and for a stage with ``mirror_axes`` also averaged over tiles mirrored along these. Compiled networks
    accept and return numpy arrays; torch's return the type of their input.

    Args:
        device: for torch; its precision applies to all.
        threads: of compiled networks; None: as many as this process may use.

    Raises:
        BackendError: the backend refuses a network.
        ModelError: a model lacks the graph of a stage, or the graph reads other files than its own weights;
            or weights do not fit the network.
    """
    return {
        stage.name: _of_stage(models, stage, backend, device, threads) for stage in models[0].recipe.stages
    }


def _of_stage(
    models: Sequence[Bundle], stage: Stage, backend: Backend, device: Device, threads: int | None
) -> StageNetwork:
    axes = mirror_axes(stage)
    if backend == "torch":
        from zoomseg.backends.torch_networks import as_network, ready_network

        modules = [ready_network(model, stage.name, device) for model in models]
        return mirrored(mean([as_network(own, device) for own in modules], stage.mean), axes, stage.mean)
    precision: Precision = "fastest" if device.bfloat16 else "float32"

    graphs = [_graph(model, stage.name, backend) for model in models]
    head = _common_head(graphs, stage, backend)

    def load(model: Bundle, graph: Path) -> StageNetwork:
        channels = _channels(model, stage)
        try:
            network = compilers.load(backend, graph, precision, threads, head is not None, channels)
        except ModelError as error:
            raise _unusable(model, stage.name, error) from error
        return lambda x_BCIJK, tiles: network(np.ascontiguousarray(x_BCIJK))

    compiled = [load(model, graph) for model, graph in zip(models, graphs, strict=True)]
    if head is not None:
        return SplitNetwork(mirrored(_concatenated(compiled), axes), head)
    return mirrored(mean(compiled, stage.mean), axes, stage.mean)


def _common_head(graphs: Sequence[Path], stage: Stage, backend: Compiler) -> PointwiseHead | None:
    """The last layers of all networks, combined into one that is computed after their outputs were fused;
    None if this saves nothing, or if they have different classes."""
    if stage.mean != "geometric":
        return None
    heads = [compilers.pointwise_head(backend, graph) for graph in graphs]
    found = [head for head in heads if head is not None]
    if len(found) < len(heads) or len({head.classes for head in found}) > 1:
        return None
    if sum(head.features for head in found) >= found[0].classes:
        return None
    weight = np.concatenate([head.weight for head in found], axis=1) / len(found)
    bias = np.mean([head.bias for head in found], axis=0)
    return PointwiseHead(weight.astype(np.float32), bias.astype(np.float32))


def _concatenated(bodies: Sequence[StageNetwork]) -> StageNetwork:
    """All networks' output channels, concatenated."""
    if len(bodies) == 1:
        return bodies[0]
    return lambda x_BCIJK, tiles: np.concatenate([body(x_BCIJK, tiles) for body in bodies], axis=1)


def costs_of(model: Bundle, backend: Backend) -> dict[str, NetworkCosts]:
    """Costs of a tile for every stage's network (see ``backends.network_costs``)."""
    return {stage.name: _costs(model, stage, backend) for stage in model.recipe.stages}


def _costs(model: Bundle, stage: Stage, backend: Backend) -> NetworkCosts:
    if backend != "torch":
        files = model.graphs[stage.name]
        return CountedTile(stage.grid.tile, files.flops, files.activation_bytes)
    from zoomseg.backends.torch_costs import TorchCosts
    from zoomseg.backends.torch_networks import weightless

    return TorchCosts(lambda: weightless(model, stage).eval(), _channels(model, stage)[0])


def _channels(model: Bundle, stage: Stage) -> Channels:
    return network_channels(stage, model.recipe, model.schema, len(model.channel_names))


def mean(networks: Sequence[StageNetwork], kind: MeanKind = "arithmetic") -> StageNetwork:
    """The ensemble of several networks: the mean of their probabilities, of the stage's kind."""
    first, *others = networks
    if not others:
        return first

    def compute(x_BCIJK: Array, tiles: tuple[Tile, ...]) -> Array:
        if kind == "geometric":
            logs = sum(logarithms(network(x_BCIJK, tiles)) for network in networks) / len(networks)
            return namespace(logs).stack([normalised(one) for one in logs])
        # Copied, as others are added to it, and one of them may be the same network, mirrored.
        output = first(x_BCIJK, tiles)
        output = namespace(output).asarray(output, copy=True)
        for other in others:
            output += other(x_BCIJK, tiles)
        output /= len(networks)
        return output

    return compute


def mirror_axes(stage: Stage) -> tuple[int, ...]:
    """Axes along which a stage may be mirrored, by number."""
    return tuple("ijk".index(axis) for axis in stage.mirror_axes)


def mirrored(network: StageNetwork, axes: Sequence[int], kind: MeanKind = "arithmetic") -> StageNetwork:
    """The mean of a network's predictions for a tile and its mirror images along all subsets of ``axes``,
    mirrored back."""

    def seen(flipped: tuple[int, ...]) -> StageNetwork:
        if not flipped:
            return network

        def compute(x_BCIJK: Array, tiles: tuple[Tile, ...]) -> Array:
            xp = namespace(x_BCIJK)
            # Copied, as torch does not support numpy arrays with negative strides.
            image = xp.asarray(xp.flip(x_BCIJK, axis=flipped), copy=True)
            return xp.flip(network(image, tiles), axis=flipped)

        return compute

    subsets = itertools.chain.from_iterable(
        itertools.combinations([2 + a for a in axes], n) for n in range(len(axes) + 1)
    )
    return mean([seen(subset) for subset in subsets], kind)


def _graph(model: Bundle, stage: str, backend: Compiler) -> Path:
    files = model.graphs.get(stage)
    if files is None:
        raise ModelError(f"model {model.folder} has no ONNX graph of stage '{stage}', which {backend} needs")
    _check(files, model, stage)
    return files.graph


def _check(files: NetworkFiles, model: Bundle, stage: str) -> None:
    try:
        graph = read_file(files.graph, graph_check.LARGEST)
        graph_check.check(graph, files.weights.name, files.weights.stat().st_size)
    except (ValueError, OSError) as error:
        raise _unusable(model, stage, error) from error


def _unusable(model: Bundle, stage: str, error: Exception) -> ModelError:
    return ModelError(f"model {model.folder}, stage '{stage}': {error}; obtain it again")
