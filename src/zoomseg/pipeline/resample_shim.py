"""TEMPORARY: what ``pipeline`` needs of ``core.resample`` and ``core.arrays`` for numpy arrays and tensors,
until they have it. ``contract`` and ``memory_order`` are as they can be moved there; the rest goes away."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from zoomseg.core import resample
from zoomseg.core.arrays import Array, namespace
from zoomseg.core.geometry import Grid

axiswise = resample._axiswise


def _tensor(data: Array) -> Any:
    return torch.from_numpy(data) if isinstance(data, np.ndarray) else data


def _like(found: Any, data: Array) -> Array:
    return found.numpy() if isinstance(data, np.ndarray) else found


def resample_data(data: Array, source: Grid, target: Grid, antialias: bool = True) -> Array:
    """``core.resample.resample_data``."""
    return _like(resample.resample_data(_tensor(data), source, target, antialias), data)


def nearest_index(data: Array, source: Grid, target: Grid) -> Array:
    """``core.resample.nearest_index``."""
    return _like(resample.nearest_index(_tensor(data), source, target), data)


def contract(data: Array, weights: Array, axis: int) -> Array:
    """Contract one axis of ``[C, A, B, D]`` with ``[out, in]`` weights."""
    xp = namespace(data)
    lead, trail = data.shape[:axis], data.shape[axis + 1 :]
    if math.prod(trail) == 1:
        out = xp.matmul(xp.reshape(data, (-1, data.shape[axis])), weights.T)
    else:
        flat = xp.reshape(data, (math.prod(lead), data.shape[axis], math.prod(trail)))
        out = xp.matmul(weights, flat)
    return xp.reshape(out, (*lead, weights.shape[0], *trail))


def memory_order(array: Array) -> list[int]:
    """The axes of an array as they lie in memory, slowest first. The standard has no word for it."""
    strides = array.strides if isinstance(array, np.ndarray) else array.stride()
    return sorted(range(len(strides)), key=lambda axis: -abs(strides[axis]))
