"""Scans as small NIfTI files, valid and damaged."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from zoomseg.core.labels import LabelSchema

SHAPE = (5, 6, 7)
SCHEMA = LabelSchema(("liver", "spleen"), (7, 300))


def oblique(spacing: tuple[float, float, float] = (1.5, 2.0, 3.0)) -> np.ndarray:
    """Rotated by 20 and 35 degrees, with a negative determinant, as from scanners."""
    a, b = np.deg2rad([20, 35])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = (12.25, -80.5, 33.0)
    return affine


def noise(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype), path)
    return path


def with_header_bytes(path: Path, offset: int, data: bytes) -> Path:
    """Overwrite bytes of a ``.nii.gz`` header, past any library's checks."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def label_values() -> np.ndarray:
    values = np.zeros(SHAPE, dtype=np.int16)
    values[1, 2, 3], values[4, 5, 6] = 7, 300
    return values
