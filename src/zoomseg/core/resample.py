"""The only interpolation in the package. Torch, differentiable in the data, half-voxel exact.

Two paths give the same answer: grids whose axes are parallel are resampled axis by axis with small
weight matrices (fast); anything else (oblique grids, deformations) is sampled point by point. Only the
first can widen its kernel when shrinking (``antialias``). Beyond the source the nearest voxel's value
goes on.

Shapes: C channels, I J K voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoomseg.core import weights as axis_weights
from zoomseg.core.arrays import Array, ascending
from zoomseg.core.geometry import Box, FloatArray, Grid
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.core.weights import TIE_TOLERANCE

PARALLEL_TOLERANCE = 1e-4
"""Axes count as parallel if an off-axis step across the whole target moves less than this many voxels."""

PIECE_VOXELS = 4_000_000
"""Larger data is changed and shrunk piece by piece, so that a scan never exists in float as a whole."""


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
    """``core.weights.linear_weights`` as a tensor."""
    return torch.from_numpy(axis_weights.linear_weights(size_in, size_out, scale, offset, antialias))


def _used(weights: Tensor) -> tuple[int, int]:
    """The range of source voxels that any row reads."""
    columns = torch.nonzero(weights.any(dim=0)).flatten()
    return int(columns[0]), int(columns[-1]) + 1


def _copies(weights: Tensor) -> bool:
    """Whether contracting with these weights changes nothing. Asked before they are on a GPU, which would
    have to finish all it has been given to answer."""
    return weights.shape[0] == weights.shape[1] and torch.equal(weights, torch.eye(weights.shape[1]))


def _contract(data: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Contract one axis of ``[C, A, B, D]`` with ``[out, in]`` weights."""
    lead, trail = data.shape[:axis], data.shape[axis + 1 :]
    flat = data.reshape(math.prod(lead), data.shape[axis], math.prod(trail))
    weights = weights.to(data.dtype)
    out = flat[..., 0] @ weights.T if flat.shape[2] == 1 else torch.matmul(weights, flat)
    return out.reshape(*lead, weights.shape[0], *trail)


