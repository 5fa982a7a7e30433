"""Choice of the backend that computes a model's networks, with the reason. Without torch, unless there may be
a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from zoomseg.backends.compilers import COMPILERS, BackendError, Compiler
from zoomseg.backends.device import check_name, cuda_is_available, has_gpu_driver
from zoomseg.core.errors import ModelError, quoted
from zoomseg.core.extras import how_to_install, installed
from zoomseg.io.bundle import Bundle

Backend: TypeAlias = Compiler | Literal["torch"]
BACKENDS: tuple[Backend, ...] = (*get_args(Compiler), "torch")


@dataclass(frozen=True)
class Choice:
    backend: Backend
    note: str = ""
    """Information for users of ``auto``."""


def choose(name: str, device: str, models: Sequence[Bundle]) -> Choice:
    """The backend that computes the networks of these models of an ensemble.

    Args:
        name: ``auto`` or one of ``BACKENDS``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; its existence is not checked.

    Raises:
        BackendError: unknown, not installed, or it does not support this device.
        ModelError: it needs ONNX graphs, which a model lacks.
        ZoomSegError: no device has such a name.
    """
    if name not in ("auto", *BACKENDS):
        raise BackendError(f"unknown backend '{quoted(name)}'; allowed: auto, {', '.join(BACKENDS)}")
    check_name(device)
    on_gpu = device.startswith("cuda") or (
        device == "auto" and name in ("auto", "torch") and cuda_is_available()
    )
    if name == "auto":
        return Choice(_fastest(on_gpu, models), _idle_gpu() if device == "auto" else "")
    if name == "torch":
        return Choice(_torch("it was requested"))
    if on_gpu:
        raise BackendError(f"backend '{name}' computes on the CPU; use --device cpu, or torch for '{device}'")
    compiler = next(compiler for compiler in COMPILERS if compiler == name)
    if not installed(compiler):
        raise BackendError(f"backend '{name}' is not installed; install it: pip install {name}")
    lacking = _without_graphs(models)
    if lacking is not None:
        raise ModelError(f"model {lacking} has no ONNX graphs, which backend '{name}' needs; use torch")
    return Choice(compiler)


def _fastest(on_gpu: bool, models: Sequence[Bundle]) -> Backend:
    if on_gpu:
        return _torch("it computes on a GPU")
    lacking = _without_graphs(models)
    if lacking is not None:
        return _torch(f"model {lacking} has no ONNX graphs")
    for compiler in COMPILERS:
        if installed(compiler):
            return compiler
    return _torch(f"neither {' nor '.join(COMPILERS)} is installed")


def _idle_gpu() -> str:
    """What is missing to use an existing GPU, if anything."""
    if installed("torch") or not has_gpu_driver():
        return ""
    lacking = "PyTorch, which would use it, is not installed"
    return f"a GPU seems to be present, but {lacking}: {how_to_install('torch')}"


def _torch(reason: str) -> Backend:
    if not installed("torch"):
        others = "" if reason == "it was requested" else f" ({reason})"
        instead = "pip install openvino" if reason.startswith("neither") else how_to_install("torch")
        raise BackendError(f"torch is needed{others}, and not installed; install: {instead}")
    return "torch"


def _without_graphs(models: Sequence[Bundle]) -> str | None:
    """The first model with a stage without a graph, by its name for users."""
    for model in models:
        if any(stage.name not in model.graphs for stage in model.recipe.stages):
            return str(model.folder or f"'{model.recipe.name}'")
    return None
