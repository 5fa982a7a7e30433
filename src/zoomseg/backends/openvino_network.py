"""A network that OpenVINO computes on the CPU."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from zoomseg.backends.cpu import FloatArray, Network, Precision, usable_threads

if TYPE_CHECKING:
    import openvino


def load(graph: Path | bytes, precision: Precision = "fastest", threads: int | None = None) -> Network:
    """A network, compiled for this machine from its ONNX graph.

    Shapes stay open: one compiled network takes any batch and tile, as fast as one compiled for a single
    shape, and compiling takes so little (0.1 to 0.2 s) that a cache on disk saves less than 0.1 s
    (docs/decisions/0018-networks-without-torch.md).

    Args:
        graph: a file, as graphs with weights outside name these by a path relative to it; or the content.
        threads: how many to compute with; None: as many as this process may use.

    Raises:
        Exception: what OpenVINO says of a graph that it cannot read; its errors share no base.
    """
    settings: dict[str, str | int] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_threads() if threads is None else threads,
    }
    if precision == "float32":  # otherwise bfloat16, where the CPU has it
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    core = _core()
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()

    def compute(inputs: FloatArray) -> FloatArray:
        # Not copied: of a hundred classes a tile's answer takes a gigabyte.
        out: FloatArray = request.infer({0: inputs}, share_outputs=True)[0]
        return out

    return compute


@functools.cache
def _core() -> openvino.Core:
    """One for the process. OpenVINO's CPU plugin gives signal handlers a stack of its own as long as it
    lives; of several that go in the order in which they came, the stack that is left is no memory any more,
    and the next signal (Ctrl-C) ends the process with a segmentation fault."""
    import openvino

    return openvino.Core()
