"""A network computed by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

from zoomseg.backends.cpu import Float32Array, Network, usable_threads


def load(graph: Path | bytes, threads: int | None = None) -> Network:
    """A network, prepared for this machine from its ONNX graph; always in float32, as the runtime's CPU
    kernels have no bfloat16.

    Args:
        graph, threads: as in ``openvino_network.load``.

    Raises:
        Exception: from ONNX Runtime, if it cannot read the graph; its errors have no common base.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_threads() if threads is None else threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def compute(inputs: Float32Array) -> Float32Array:
        out: Float32Array = session.run(None, {"inputs": inputs})[0]
        return out

    return compute
