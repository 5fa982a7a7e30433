"""Runtimes that compute a network from its ONNX bytes, on the CPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Literal

from zoomseg.core.errors import ZoomSegError
from zoomseg.export.runner.resample import FloatArray

Network = Callable[[FloatArray], FloatArray]
"""Input ``[1, C, *tile]`` -> probabilities ``[1, classes, ...]``."""
Precision = Literal["fastest", "float32"]
ENGINES = ("openvino", "onnxruntime")
"""Faster first: on a CPU without bfloat16 by a third, on one with it three times (instance norm)."""


class EngineError(ZoomSegError):
    """No runtime is there, or it cannot run a network."""


def choose(name: str) -> str:
    """``name``, or for ``auto`` the first runtime that is installed.

    Raises:
        EngineError: it is not installed, or none is.
    """
    wanted = ENGINES if name == "auto" else (name,)
    found = [engine for engine in wanted if importlib.util.find_spec(engine) is not None]
    if not found:
        missing = " or ".join(wanted)
        raise EngineError(f"{missing} is needed to run the networks; install it: pip install {wanted[0]}")
    return found[0]


def load(engine: str, model: bytes, precision: Precision = "fastest") -> Network:
    """A network, compiled for this machine.

    Args:
        precision: ``fastest`` lets the runtime use bfloat16 where the CPU multiplies it natively.

    Raises:
        EngineError: the runtime refuses the network.
    """
    start = _openvino if engine == "openvino" else _onnxruntime
    try:
        return start(model, precision)
    except Exception as error:  # the runtimes' own errors share no base
        line = " ".join(str(error).split())[:160]
        raise EngineError(f"{engine} cannot load the network ({line}); try the other --engine") from error


def _threads() -> int:
    """Cores that this process may use where that is fewer than there are, else 0: the runtime's choice."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _openvino(model: bytes, precision: Precision) -> Network:
    import openvino

    settings: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": _threads()}
    if precision == "float32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()

    def compute(inputs: FloatArray) -> FloatArray:
        out: FloatArray = request.infer({0: inputs})[0]
        return out

    return compute


def _onnxruntime(model: bytes, precision: Precision) -> Network:
    """Always in float32: its CPU kernels have no bfloat16."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def compute(inputs: FloatArray) -> FloatArray:
        out: FloatArray = session.run(None, {"inputs": inputs})[0]
        return out

    return compute
