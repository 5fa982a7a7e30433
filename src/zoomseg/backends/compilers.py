"""Libraries that compile a network for the CPU from its ONNX graph: their availability, and a common
interface. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from zoomseg.backends.cpu import Channels, Network, Precision
from zoomseg.backends.onnxruntime_network import load as load_onnxruntime
from zoomseg.backends.openvino_network import load as load_openvino
from zoomseg.backends.openvino_network import pointwise_head as openvino_head
from zoomseg.core.errors import ZoomSegError
from zoomseg.core.tiling import PointwiseHead

Compiler: TypeAlias = Literal["openvino", "onnxruntime"]
COMPILERS: tuple[Compiler, ...] = ("openvino", "onnxruntime")
"""The fastest first: it is faster by half on a CPU without bfloat16, and four times with it."""


class BackendError(ZoomSegError):
    """No library can compute a network, or it refuses the network."""


def load(
    compiler: Compiler,
    graph: Path | bytes,
    precision: Precision = "fastest",
    threads: int | None = None,
    without_head: bool = False,
    channels: Channels | None = None,
) -> Network:
    """A network, compiled for this machine; arguments as in ``openvino_network.load``.

    Raises:
        BackendError: the library refuses the network.
        ModelError: it has other ``channels``.
    """
    with _refusals(compiler):
        match compiler:
            case "openvino":
                return load_openvino(graph, precision, threads, without_head, channels)
            case "onnxruntime":
                return load_onnxruntime(graph, threads, channels)


def pointwise_head(compiler: Compiler, graph: Path | bytes) -> PointwiseHead | None:
    """As ``openvino_network.pointwise_head``; None also if the library can only run whole graphs.

    Raises:
        BackendError: the library refuses the network.
    """
    if compiler != "openvino":
        return None
    with _refusals(compiler):
        return openvino_head(graph)


@contextmanager
def _refusals(compiler: Compiler) -> Iterator[None]:
    try:
        yield
    except ZoomSegError:
        raise
    except Exception as error:  # the libraries' own errors have no common base
        line = " ".join(str(error).split())[:160]
        other = next(name for name in COMPILERS if name != compiler)
        raise BackendError(f"{compiler} cannot load the network ({line}); try {other} instead") from error
