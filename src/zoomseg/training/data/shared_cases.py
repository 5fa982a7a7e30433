"""Training cases prepared by the first process and passed to the others through the cache.

The parts of a packed case that are kept in memory are written beside its arrays: tensors as safetensors, the
rest as JSON.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import numpy as safetensors
from safetensors import safe_open

from zoomseg.core.geometry import Box, Grid
from zoomseg.io.cache import ChunkedArray
from zoomseg.io.files import write_bytes_atomic, write_json_atomic
from zoomseg.training.data.packed_cases import PackedCase, ReferenceBox, StoredPrior
from zoomseg.training.data.preprocessing import PackedCases
from zoomseg.training.data.sampler import Candidates
from zoomseg.training.distributed import Processes

_META = "packed"


def shared_between_processes(
    prepare: Callable[[threading.Event], PackedCases],
    group: int,
    folder: Path,
    processes: Processes,
    stop: threading.Event,
) -> PackedCases:
    """A group's cases, prepared by the first process and read by the others, which need no validation cases.

    Raises:
        InterruptedTrainingError: ``stop`` was set.
        TrainingError: the first process ended.
    """
    names = folder / f"group-{group}.json"
    if not processes.first:
        processes.wait_for_first(stop)
        files: dict[str, list[str]] = json.loads(names.read_text(encoding="utf-8"))
        train = {stage: [read(folder / file) for file in of_stage] for stage, of_stage in files.items()}
        return PackedCases(train, dict.fromkeys(files, ()))
    made = prepare(stop)
    if processes.world > 1:
        write_json_atomic(names, _write_all(made.train, folder))
    processes.wait_for_first(stop)
    return made


def _write_all(packed: Mapping[str, Sequence[PackedCase]], folder: Path) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for stage, cases in packed.items():
        files[stage] = [case.image.path.with_suffix(".safetensors").name for case in cases]
        for case, file in zip(cases, files[stage], strict=True):
            write(case, folder / file)
    return files


def write(packed: PackedCase, path: Path) -> None:
    """Write a packed case beside its arrays.

    Raises:
        OutputError: cannot be written.
    """
    tensors: dict[str, npt.NDArray[Any]] = {
        "region": packed.candidates.region,
        "counts": packed.counts,
        "annotated": packed.annotated,
    }
    tensors |= {f"class/{c}": voxels for c, voxels in packed.candidates.classes.items()}
    meta = {
        "case": packed.case,
        "grid": _grid_to_json(packed.grid),
        "box": [packed.box.start, packed.box.stop],
        "image": packed.image.path.name,
        "labels": packed.labels.path.name,
        "priors": {
            name: [prior.data.path.name, _grid_to_json(prior.grid), prior.labels]
            for name, prior in packed.priors.items()
        },
        "reference": _reference_to_json(packed.reference),
    }
    content = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    write_bytes_atomic(path, safetensors.save(content, metadata={_META: json.dumps(meta)}))


def read(path: Path) -> PackedCase:
    """Read a case that ``write`` wrote, and open its arrays."""
    with safe_open(path, framework="np") as file:
        meta = json.loads(file.metadata()[_META])
    tensors = safetensors.load_file(path)
    classes = {int(key.removeprefix("class/")): tensors[key] for key in tensors if key.startswith("class/")}
    priors = {
        name: StoredPrior(ChunkedArray.open(path.parent / file_name), _grid(grid), tuple(labels))
        for name, (file_name, grid, labels) in meta["priors"].items()
    }
    start, stop = meta["box"]
    return PackedCase(
        meta["case"],
        _grid(meta["grid"]),
        Box(tuple(start), tuple(stop)),
        ChunkedArray.open(path.parent / meta["image"]),
        ChunkedArray.open(path.parent / meta["labels"]),
        Candidates(tensors["region"], classes),
        tensors["counts"],
        tensors["annotated"],
        priors,
        _reference(meta["reference"]),
    )


def _reference_to_json(reference: ReferenceBox | None) -> list[Any] | None:
    if reference is None:
        return None
    return [_grid_to_json(reference.grid), [reference.box.start, reference.box.stop]]


def _reference(value: list[Any] | None) -> ReferenceBox | None:
    if value is None:
        return None
    grid, (start, stop) = value
    return ReferenceBox(_grid(grid), Box(tuple(start), tuple(stop)))


def _grid_to_json(grid: Grid) -> list[Any]:
    return [grid.shape, grid.affine.tolist()]


def _grid(value: list[Any]) -> Grid:
    shape, affine = value
    return Grid(tuple(shape), np.array(affine))
