"""Checks of voxels for use by a network, and of files for a common grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Grid

LABEL_MAP_MAX_VALUES = 128
LABEL_MAP_EQUAL_NEIGHBOURS = 0.8
"""An "image" of few whole numbers, with at least this share of equal neighbours inside its objects, is a
label map."""

KEPT_TYPES = (np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int16))
"""Types in which voxels stay in memory; others become float32."""

Float32Array = npt.NDArray[np.float32]


def check_voxels(values: Float32Array, path: Path) -> None:
    """Refuse voxels that no network can use.

    Raises:
        ScanError: NaN or infinite voxels (counted), or all voxels equal.
    """
    low, high = values.min(), values.max()  # NaN propagates to both
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(values.size - np.isfinite(values).sum())
        what = "all voxels are" if bad == values.size else f"{bad} of {values.size} voxels are"
        raise ScanError(f"{path}: {what} NaN or infinite; repair it, a data set with 'zoomseg check --fix'")
    if low == high:
        raise ScanError(f"{path}: constant image, every voxel is {float(low):g}")


def check_scan(channels: Sequence[tuple[Float32Array, Path]]) -> None:
    """Refuse channels ``[I, J, K]``, each with its file, that are not those of a scan.

    Raises:
        ScanError: as ``check_voxels``, or all are label maps.
    """
    for values, path in channels:
        check_voxels(values, path)
    if all(looks_like_labels(values) for values, _ in channels):
        raise ScanError(f"{channels[0][1]}: looks like a label map, not like a scan; give the image itself")


def check_same_grid(first: Grid, second: Grid, first_path: Path, second_path: Path) -> None:
    """Refuse two files of one case that are not on one grid.

    Raises:
        ScanError: shapes differ, or voxel centres are farther apart than ``GEOMETRY_TOLERANCE_VOX``.
    """
    if first.shape != second.shape:
        raise ScanError(f"{second_path}: shape {second.shape} but {first_path.name} has {first.shape}")
    if not first.same_as(second):
        distance = first.distance_mm(second)
        raise ScanError(f"{second_path}: is up to {distance:.3g} mm off the grid of {first_path.name}")


def looks_like_labels(values: Float32Array) -> bool:
    """Whether an "image" ``[I, J, K]`` is actually a label map: few whole numbers from 0 up, in patches."""
    if values.min() != 0 or values.max() > 65535:
        return False
    sample = values[:: max(1, values.shape[0] // 32)]  # a few slices are enough to recognise a real scan
    if not (sample == np.floor(sample)).all() or np.unique(sample).size > LABEL_MAP_MAX_VALUES:
        return False
    if _several(values) > LABEL_MAP_MAX_VALUES:
        return False
    planes = values.transpose(np.argsort(values.strides)[::-1])  # in memory order
    pairs = equal = 0
    for n, plane in enumerate(planes):  # as a whole it would take several times the scan's memory
        across = [(planes[n - 1], plane)] if n else []
        for here, following in (*across, (plane[:-1], plane[1:]), (plane[:, :-1], plane[:, 1:])):
            inside = (here != 0) & (following != 0)
            pairs += int(inside.sum())
            equal += int((inside & (here == following)).sum())
    return pairs > 0 and equal / pairs > LABEL_MAP_EQUAL_NEIGHBOURS


def _several(values: Float32Array) -> int:
    """The number of different values, up to one more than a label map can have."""
    found: set[float] = set()
    for plane in values.transpose(np.argsort(values.strides)[::-1]):
        found.update(np.unique(plane).tolist())
        if len(found) > LABEL_MAP_MAX_VALUES:
            break
    return len(found)
