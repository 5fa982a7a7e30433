"""The only interpolation in the package. Torch, differentiable in the data, half-voxel exact.

Two paths give the same answer: grids whose axes are parallel are resampled axis by axis with small
weight matrices (fast, antialiased when shrinking); anything else (oblique grids, deformations) is
sampled point by point. Beyond the source the nearest voxel's value goes on.

Shapes: C channels, I J K voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoomseg.core.geometry import Box, FloatArray, Grid
from zoomseg.core.volume import LabelMap, Volume

PARALLEL_TOLERANCE = 1e-4
"""Axes count as parallel if an off-axis step across the whole target moves less than this many voxels."""


@dataclass(frozen=True)
class _Axiswise:
    """Target axis ``a`` runs along source axis ``order[a]``: source = scale[a] * target + offset[a]."""

    order: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


def _axiswise(matrix: FloatArray, shape: tuple[int, int, int]) -> _Axiswise | None:
    """Decompose a target-to-source index matrix into per-axis maps; None if it rotates or shears."""
    linear = matrix[:3, :3]
    reach = np.abs(linear) * np.array(shape)
    order: list[int] = []
    for a in range(3):
        source = int(np.argmax(np.abs(linear[:, a])))
        others = [s for s in range(3) if s != source]
        if source in order or reach[others, a].max() > PARALLEL_TOLERANCE:
            return None
        order.append(source)
    scale = [float(linear[order[a], a]) for a in range(3)]
    offset = [float(matrix[order[a], 3]) for a in range(3)]
    return _Axiswise((order[0], order[1], order[2]), tuple(scale), tuple(offset))  # type: ignore[arg-type]


def linear_weights(size_in: int, size_out: int, scale: float, offset: float, antialias: bool) -> Tensor:
    """``[size_out, size_in]`` float32 rows that sum to one: linear interpolation at
    ``scale * n + offset``, widened to a triangle of ``|scale|`` voxels when shrinking.

    Indices beyond the source count for its edge voxel.
    """
    centre = scale * np.arange(size_out) + offset
    centre = np.clip(centre, 0, size_in - 1)
    width = max(1.0, abs(scale)) if antialias else 1.0
    reach = int(np.ceil(width))
    taps = np.floor(centre)[:, None].astype(int) + np.arange(-reach, reach + 2)[None, :]
    weights = np.maximum(0.0, 1.0 - np.abs(taps - centre[:, None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    out = np.zeros((size_out, size_in))
    rows = np.repeat(np.arange(size_out), taps.shape[1])
    np.add.at(out, (rows, np.clip(taps, 0, size_in - 1).ravel()), weights.ravel())
    return torch.from_numpy(out.astype(np.float32))


def _apply_axis(data: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Contract one axis of ``[C, I, J, K]`` with ``[out, in]`` weights, reading only the rows in use."""
    used = torch.nonzero(weights.any(dim=0)).flatten()
    low, high = int(used[0]), int(used[-1]) + 1
    data = data.narrow(axis, low, high - low)
    weights = weights[:, low:high].to(data.device)
    if weights.shape[0] == weights.shape[1] and torch.equal(weights, torch.eye(len(weights), device=data.device)):
        return data
    return torch.movedim(torch.movedim(data, axis, -1) @ weights.T.to(data.dtype), -1, axis)


def resample_data(data: Tensor, source: Grid, target: Grid, antialias: bool = True) -> Tensor:
    """``[C, I, J, K]`` on ``source`` to ``[C, *target.shape]``, linear; differentiable in ``data``."""
    if source == target:
        return data
    matrix = target.to_index_of(source)
    axes = _axiswise(matrix, target.shape)
    if axes is None:
        return sample(data, affine_coordinates(matrix, target.shape).to(data.device), "linear")
    data = data.float() if not data.is_floating_point() else data
    # The axis that shrinks most goes first: less to carry through the others.
    ratio = [target.shape[a] / source.shape[axes.order[a]] for a in range(3)]
    for a in sorted(range(3), key=lambda a: ratio[a]):
        n_in = source.shape[axes.order[a]]
        weights = linear_weights(n_in, target.shape[a], axes.scale[a], axes.offset[a], antialias)
        data = _apply_axis(data, weights, 1 + axes.order[a])
    return data.permute(0, *(1 + s for s in axes.order)).contiguous()


