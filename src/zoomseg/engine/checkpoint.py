"""A training run's state on disk: safetensors and JSON, written beside and renamed, so that a kill at
any moment leaves the last complete state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from zoomseg.core.errors import TrainingError
from zoomseg.io.files import parse_json, write_bytes_atomic

_META = "training"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the unit in training, steps and seconds spent in it."""

    unit: int
    step: int
    elapsed: float
    """Seconds of training in this unit."""
    spent: float
    """Seconds of the whole run before this unit's first step."""
    fingerprint: str
    """Hash of recipe, cases and seed: a run is only resumed as itself."""


def save(
    path: Path,
    progress: Progress,
    modules: Mapping[str, nn.Module],
    averaged: Mapping[str, Mapping[str, Tensor]],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write everything that a resumed run needs to go on as if nothing had happened.

    Raises:
        OutputError: cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for stage, module in modules.items():
        for key, value in module.state_dict().items():
            tensors[f"last/{stage}/{key}"] = value
    for stage, state in averaged.items():
        for key, value in state.items():
            tensors[f"averaged/{stage}/{key}"] = value
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimiser/{index}/{key}"] = torch.as_tensor(value)
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    # As bytes: what safetensors says of a full disk is no OSError, and its files are private.
    content = safetensors.save(tensors, metadata={_META: json.dumps(asdict(progress))})
    write_bytes_atomic(path, content)


def read_progress(path: Path) -> Progress:
    """Only the progress, without the tensors.

    Raises:
        TrainingError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = parse_json((file.metadata() or {})[_META])
        return Progress(
            int(meta["unit"]),
            int(meta["step"]),
            float(meta["elapsed"]),
            float(meta["spent"]),
            str(meta["fingerprint"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        message = f"checkpoint {path} cannot be read ({error}); train anew without --resume"
        raise TrainingError(message) from error


def restore(
    path: Path,
    modules: Mapping[str, nn.Module],
    averaged: Mapping[str, dict[str, Tensor]],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Load a state into live objects, in place.

    Raises:
        TrainingError: damaged, or of other networks.
    """
    try:
        tensors = safetensors.load_file(path)
        for stage, module in modules.items():
            module.load_state_dict(_under(tensors, f"last/{stage}/"))
        for stage, state in averaged.items():
            for key, value in _under(tensors, f"averaged/{stage}/").items():
                state[key].copy_(value)
        groups = optimiser.state_dict()["param_groups"]
        state_of: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimiser/").items():
            index, name = key.split("/", 1)
            state_of.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({"state": state_of, "param_groups": groups})
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        detail = " ".join(str(error).split())[:200]
        raise TrainingError(f"checkpoint {path} does not fit this recipe ({detail})") from error


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
