"""Interpolation in numpy, with the weights of the package's own.

All grids of a scan are samplings along the scan's own axes, so each axis is interpolated for itself.
Beyond the source the edge voxel's value goes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Grid
from zoomseg.core.resample import TIE_TOLERANCE, linear_weights

FloatArray = npt.NDArray[np.float32]
AnyArray = npt.NDArray[Any]


def _steps(source: Grid, target: Grid) -> list[tuple[float, float]]:
    """Per axis ``(scale, offset)``: source index = scale * target index + offset."""
    matrix = target.to_index_of(source)
    return [(float(matrix[a, a]), float(matrix[a, 3])) for a in range(3)]


def linear(data: AnyArray, source: Grid, target: Grid, antialias: bool = True) -> FloatArray:
    """``[C, I, J, K]`` on ``source`` to float32 ``[C, *target.shape]``. Only voxels that count are read."""
    steps = _steps(source, target)
    weights, used = [], []
    for a, (scale, offset) in enumerate(steps):
        full = linear_weights(source.shape[a], target.shape[a], scale, offset, antialias)
        columns = np.flatnonzero(full.any(axis=0))
        used.append(slice(int(columns[0]), int(columns[-1]) + 1))
        weights.append(np.ascontiguousarray(full[:, used[a]]))
    out = np.ascontiguousarray(data[(slice(None), *used)], dtype=np.float32)
    # The axis that shrinks most goes first: less to carry through the others.
    for a in sorted(range(3), key=lambda a: target.shape[a] / source.shape[a]):
        out = _contract(out, weights[a], a)
    return out


def _contract(data: FloatArray, weights: FloatArray, axis: int) -> FloatArray:
    """One axis of contiguous ``[C, I, J, K]`` times ``[out, in]`` weights."""
    size_out, size_in = weights.shape
    if size_in == size_out and np.array_equal(weights, np.eye(size_in, dtype=np.float32)):
        return data
    c, i, j, k = data.shape
    out: FloatArray
    match axis:
        case 0:
            out = np.matmul(weights, data.reshape(c, i, j * k)).reshape(c, size_out, j, k)
        case 1:
            out = np.matmul(weights, data)
        case _:
            out = np.matmul(data.reshape(-1, k), weights.T).reshape(c, i, j, size_out)
    return out


def nearest(data: AnyArray, source: Grid, target: Grid, outside: bool | None = None) -> AnyArray:
    """``[I, J, K]`` taken from the nearest voxel, type kept; halfway points go up. Beyond the source the edge
    voxel's value, or ``outside``."""
    inside = []
    for a, (scale, offset) in enumerate(_steps(source, target)):
        at = scale * np.arange(target.shape[a]) + offset
        index = np.floor(at + (0.5 + TIE_TOLERANCE)).astype(np.int64)
        inside.append((index >= 0) & (index < source.shape[a]))
        data = data.take(np.clip(index, 0, source.shape[a] - 1), axis=a)
    if outside is not None:
        for a, keep in enumerate(inside):
            data[(slice(None),) * a + (~keep,)] = outside
    return data
