"""Which runtime computes, and what happens where none can."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
from onnx import TensorProto, helper

from zoomseg.export.runner import engines
from zoomseg.export.runner.engines import ENGINES, EngineError


def doubling() -> bytes:
    """A network that doubles its input."""
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["inputs", "inputs"], ["probabilities"])],
            "doubling",
            [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, [1, 1, 2, 2, 2])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 1, 2, 2, 2])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    content: bytes = made.SerializeToString()
    return content


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_computes(engine: str) -> None:
    network = engines.load(engine, doubling(), "float32")
    for start in (0, 5):
        inputs = np.arange(start, start + 8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
        assert np.array_equal(network(inputs), 2 * inputs)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_that_is_none(engine: str) -> None:
    with pytest.raises(EngineError, match=f"{engine} cannot load the network") as error:
        engines.load(engine, b"hello")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("installed", "asked", "chosen"),
    [
        (("openvino", "onnxruntime"), "auto", "openvino"),
        (("onnxruntime",), "auto", "onnxruntime"),
        (("openvino", "onnxruntime"), "onnxruntime", "onnxruntime"),
    ],
)
def test_choice(installed: tuple[str, ...], asked: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert engines.choose(asked) == chosen


@pytest.mark.parametrize(("asked", "named"), [("auto", "openvino or onnxruntime"), ("openvino", "openvino")])
def test_nothing_installed(asked: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=f"^{named} is needed .* pip install openvino$"):
        engines.choose(asked)


def test_threads_are_limited_only_where_the_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for allowed, threads in ((set(range(3)), 3), (set(range(8)), 0)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=allowed: cores, raising=False)
        assert engines._threads() == threads