def _by_axes(data: Tensor, weights: Mapping[int, Tensor], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Contract those axes of ``[C, A, B, D]`` that have weights, given in the order they lie in memory,
    slowest first. The axis that shrinks most goes first: less to carry through the others; but what is large
    enters in pieces along A, which then goes last."""
    order = sorted(weights, key=lambda a: weights[a].shape[0] / weights[a].shape[1])
    pieces = math.ceil(data.numel() / PIECE_VOXELS)
    if pieces == 1:
        data = change(data)
    else:
        order = [a for a in order if a != 0]
        parts = []
        for part in data.tensor_split(min(pieces, data.shape[1]), dim=1):
            part = change(part)
            for a in order:
                part = _contract(part, weights[a], 1 + a)
            parts.append(part)
        data, order = torch.cat(parts, dim=1), [0] if 0 in weights else []
    for a in order:
        data = _contract(data, weights[a], 1 + a)
    return data


def as_float(data: Tensor) -> Tensor:
    """Integers as float32; floats as they are."""
    return data if data.is_floating_point() and data.dtype != torch.float16 else data.float()


def resample_data(
    data: Array,
    source: Grid,
    target: Grid,
    antialias: bool = True,
    change: Callable[[Array], Array] = as_float,
) -> Array:
    """``[C, I, J, K]`` on ``source`` to ``[C, *target.shape]``, linear; differentiable in ``data``.

    Args:
        change: what is done to the values first, voxel by voxel (normalisation). Only what is read is
            changed, and never all of a large scan at once.
    """
    if isinstance(data, np.ndarray):
        tensor = torch.from_numpy(ascending(data))
        return resample_data(tensor, source, target, antialias, change).numpy()
    if source == target:
        return change(data)
    matrix = target.to_index_of(source)
    axes = _axiswise(matrix, target.shape)
    if axes is None:
        coordinates = affine_coordinates(matrix, target.shape)
        box = coordinates_box(coordinates, source.shape)
        near = change(data[(slice(None), *box.slices)])
        return sample(near, (coordinates - torch.tensor(box.start)).to(data.device), "linear")
    weights: dict[int, Tensor] = {}  # by source axis, where there is something to do
    for a, s in enumerate(axes.order):
        matrix_a = linear_weights(source.shape[s], target.shape[a], axes.scale[a], axes.offset[a], antialias)
        low, high = _used(matrix_a)
        data = data.narrow(1 + s, low, high - low)
        used = matrix_a[:, low:high]
        if not _copies(used):
            weights[s] = used.to(data.device)
    memory = sorted(range(3), key=lambda s: -data.stride(1 + s))
    ordered = {a: weights[s] for a, s in enumerate(memory) if s in weights}
    out = _by_axes(data.permute(0, *(1 + s for s in memory)), ordered, change)
    return out.permute(0, *(1 + memory.index(s) for s in axes.order)).contiguous()


def resample(volume: Volume, grid: Grid, antialias: bool = True) -> Volume:
    """A scan on another grid, linear (antialiased where voxels grow along parallel axes)."""
    return Volume(resample_data(volume.data, volume.grid, grid, antialias), grid)


def nearest_index(data: Array, source: Grid, target: Grid, outside: int | None = None) -> Array:
    """``[I, J, K]`` integers or bools taken from the nearest voxel; beyond the source the edge voxel's
    value, or ``outside``."""
    if isinstance(data, np.ndarray):
        return nearest_index(torch.from_numpy(ascending(data)), source, target, outside).numpy()
    matrix = target.to_index_of(source)
    axes = _axiswise(matrix, target.shape)
    if axes is None:
        coordinates = affine_coordinates(matrix, target.shape).to(data.device)
        return sample(data[None], coordinates, "nearest", outside)[0]
    data = data.permute(*axes.order)
    inside: list[Tensor] = []
    for a in range(3):
        n = data.shape[a]
        at = torch.from_numpy(axes.scale[a] * np.arange(target.shape[a]) + axes.offset[a])
        index = _nearest(at.to(data.device))
        inside.append((index >= 0) & (index < n))
        data = data.index_select(a, index.clamp(0, n - 1))
    if outside is not None and not all(bool(i.all()) for i in inside):
        keep = inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
        data = torch.where(keep, data, torch.tensor(outside, dtype=data.dtype))
    return data.contiguous()


def resample_labels(labels: LabelMap, grid: Grid, outside: int | None = None) -> LabelMap:
    """A label map on another grid, nearest neighbour."""
    return LabelMap(nearest_index(labels.data, labels.grid, grid, outside), grid, labels.schema)


def _nearest(coordinates: Tensor) -> Tensor:
    """Indices of the nearest voxels. Halfway points all go up, on either side of rounding noise."""
    return (coordinates + (0.5 + TIE_TOLERANCE)).floor().long()


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
    stop = [max(min(b + 2, n), a + 1) for a, b, n in zip(start, high, shape, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def sample(
    data: Tensor, coordinates: Tensor, mode: Literal["linear", "nearest"], outside: int | None = None
) -> Tensor:
    """``[C, I, J, K]`` at fractional indices ``[A, B, D, 3]`` -> ``[C, A, B, D]``.

    ``mode`` is ``"linear"`` (float output) or ``"nearest"`` (dtype kept). Beyond the source the edge
    voxel's value goes on, unless ``outside`` gives one (a point is inside if its nearest voxel is).
    """
    out = _sample_nearest(data, coordinates) if mode == "nearest" else _sample_linear(data, coordinates)
    if outside is None:
        return out
    index = _nearest(coordinates)
    sizes = torch.tensor(data.shape[1:], device=index.device)
    inside = ((index >= 0) & (index < sizes)).all(dim=-1)
    return torch.where(inside, out, torch.tensor(outside, dtype=out.dtype, device=out.device))


def _sample_nearest(data: Tensor, coordinates: Tensor) -> Tensor:
    index = _nearest(coordinates)
    flat = torch.zeros(coordinates.shape[:-1], dtype=torch.long, device=data.device)
    for a, n in enumerate(data.shape[1:]):
        flat = flat * n + index[..., a].clamp(0, n - 1)
    return data.reshape(data.shape[0], -1)[:, flat]


def _sample_linear(data: Tensor, coordinates: Tensor) -> Tensor:
    # grid_sample wants (k, j, i) in [-1, 1] with -1 and 1 at the outer voxels' centres.
    sizes = torch.tensor([max(n - 1, 1) for n in data.shape[1:]], dtype=torch.float32, device=data.device)
    grid = (coordinates / sizes * 2 - 1).flip(-1)
    return F.grid_sample(
        data[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]
