"""SHA-256 digests of inputs and results: equal digests mean equal content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from zoomseg.core.arrays import AnyNumpy
from zoomseg.io.bundle import ATLASES, ATLASES_MANIFEST, Bundle
from zoomseg.io.calibration import Calibration
from zoomseg.io.scans import ScanInput, source_files
from zoomseg.io.training_domain import TrainingDomain

_CALIBRATION: TypeAdapter[Calibration | None] = TypeAdapter(Calibration | None)
_DOMAIN: TypeAdapter[TrainingDomain | None] = TypeAdapter(TrainingDomain | None)


def of_files(files: Iterable[Path]) -> str:
    """Digest of the contents of files, one after the other; their names do not count.

    Raises:
        OSError: one cannot be read, or is not a regular file.
    """
    parts = hashlib.sha256()
    for path in files:
        if not path.is_file():  # a pipe would block forever
            raise FileNotFoundError(f"{path}: no such file")
        with path.open("rb") as file:
            parts.update(hashlib.file_digest(file, "sha256").digest())
    return parts.hexdigest()


def of_scan(scan: ScanInput) -> str:
    """Digest of all files of a scan.

    Raises:
        OSError: one cannot be read.
        ScanError: a header that should name the file of its voxels cannot be read.
    """
    return of_files(source_files(scan))


def of_json(value: object) -> str:
    """Digest of a value as JSON; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def of_models(models: Iterable[Bundle]) -> str:
    """Digest of the models of an ensemble."""
    return of_json([of_model(model) for model in models])


def of_model(model: Bundle) -> str:
    """Digest of the parts of a model that determine its predictions, except the recipe: weights, labels,
    channels, the calibration of the confidence, and the atlases in its folder, if there are any.

    Raises:
        OSError: the list of the atlases cannot be read.
    """
    schema = model.schema
    return of_json(
        {
            **_atlases_of(model),
            "weights": {stage: _of_arrays(arrays) for stage, arrays in model.weights.items()},
            "labels": [schema.names, schema.values, {k: list(v) for k, v in schema.groups.items()}],
            "channels": model.channel_names,
            "calibration": _CALIBRATION.dump_python(model.calibration, mode="json"),
            "domain": _DOMAIN.dump_python(model.domain, mode="json"),
        }
    )


def _atlases_of(model: Bundle) -> dict[str, str]:
    """The digest of the atlases in a model's folder, if there are any; their manifest contains that of their
    voxels."""
    manifest = None if model.folder is None else model.folder / ATLASES / ATLASES_MANIFEST
    return {} if manifest is None or not manifest.is_file() else {"atlases": of_files([manifest])}


def _of_arrays(arrays: Mapping[str, AnyNumpy]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.ndim else array.tobytes())
    return digest.hexdigest()