def resample(volume: Volume, grid: Grid, antialias: bool = True) -> Volume:
    """A scan on another grid, linear (antialiased where voxels grow along parallel axes)."""
    return Volume(resample_data(volume.data, volume.grid, grid, antialias), grid)


def nearest_index(data: Tensor, source: Grid, target: Grid, outside: int | None = None) -> Tensor:
    """``[I, J, K]`` integers or bools taken from the nearest voxel; beyond the source the edge voxel's
    value, or ``outside``."""
    matrix = target.to_index_of(source)
    axes = _axiswise(matrix, target.shape)
    if axes is None:
        return sample(data[None], affine_coordinates(matrix, target.shape), "nearest", outside)[0]
    data = data.permute(*axes.order)
    inside: list[Tensor] = []
    for a in range(3):
        n = data.shape[a]
        index = torch.from_numpy(np.floor(axes.scale[a] * np.arange(target.shape[a]) + axes.offset[a] + 0.5))
        inside.append((index >= 0) & (index < n))
        data = data.index_select(a, index.clamp(0, n - 1).long())
    if outside is not None and not all(bool(i.all()) for i in inside):
        keep = inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
        data = torch.where(keep, data, torch.tensor(outside, dtype=data.dtype))
    return data.contiguous()


def resample_labels(labels: LabelMap, grid: Grid, outside: int | None = None) -> LabelMap:
    """A label map on another grid, nearest neighbour."""
    return LabelMap(nearest_index(labels.data, labels.grid, grid, outside), grid, labels.schema)


def affine_coordinates(matrix: FloatArray, shape: tuple[int, int, int]) -> Tensor:
    """Source indices ``[I, J, K, 3]`` of every target voxel under a target-to-source index matrix."""
    m = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
    i, j, k = (torch.arange(n, dtype=torch.float32) for n in shape)
    out = m[:3, 3] + i[:, None, None, None] * m[:3, 0]
    out = out + j[None, :, None, None] * m[:3, 1]
    return out + k[None, None, :, None] * m[:3, 2]


def coordinates_box(coordinates: Tensor, shape: tuple[int, int, int]) -> Box:
    """The voxels of a source of ``shape`` that sampling at ``coordinates [..., 3]`` reads."""
    flat = coordinates.reshape(-1, 3)
    low = flat.amin(dim=0).floor().long().tolist()
    high = flat.amax(dim=0).floor().long().tolist()
    start = [min(max(a, 0), n - 1) for a, n in zip(low, shape, strict=True)]
    stop = [min(max(b + 2, a + 1), n) for a, b, n in zip(start, high, shape, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def sample(data: Tensor, coordinates: Tensor, mode: str, outside: int | None = None) -> Tensor:
    """``[C, I, J, K]`` at fractional indices ``[A, B, D, 3]`` -> ``[C, A, B, D]``.

    ``mode`` is ``"linear"`` (float output) or ``"nearest"`` (dtype kept). Beyond the source the edge
    voxel's value goes on, unless ``outside`` gives one.
    """
    shape = data.shape[1:]
    if mode == "nearest":
        index = (coordinates + 0.5).floor().long()
        flat = torch.zeros(coordinates.shape[:-1], dtype=torch.long, device=data.device)
        inside = torch.ones(coordinates.shape[:-1], dtype=torch.bool, device=data.device)
        for a, n in enumerate(shape):
            inside &= (index[..., a] >= 0) & (index[..., a] < n)
            flat = flat * n + index[..., a].clamp(0, n - 1)
        out = data.reshape(data.shape[0], -1)[:, flat]
        return out if outside is None else torch.where(inside, out, torch.tensor(outside, dtype=data.dtype))
    data = data if data.is_floating_point() else data.float()
    # grid_sample wants (k, j, i) in [-1, 1] with -1 and 1 at the outer voxels' centres.
    sizes = torch.tensor([max(n - 1, 1) for n in shape], dtype=torch.float32, device=data.device)
    grid = (coordinates / sizes * 2 - 1).flip(-1)
    out = F.grid_sample(data[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=True)
    return out[0]
