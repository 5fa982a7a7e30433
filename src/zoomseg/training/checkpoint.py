"""A training run's state on disk: safetensors and JSON, written under another name and renamed, so that the
last complete state survives a kill at any moment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from zoomseg.core.errors import TrainingError
from zoomseg.io.files import reason_of, write_bytes_atomic
from zoomseg.io.manifests import first_problem

_META = "training"
_STEP = "step"
_STATE: Mapping[type, set[str]] = {
    torch.optim.AdamW: {_STEP, "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}
"""State of each optimiser per parameter."""

_NEVER_NEGATIVE = (_STEP, "exp_avg_sq")
"""Those that cannot be negative: counts, and means of squares."""


MAX_SECONDS = 1e10
"""Three hundred years."""

Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run: the current group, and the steps and seconds spent in it."""

    group: Annotated[int, Field(ge=0, le=2**20)]
    step: Annotated[int, Field(ge=0, le=2**40)]
    elapsed: Seconds
    """Seconds of training in this group."""
    spent: Seconds
    """Seconds of the whole run before this group's first step."""
    fingerprint: str
    """Hash of recipe, cases and seed: only the same run can be resumed."""


_PROGRESS = TypeAdapter(TrainingProgress)


def save(
    path: Path,
    progress: TrainingProgress,
    modules: Mapping[str, nn.Module],
    ema_weights: Mapping[str, Mapping[str, Tensor]],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write everything that a resumed run needs to continue exactly as without interruption.

    Raises:
        TrainingError: a value is not finite; the earlier checkpoint stays.
        OutputError: the checkpoint cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for stage, module in modules.items():
        for key, value in module.state_dict().items():
            tensors[f"last/{stage}/{key}"] = value
    for stage, state in ema_weights.items():
        for key, value in state.items():
            tensors[f"averaged/{stage}/{key}"] = value
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimiser/{index}/{key}"] = torch.as_tensor(value)
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    wrong = _not_finite(tensors)
    if wrong is not None:
        raise TrainingError(
            f"the training has diverged ({wrong} is not finite); {path} holds the state before that; lower "
            "the learning rate"
        )
    # As bytes: on a full disk, safetensors does not raise an OSError, and its files are private.
    content = safetensors.save(tensors, metadata={_META: json.dumps(asdict(progress))})
    write_bytes_atomic(path, content)


def read_progress(path: Path) -> TrainingProgress:
    """Read only the progress, without the tensors.

    Raises:
        TrainingError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _PROGRESS.validate_json((file.metadata() or {})[_META], strict=True)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else error
        message = f"checkpoint {path} cannot be read ({reason}); train again without --resume"
        raise TrainingError(message) from error


def restore(
    path: Path,
    modules: Mapping[str, nn.Module],
    ema_weights: Mapping[str, dict[str, Tensor]],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Load a state into existing objects, in place.

    Raises:
        TrainingError: damaged, or of other networks.
    """
    try:
        tensors = safetensors.load_file(path)
        wrong = _not_finite(tensors)
        if wrong is not None:
            raise ValueError(f"{wrong} is not finite")
        for stage, module in modules.items():
            module.load_state_dict(_under(tensors, f"last/{stage}/"))
        for stage, state in ema_weights.items():
            for key, value in _under(tensors, f"averaged/{stage}/").items():
                state[key].copy_(value)
        groups = optimiser.state_dict()["param_groups"]
        state_of: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimiser/").items():
            index, name = key.split("/", 1)
            state_of.setdefault(int(index), {})[name] = value
        _check_state(state_of, optimiser)
        optimiser.load_state_dict({"state": _laid_out(state_of, optimiser), "param_groups": groups})
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(f"checkpoint {path} does not fit this recipe ({reason_of(error)})") from error


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with a value that is not finite."""
    return next((key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)


def _check_state(state_of: Mapping[int, Mapping[str, Tensor]], optimiser: torch.optim.Optimizer) -> None:
    """Refuse a state with which only the optimiser's next step would fail: for parameters that it does not
    have, with other names, of other shapes, or with negative values where these are impossible.

    Raises:
        ValueError: names the problem.
    """
    names, parameters = _STATE[type(optimiser)], _parameters(optimiser)
    for index, state in state_of.items():
        if not 0 <= index < len(parameters) or state.keys() != names:
            raise ValueError(f"optimiser/{index} is not of this optimiser")
        for name, tensor in state.items():
            if tensor.shape != (() if name == _STEP else parameters[index].shape):
                raise ValueError(f"optimiser/{index}/{name} has shape {list(tensor.shape)}")
            if name in _NEVER_NEGATIVE and bool((tensor < 0).any()):
                raise ValueError(f"optimiser/{index}/{name} is negative")


def _laid_out(
    state_of: Mapping[int, Mapping[str, Tensor]], optimiser: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """The state with each tensor in its parameter's memory layout: torch's fused step pairs their elements by
    position in memory, whatever the strides (torch 2.13), and a checkpoint stores no strides."""
    parameters = _parameters(optimiser)
    return {
        index: {
            name: tensor if name == _STEP else torch.empty_like(parameters[index]).copy_(tensor)
            for name, tensor in state.items()
        }
        for index, state in state_of.items()
    }


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
