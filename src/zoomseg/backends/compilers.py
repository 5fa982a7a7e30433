"""Libraries that compile a network for the CPU from its ONNX graph: which is there, and one way to call
them all. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from zoomseg.backends.cpu import Network, Precision
from zoomseg.backends.onnxruntime_network import load as load_onnxruntime
from zoomseg.backends.openvino_network import load as load_openvino
from zoomseg.backends.openvino_network import pointwise_head as openvino_head
from zoomseg.core.errors import ZoomSegError
from zoomseg.core.tiling import PointwiseHead

Compiler: TypeAlias = Literal["openvino", "onnxruntime"]
COMPILERS: tuple[Compiler, ...] = ("openvino", "onnxruntime")
"""Faster first: on a CPU without bfloat16 by half, on one with it four times."""


class BackendError(ZoomSegError):
    """Nothing is there that could compute a network, or it refuses the network."""


def load(
    compiler: Compiler,
    graph: Path | bytes,
    precision: Precision = "fastest",
    threads: int | None = None,
    without_head: bool = False,
) -> Network:
    """A network, compiled for this machine; arguments as in ``openvino_network.load``.

    Raises:
        BackendError: the library refuses the network.
    """
    with _refusals(compiler):
        match compiler:
            case "openvino":
                return load_openvino(graph, precision, threads, without_head)
            case "onnxruntime":
                return load_onnxruntime(graph, threads)


def pointwise_head(compiler: Compiler, graph: Path | bytes) -> PointwiseHead | None:
    """As ``openvino_network.pointwise_head``; None also where the library computes graphs only as a whole.

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
    except Exception as error:  # the libraries' own errors share no base
        line = " ".join(str(error).split())[:160]
        other = next(name for name in COMPILERS if name != compiler)
        raise BackendError(f"{compiler} cannot load the network ({line}); try {other} instead") from error
