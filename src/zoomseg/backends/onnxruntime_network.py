"""A network computed by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

from zoomseg.backends.cpu import Channels, Float32Array, Network, require_channels, usable_threads


def load(graph: Path | bytes, threads: int | None = None, channels: Channels | None = None) -> Network:
    """A network, prepared for this machine from its ONNX graph; always in float32, as the runtime's CPU
    kernels have no bfloat16.

    Args:
        graph, threads, channels: as in ``openvino_network.load``.

    Raises:
        ModelError: it has other channels.
        Exception: from ONNX Runtime, if it cannot read the graph; its errors have no common base.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_threads() if threads is None else threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs()[0].shape, session.get_outputs()[0].shape
    require_channels((inputs[1], outputs[1]), channels)

    def compute(inputs: Float32Array) -> Float32Array:
        out: Float32Array = session.run(None, {"inputs": inputs})[0]
        return out

    return compute
