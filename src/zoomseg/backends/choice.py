"""Which backend computes a model's networks, and why. No torch, unless a GPU may be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from zoomseg.backends.compilers import COMPILERS, BackendError, Compiler
from zoomseg.backends.device import cuda_is_available
from zoomseg.core.errors import ModelError, quoted
from zoomseg.core.extras import installed
from zoomseg.io.bundle import Bundle

Backend: TypeAlias = Compiler | Literal["torch"]
BACKENDS: tuple[Backend, ...] = (*get_args(Compiler), "torch")


@dataclass(frozen=True)
class Choice:
    backend: Backend
    reason: str
    """For people: why this one."""


def choose(name: str, device: str, models: Sequence[Bundle]) -> Choice:
    """The backend that computes the networks of these models, which answer together.

    Args:
        name: ``auto`` or one of ``BACKENDS``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; whether it is there is not asked.

    Raises:
        BackendError: unknown, not installed, or it does not compute on this device.
        ModelError: it needs ONNX graphs, which a model lacks.
    """
    if name not in ("auto", *BACKENDS):
        raise BackendError(f"unknown backend '{quoted(name)}'; allowed: auto, {', '.join(BACKENDS)}")
    on_gpu = device.startswith("cuda") or (
        device == "auto" and name in ("auto", "torch") and cuda_is_available()
    )
    if name == "auto":
        return _fastest(on_gpu, models)
    if name == "torch":
        return _torch("it was asked for")
    if on_gpu:
        raise BackendError(f"backend '{name}' computes on the CPU; use --device cpu, or torch for '{device}'")
    compiler = next(compiler for compiler in COMPILERS if compiler == name)
    if not installed(compiler):
        raise BackendError(f"backend '{name}' is not installed; install it: pip install {name}")
    lacking = _without_graphs(models)
    if lacking is not None:
        raise ModelError(f"model {lacking} has no ONNX graphs, which backend '{name}' needs; use torch")
    return Choice(compiler, "it was asked for")


def _fastest(on_gpu: bool, models: Sequence[Bundle]) -> Choice:
    if on_gpu:
        return _torch("it computes on a GPU")
    lacking = _without_graphs(models)
    if lacking is not None:
        return _torch(f"model {lacking} has no ONNX graphs")
    for compiler in COMPILERS:
        if installed(compiler):
            return Choice(compiler, "the fastest of what is installed on a CPU")
    return _torch(f"neither {' nor '.join(COMPILERS)} is installed")


def _torch(reason: str) -> Choice:
    if not installed("torch"):
        others = "" if reason == "it was asked for" else f" ({reason})"
        instead = "openvino" if reason.startswith("neither") else "torch"
        raise BackendError(f"torch is needed{others}, and not installed; install: pip install {instead}")
    return Choice("torch", reason)


def _without_graphs(models: Sequence[Bundle]) -> str | None:
    """The first model of which a stage has no graph, as it is named to people."""
    for model in models:
        if any(stage.name not in model.graphs for stage in model.recipe.stages):
            return str(model.folder or f"'{model.recipe.name}'")
    return None
