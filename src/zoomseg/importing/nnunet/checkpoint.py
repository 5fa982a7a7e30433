"""``checkpoint_final.pth``: a pickle, of which nothing is executed.

Torch's weights-only loader creates tensors and plain values, and refuses everything else. nnU-Net's training
log also contains numpy's numbers; only their constructors are allowed in addition.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoomseg.core.errors import ModelError, ZoomSegError, quoted
from zoomseg.core.memory import format_bytes, require_ram

_SCALAR = np.float64(0).__reduce__()[0]
"""Numpy's constructor of a number from its type and bytes."""
_NUMBER_TYPES = (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)
ALLOWED = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in _NUMBER_TYPES),
]


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint that are relevant for prediction."""

    weights: Mapping[str, Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]
    """Axes of the network's input that were mirrored in training, and may be in prediction."""


def read(path: Path) -> Checkpoint:
    """A checkpoint, read by torch's weights-only loader.

    Raises:
        ModelError: it contains executable content, is damaged, or is not a checkpoint of nnU-Net v2.
        MemoryLimitError: it does not fit into the free memory.
    """
    try:
        _check_records(path)
        size = path.stat().st_size
        require_ram(size, f"{path}: loading {format_bytes(size)}")
        with torch.serialization.safe_globals(ALLOWED):  # type: ignore[arg-type]
            data = torch.load(path, map_location="cpu", weights_only=True)
    except ZoomSegError:
        raise
    except UnpicklingError as error:
        raise ModelError(_refusal(path, error)) from None
    except Exception as error:  # on hostile bytes, the loader may raise any exception
        raise ModelError(f"{path} is damaged or no checkpoint ({quoted(error)}); copy it again") from None
    return _checked(path, data)


def _check_records(path: Path) -> None:
    """Refuse a file whose content is larger than itself. Torch stores its records uncompressed, one after the
    other; it would also inflate others, to a thousand times their size, before anything is checked.

    Raises:
        ModelError: it is such a file.
    """
    if not zipfile.is_zipfile(path):  # written by an early version of torch
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    inflated = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if inflated or sum(record.file_size for record in records) > path.stat().st_size:
        raise ModelError(
            f"{path} is compressed, and torch never does that to a checkpoint; get the model from where you "
            "trust"
        )


def _refusal(path: Path, error: UnpicklingError) -> str:
    text = str(error)
    named = text.partition("GLOBAL ")[2].split(" ")[0] if "GLOBAL " in text else ""
    what = f"an object of {quoted(named)}" if named else "more than tensors and numbers"
    return (
        f"{path} holds {what}, which could execute anything and is not loaded; supported are checkpoints as "
        "nnU-Net v2 writes them: get the model from where you trust"
    )


def _checked(path: Path, data: Any) -> Checkpoint:
    if not isinstance(data, dict) or not isinstance(data.get("network_weights"), dict):
        raise ModelError(f"{path} is no checkpoint of nnU-Net v2: it has no network_weights")
    weights = data["network_weights"]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise ModelError(f"{path}: network_weights hold more than tensors; download the model again")
    arguments = data.get("init_args")
    configuration = arguments.get("configuration") if isinstance(arguments, dict) else None
    if not isinstance(configuration, str):
        raise ModelError(f"{path} names no configuration (init_args); supported: checkpoints of nnU-Net v2")
    axes = _mirror_axes(path, data.get("inference_allowed_mirroring_axes"))
    return Checkpoint(weights, configuration, str(data.get("trainer_name", "")), axes)


def _mirror_axes(path: Path, given: Any) -> tuple[int, ...]:
    """None: the trainer does not mirror."""
    if given is None:
        return ()
    axes = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not all(type(axis) is int and 0 <= axis <= 2 for axis in axes):
        raise ModelError(
            f"{path} allows mirroring along axes {quoted(given)}; expected some of 0, 1 and 2: "
            "download it again"
        )
    return axes
