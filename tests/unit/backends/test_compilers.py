"""Which library computes, and what happens where none can."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from helpers.onnx_models import doubling
from zoomseg.backends import compilers
from zoomseg.backends.compilers import COMPILERS, BackendError, Compiler


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_network_computes(compiler: Compiler) -> None:
    network = compilers.load(compiler, doubling(), "float32")
    for start in (0, 5):
        inputs = np.arange(start, start + 8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
        assert np.array_equal(network(inputs), 2 * inputs)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_network_that_is_none(compiler: Compiler) -> None:
    (other,) = set(COMPILERS) - {compiler}
    with pytest.raises(BackendError, match=f"{compiler} cannot load the network .*; try {other}") as error:
        compilers.load(compiler, b"hello")
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
    assert compilers.choose(asked) == chosen


@pytest.mark.parametrize(("asked", "named"), [("auto", "openvino or onnxruntime"), ("openvino", "openvino")])
def test_nothing_installed(asked: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match=f"^{named} is needed .* pip install openvino$"):
        compilers.choose(asked)
