"""Choice of the backend, with the reason, and refusals."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from helpers.untrained_models import untrained_bundle
from zoomseg.backends import choice
from zoomseg.backends.choice import Choice, choose
from zoomseg.backends.compilers import BackendError
from zoomseg.core.errors import ModelError, ZoomSegError
from zoomseg.io.bundle import NetworkFiles

BARE = untrained_bundle()
FILES = NetworkFiles(Path("a.onnx"), Path("a.safetensors"))
MODEL = dataclasses.replace(BARE, graphs={"coarse": FILES, "fine": FILES})
ALL = ("openvino", "onnxruntime", "torch")


def with_installed(monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], gpu: bool = False) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(choice, "cuda_is_available", lambda: gpu and "torch" in installed)


@pytest.mark.parametrize(
    ("installed", "name", "device", "gpu", "backend"),
    [
        (ALL, "auto", "cpu", True, "openvino"),
        (ALL, "auto", "auto", False, "openvino"),
        (ALL, "auto", "auto", True, "torch"),
        (ALL, "auto", "cuda:1", True, "torch"),
        (("onnxruntime", "torch"), "auto", "cpu", False, "onnxruntime"),
        (("torch",), "auto", "cpu", False, "torch"),
        (ALL, "onnxruntime", "cpu", False, "onnxruntime"),
        (ALL, "openvino", "auto", True, "openvino"),
        (ALL, "torch", "cpu", False, "torch"),
    ],
)
def test_choice(
    installed: tuple[str, ...],
    name: str,
    device: str,
    gpu: bool,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_installed(monkeypatch, installed, gpu)
    assert choose(name, device, [MODEL]) == Choice(backend)


@pytest.mark.parametrize(
    ("installed", "device"), [(("openvino",), "auto"), (ALL, "auto"), (("openvino",), "cpu")]
)
def test_a_gpu_that_lies_idle_for_want_of_torch_is_told_of(
    installed: tuple[str, ...], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_installed(monkeypatch, installed)
    monkeypatch.setattr(choice, "has_gpu_driver", lambda: True)
    chosen = choose("auto", device, [MODEL])
    told = installed == ("openvino",) and device == "auto"
    assert ("PyTorch, which would use it, is not installed: pip install '.[train]'" in chosen.note) == told
    assert chosen.backend == "openvino"


def test_a_model_without_graphs_is_computed_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with_installed(monkeypatch, ALL)
    half = dataclasses.replace(MODEL, graphs={"coarse": FILES}, folder=Path("m"))
    for models, named in (([BARE], "'tiny'"), ([MODEL, half], "m")):
        expected = Choice("torch")
        assert choose("auto", "cpu", models) == expected
        with pytest.raises(ModelError, match=f"model {named} has no ONNX graphs, which backend 'open"):
            choose("openvino", "cpu", models)


@pytest.mark.parametrize(
    ("installed", "name", "device", "message"),
    [
        (ALL, "tensorrt", "cpu", "unknown backend 'tensorrt'; allowed: auto, openvino, onnxruntime, torch"),
        (ALL, "openvino", "cuda", "backend 'openvino' computes on the CPU; use --device cpu"),
        (("torch",), "openvino", "cpu", "'openvino' is not installed; install it: pip install openvino"),
        (("openvino",), "onnxruntime", "cpu", "not installed; install it: pip install onnxruntime"),
        (
            ("openvino",),
            "torch",
            "cpu",
            r"torch is needed, and not installed; install: pip .* '\.\[train\]'",
        ),
        (("openvino",), "auto", "cuda", r"needed \(it computes on a GPU\), .*install: pip install '\."),
        ((), "auto", "cpu", "neither openvino nor onnxruntime is installed.*: pip install openvino$"),
    ],
)
def test_what_is_refused_says_what_to_install(
    installed: tuple[str, ...], name: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_installed(monkeypatch, installed)
    with pytest.raises(BackendError, match=message) as error:
        choose(name, device, [MODEL])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["auto", "openvino", "torch"])
def test_no_backend_takes_a_device_that_does_not_exist(name: str) -> None:
    with pytest.raises(ZoomSegError, match="unknown device 'tpu'; allowed: auto, cpu, cuda, cuda:N"):
        choose(name, "tpu", [MODEL])


def test_a_model_without_graphs_and_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with_installed(monkeypatch, ("openvino",))
    with pytest.raises(BackendError, match=r"torch is needed \(model 'tiny' has no ONNX graphs\), and not"):
        choose("auto", "cpu", [BARE])
