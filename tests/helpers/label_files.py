"""Small label files and scans on disk, for tests of functions that read folders of them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
SHAPE = (16, 14, 10)
VALUES = {"liver": 6, "spleen": 1}


def box(start: tuple[int, int, int], stop: tuple[int, int, int]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


def organs(liver: tuple[slice, ...] | None, spleen: tuple[slice, ...] | None = None) -> np.ndarray:
    """File values with the given boxes filled."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for where, value in ((liver, VALUES["liver"]), (spleen, VALUES["spleen"])):
        if where is not None:
            labels[where] = value
    return labels


LIVER = box((2, 2, 2), (8, 8, 6))
SPLEEN = box((10, 9, 3), (14, 13, 8))


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)


def save_scan(path: Path, seed: int = 0) -> None:
    save(path, np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32))


def save_description(folder: Path, **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **VALUES}, **more}
    (folder / "dataset.json").write_text(json.dumps(data))
