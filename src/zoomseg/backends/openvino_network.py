"""A network computed by OpenVINO on the CPU."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from zoomseg.backends.cpu import FloatArray, Network, Precision, usable_threads

if TYPE_CHECKING:
    import openvino


def load(graph: Path | bytes, precision: Precision = "fastest", threads: int | None = None) -> Network:
    """A network, compiled for this machine from its ONNX graph.

    Shapes stay dynamic: one compiled network accepts any batch and tile, as fast as one compiled for a single
    shape, and compiling takes so little time (0.1 to 0.2 s) that a cache on disk saves less than 0.1 s
    (docs/decisions/0018-networks-without-torch.md).

    Args:
        graph: a file, as graphs with external weights name these by a relative path; or the content.
        threads: number of threads; None: as many as this process may use.

    Raises:
        Exception: from OpenVINO, if it cannot read the graph; its errors have no common base.
    """
    settings: dict[str, str | int] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_threads() if threads is None else threads,
    }
    if precision == "float32":  # otherwise bfloat16, if the CPU supports it
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    core = _core()
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()

    def compute(inputs: FloatArray) -> FloatArray:
        out: FloatArray = request.infer({0: inputs})[0]
        return out

    return compute


@functools.cache
def _core() -> openvino.Core:
    """A single instance per process. OpenVINO's CPU plugin gives signal handlers a separate stack during its
    lifetime; if several are destroyed in the order of their creation, the remaining stack is invalid memory,
    and the next signal (Ctrl-C) ends the process with a segmentation fault."""
    import openvino

    return openvino.Core()
