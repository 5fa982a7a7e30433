"""Interpolation of arrays of numpy and torch, half-voxel exact; differentiable in the data of tensors.

Two methods give the same result: grids whose axes are parallel are resampled axis by axis with small weight
matrices (fast); anything else (oblique grids, deformations) is sampled point by point. Only the first can
widen its kernel when downsampling (``antialias``). Beyond the source the nearest voxel's value is repeated.

Shapes: C channels, I J K voxels of the source, A B D of the target.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import Array, array_like, memory_order, namespace
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, FloatArray, Grid, Index3

if TYPE_CHECKING:
    from zoomseg.core.volume import LabelMap, Volume

Float32Array = npt.NDArray[np.float32]

MAX_TAPS = 1 << 22
"""Maximum number of neighbours of all points together. If the source is wider than one voxel of the target,
they are at most four times its voxels."""

MAX_WEIGHTS = 1 << 23
"""Maximum number of entries of one axis's weight matrix. A target that would need more, such as one of many
thousand voxels along an axis, is computed in halves."""

TIE_TOLERANCE = 1e-4
"""A point up to this distance before the middle between two voxels counts as in the middle."""

PARALLEL_TOLERANCE = 1e-4
"""Axes count as parallel if an off-axis step across the whole target moves less than this many voxels."""

PIECE_VOXELS = 4_000_000
"""Larger data are changed and downsampled piece by piece, so that a scan never exists in float as a whole."""

AxisInterpolation = Literal["antialiased", "linear", "cubic", "nearest"]
"""Interpolation along one axis: linear, with a kernel that widens with the voxels (``antialiased``) or not;
cubic B-spline through the voxels; or nearest voxel."""
AxisInterpolations = tuple[AxisInterpolation, AxisInterpolation, AxisInterpolation]
"""One per axis of the target."""

SPLINE_PAD = 12
"""Edge voxels repeated at either end, as in ``scipy.ndimage``; points farther out read these."""

SPLINE_REACH = 13
"""Voxels on either side that contribute to a spline; the weights of all others sum to less than 1e-7."""

POINTS = 500_000
"""Number of voxels that are sampled point by point at once: each needs three coordinates and a dozen indices
and weights."""


@dataclass(frozen=True)
class Axiswise:
    """Target axis ``a`` runs along source axis ``order[a]``: source = scale[a] * target + offset[a]."""

    order: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


def axiswise(matrix: FloatArray, shape: Index3) -> Axiswise | None:
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
    return Axiswise((order[0], order[1], order[2]), tuple(scale), tuple(offset))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class AxisWeights:
    """The contributions of the source's voxels to those of the target along one axis: rows of weights that
    sum to one, each over a few neighbours."""

    source: npt.NDArray[np.int64]
    """Indices of the neighbours, ``[size_out, neighbours]``."""
    weights: FloatArray
    """``[size_out, neighbours]``."""

    def __len__(self) -> int:
        return len(self.source)

    def part(self, start: int, stop: int) -> tuple[slice, Float32Array]:
        """The rows ``start`` to ``stop``: the voxels of the source that they read, and ``[out, in]`` weights
        of these."""
        source, weights = self.source[start:stop], self.weights[start:stop]
        low, high = _reach(source, weights)
        out = np.zeros((len(source), high - low))
        rows = np.repeat(np.arange(len(source)), source.shape[1])
        # Neighbours with zero weight may be outside.
        np.add.at(out, (rows, np.clip(source - low, 0, high - low - 1).ravel()), weights.ravel())
        return slice(low, high), out.astype(np.float32)

    @property
    def size(self) -> int:
        """Number of entries of all rows' weights as one matrix."""
        low, high = _reach(self.source, self.weights)
        return len(self) * (high - low)


def _reach(source: npt.NDArray[np.int64], weights: FloatArray) -> tuple[int, int]:
    used = source[weights != 0]
    return int(used.min()), int(used.max()) + 1


def linear_weights(size_in: int, size_out: int, scale: float, offset: float, antialias: bool) -> AxisWeights:
    """Linear interpolation at ``scale * n + offset``, widened to a triangle of ``|scale|`` voxels when
    downsampling.

    A row's mean position is exactly its sampling position, so that ramps stay ramps. Indices beyond the
    source count for its edge voxel.

    Raises:
        GeometryError: a voxel of the target is so much wider than the whole source that its weights would
            take ``MAX_TAPS``.
    """
    if size_out * (2 * abs(scale) + 4) > MAX_TAPS:
        wide = f"one voxel of the other grid covers {abs(scale):.3g} of its {size_in}"
        raise GeometryError(f"the scan is too small for the model's grid: {wide} along an axis")
    centre = scale * np.arange(size_out) + offset
    centre = np.clip(centre, 0, size_in - 1)
    width = max(1.0, abs(scale)) if antialias else 1.0
    reach = int(np.ceil(width))
    taps = np.floor(centre)[:, None].astype(np.int64) + np.arange(-reach, reach + 2)[None, :]
    distance = taps - centre[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(distance) / width)
    weights[weights < 1e-7] = 0.0  # float noise must not turn a copy into a matrix product
    weights /= weights.sum(axis=1, keepdims=True)
    # A triangle of fractional width covers voxels unevenly, which shifts its mean: tilt it back.
    first, second = ((weights * distance**n).sum(axis=1, keepdims=True) for n in (1, 2))
    leans = np.abs(first[:, 0]) > 1e-6
    weights[leans] *= ((second - first * distance)[leans]) / (second - first**2)[leans]
    return AxisWeights(np.clip(taps, 0, size_in - 1), weights)


def cubic_weights(size_in: int, size_out: int, scale: float, offset: float) -> AxisWeights:
    """The cubic B-spline through the voxels, evaluated at ``scale * n + offset``. The edge voxel is repeated
    beyond the source, as in ``scipy.ndimage.zoom`` with ``mode="nearest"``, which
    ``skimage.transform.resize`` calls.

    The spline's coefficients are the voxels filtered by -6 z / (1 - z^2) z^|n|, z = sqrt(3) - 2 (Unser et al.
    1993), of which SPLINE_REACH voxels on either side are kept.
    """
    where = (scale * np.arange(size_out) + offset).clip(-SPLINE_PAD + 2, size_in + SPLINE_PAD - 3)
    first = np.floor(where).astype(np.int64)
    t = (where - first)[:, None]
    taps = first[:, None] + np.arange(-SPLINE_REACH, SPLINE_REACH + 2)
    basis = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    pole = math.sqrt(3) - 2
    gain = -6 * pole / (1 - pole**2)
    parts = [
        share / 6 * gain * pole ** np.abs(first[:, None] - 1 + n - taps) for n, share in enumerate(basis)
    ]
    weights = np.sum(parts, axis=0)
    weights[np.abs(weights) < 1e-7] = 0.0  # as in linear weights
    weights /= weights.sum(axis=1, keepdims=True)
    return AxisWeights(taps.clip(0, size_in - 1), weights)


def nearest_weights(size_in: int, size_out: int, scale: float, offset: float) -> AxisWeights:
    """Weights of nearest-neighbour interpolation at ``scale * n + offset``."""
    index = _nearest(scale * np.arange(size_out) + offset).clip(0, size_in - 1)
    return AxisWeights(index[:, None], np.ones((size_out, 1)))


def axis_weights(
    kernel: AxisInterpolation, size_in: int, size_out: int, scale: float, offset: float
) -> AxisWeights:
    """Weights along one axis, for any kernel."""
    match kernel:
        case "cubic":
            return cubic_weights(size_in, size_out, scale, offset)
        case "nearest":
            return nearest_weights(size_in, size_out, scale, offset)
        case "antialiased" | "linear":
            return linear_weights(size_in, size_out, scale, offset, kernel == "antialiased")


def _copies(weights: Float32Array) -> bool:
    """Whether these weights copy the data unchanged."""
    return np.array_equal(weights, np.eye(weights.shape[1], dtype=np.float32))


def contract(data: Array, weights: Array, axis: int) -> Array:
    """Contract one axis of ``[C, A, B, D]`` with ``[out, in]`` weights."""
    xp = namespace(data)
    lead, trail = data.shape[:axis], data.shape[axis + 1 :]
    flat = data.reshape(math.prod(lead), data.shape[axis], math.prod(trail))
    weights = xp.astype(weights, data.dtype, copy=False)
    out = flat[..., 0] @ weights.T if flat.shape[2] == 1 else xp.matmul(weights, flat)
    return out.reshape(*lead, weights.shape[0], *trail)


def _by_axes(data: Array, weights: Mapping[int, Array], change: Callable[[Array], Array]) -> Array:
    """Contract those axes of ``[C, A, B, D]`` that have weights, given in memory order, slowest first. The
    axis that shrinks most is contracted first, which leaves less data for the others. Large data are
    processed in pieces along A, which is then contracted last."""
    order = sorted(weights, key=lambda a: weights[a].shape[0] / weights[a].shape[1])
    pieces = math.ceil(math.prod(data.shape) / PIECE_VOXELS)
    if pieces == 1:
        data = change(data)
    else:
        order = [a for a in order if a != 0]
        parts = []
        for planes in np.array_split(np.arange(data.shape[1]), min(pieces, data.shape[1])):
            part = change(data[:, int(planes[0]) : int(planes[-1]) + 1])
            for a in order:
                part = contract(part, weights[a], 1 + a)
            parts.append(part)
        data, order = namespace(data).concat(parts, axis=1), [0] if 0 in weights else []
    for a in order:
        data = contract(data, weights[a], 1 + a)
    return data


def _contiguous(data: Array) -> Array:
    return np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data.contiguous()


def as_float(data: Array) -> Array:
    """Integers and half-precision floats as float32; others unchanged."""
    xp = namespace(data)
    return data if data.dtype in (xp.float32, xp.float64) else xp.astype(data, xp.float32)


def resample_data(
    data: Array,
    source: Grid,
    target: Grid,
    antialias: bool = True,
    change: Callable[[Array], Array] = as_float,
    kernels: AxisInterpolations | None = None,
) -> Array:
    """``[C, I, J, K]`` on ``source`` to ``[C, *target.shape]``, linear; differentiable in tensors.

    Args:
        kernels: interpolation along each axis; None: linear, with or without ``antialias``. Grids whose axes
            are not parallel are always interpolated linearly. Values of a spline are limited to the lowest
            and highest that were read, per slice if slices are interpolated by nearest neighbour.
        change: applied to the values first, voxel by voxel (normalisation). Only values that are read are
            changed, and never all of a large scan at once.
    """
    if source == target:
        return change(data)
    axes = axiswise(target.to_index_of(source), target.shape)
    if axes is None:
        return _by_points(data, source, target, lambda near, points: sample_linear(change(near), points))
    own = kernels or _linear(antialias)
    along = _along(axes, source, target, own)
    for a, found in enumerate(along):
        if found.size > MAX_WEIGHTS and len(found) > 1:
            halved = partial(resample_data, data, source, antialias=antialias, change=change, kernels=kernels)
            return _in_halves(target, a, halved)
    weights: dict[int, Array] = {}  # by source axis, where interpolation is needed
    read = [slice(None)] * 4
    for s, found in zip(axes.order, along, strict=True):
        read[1 + s], matrix = found.part(0, len(found))
        if not _copies(matrix):
            weights[s] = array_like(matrix, data)
    data = data[tuple(read)]
    xp, memory = namespace(data), memory_order(data[0, ...])
    ordered = {a: weights[s] for a, s in enumerate(memory) if s in weights}
    out = _by_axes(xp.permute_dims(data, (0, *(1 + s for s in memory))), ordered, change)
    if any(own[a] == "cubic" and s in weights for a, s in enumerate(axes.order)):
        apart = next((s for a, s in enumerate(axes.order) if own[a] == "nearest"), None)
        for bound, limited in zip(
            _limits(data, apart, weights, change), (xp.maximum, xp.minimum), strict=True
        ):
            out = limited(out, xp.permute_dims(bound, (0, *(1 + s for s in memory))))
    return _contiguous(xp.permute_dims(out, (0, *(1 + memory.index(s) for s in axes.order))))


def read_box(
    source: Grid, target: Grid, antialias: bool = True, kernels: AxisInterpolations | None = None
) -> Box:
    """The voxels of ``source`` from which ``resample_data`` computes ``target``; all of them if the axes of
    the grids are not parallel."""
    axes = axiswise(target.to_index_of(source), target.shape)
    if axes is None:
        return source.box
    along = _along(axes, source, target, kernels or _linear(antialias))
    reach = {s: _reach(own.source, own.weights) for s, own in zip(axes.order, along, strict=True)}
    return Box((reach[0][0], reach[1][0], reach[2][0]), (reach[0][1], reach[1][1], reach[2][1]))


def _linear(antialias: bool) -> AxisInterpolations:
    kernel: AxisInterpolation = "antialiased" if antialias else "linear"
    return kernel, kernel, kernel


def _along(axes: Axiswise, source: Grid, target: Grid, kernels: AxisInterpolations) -> list[AxisWeights]:
    """The weights along each axis of the target."""
    return [
        axis_weights(kernels[a], source.shape[s], target.shape[a], axes.scale[a], axes.offset[a])
        for a, s in enumerate(axes.order)
    ]


def _in_halves(target: Grid, axis: int, work: Callable[[Grid], Array]) -> Array:
    """``[C, *target.shape]``, computed in two halves of the target."""
    middle = target.shape[axis] // 2
    start, stop = [0, 0, 0], list(target.shape)
    start[axis] = stop[axis] = middle
    halves = Box((0, 0, 0), (stop[0], stop[1], stop[2])), Box((start[0], start[1], start[2]), target.shape)
    parts = [work(target.crop(half)) for half in halves]
    return namespace(parts[0]).concat(parts, axis=1 + axis)


def _limits(
    data: Array, apart: int | None, weights: Mapping[int, Array], change: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """The lowest and the highest value of ``[C, I, J, K]`` after ``change``, each ``[C, 1, 1, 1]``, or for
    every slice along the axis ``apart``, contracted like the data."""
    xp = namespace(data)
    over = tuple(1 + s for s in range(3) if s != apart)
    found = []
    for extreme in (xp.min, xp.max):
        bound = change(extreme(data, axis=over, keepdims=True))
        if apart is not None and apart in weights:
            bound = contract(bound, weights[apart], 1 + apart)
        found.append(bound)
    return found[0], found[1]


def resample(volume: Volume, grid: Grid, antialias: bool = True) -> Volume:
    """A scan on another grid, linear (antialiased where voxels grow along parallel axes)."""
    return replace(volume, data=resample_data(volume.data, volume.grid, grid, antialias), grid=grid)


def nearest_index(data: Array, source: Grid, target: Grid, outside: int | None = None) -> Array:
    """``[I, J, K]`` from the nearest voxel, type kept; beyond the source the edge voxel's value, or
    ``outside``."""
    xp = namespace(data)
    axes = axiswise(target.to_index_of(source), target.shape)
    if axes is None:
        return _by_points(data[None], source, target, lambda x, points: sample_nearest(x, points, outside))[0]
    data = xp.permute_dims(data, axes.order)
    inside: list[npt.NDArray[np.bool_]] = []
    for a in range(3):
        n = data.shape[a]
        index = _nearest(axes.scale[a] * np.arange(target.shape[a]) + axes.offset[a])
        inside.append((index >= 0) & (index < n))
        data = xp.take(data, array_like(index.clip(0, n - 1), data), axis=a)
    if outside is not None and not all(along.all() for along in inside):
        i, j, k = (array_like(along, data) for along in inside)
        keep = i[:, None, None] & j[None, :, None] & k[None, None, :]
        data = xp.where(keep, data, xp.asarray(outside, dtype=data.dtype))
    return _contiguous(data)


def centres_inside(source: Grid, target: Grid) -> Box:
    """The box of the voxels of ``target`` whose centre lies in a voxel of ``source``, as in
    ``nearest_index``; along an axis without any, the voxel closest to the middle of ``source``. Grids whose
    axes are not parallel: all voxels of ``target``."""
    axes = axiswise(target.to_index_of(source), target.shape)
    if axes is None:
        return target.box
    start, stop = [0, 0, 0], [0, 0, 0]
    for a, s in enumerate(axes.order):
        at, size = axes.scale[a] * np.arange(target.shape[a]) + axes.offset[a], source.shape[s]
        index = _nearest(at)
        inside = np.flatnonzero((index >= 0) & (index < size))
        if inside.size == 0:
            inside = np.array([np.abs(at - (size - 1) / 2).argmin()])
        start[a], stop[a] = int(inside[0]), int(inside[-1]) + 1
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def resample_labels(labels: LabelMap, grid: Grid) -> LabelMap:
    """A label map on another grid, nearest neighbour."""
    return replace(labels, data=nearest_index(labels.data, labels.grid, grid), grid=grid)


def _nearest(coordinates: Array) -> Array:
    """Indices of the nearest voxels. Halfway points are all rounded up, on either side of rounding noise."""
    xp = namespace(coordinates)
    return xp.astype(xp.floor(coordinates + (0.5 + TIE_TOLERANCE)), xp.int64)


def _by_points(data: Array, source: Grid, target: Grid, sample: Callable[[Array, Array], Array]) -> Array:
    """``[C, *target.shape]``, a few planes at a time: ``sample`` receives the part of ``[C, I, J, K]`` that
    they read, and indices in it ``[A, B, D, 3]``."""
    for a in (1, 2):
        if (
            math.prod(target.shape[a:]) > POINTS and target.shape[a] > 1
        ):  # one plane, or one row, is too large
            return _in_halves(target, a, lambda half: _by_points(data, source, half, sample))
    parts = []
    for part in _planes(target):
        coordinates = affine_coordinates(part.to_index_of(source), part.shape)
        box = coordinates_box(coordinates, source.shape)
        coordinates -= np.array(box.start, dtype=np.float32)
        parts.append(sample(data[(slice(None), *box.slices)], array_like(coordinates, data)))
    return namespace(data).concat(parts, axis=1)


def _planes(grid: Grid) -> Iterator[Grid]:
    """A grid in parts of ``POINTS`` or one plane, along its first axis."""
    count = max(1, POINTS // math.prod(grid.shape[1:]))
    for first in range(0, grid.shape[0], count):
        last = min(first + count, grid.shape[0])
        yield grid.crop(Box((first, 0, 0), (last, *grid.shape[1:])))


def affine_coordinates(matrix: FloatArray, shape: Index3) -> Float32Array:
    """Source indices ``[A, B, D, 3]`` of every target voxel under a target-to-source index matrix."""
    m = matrix.astype(np.float32)
    i, j, k = (np.arange(n, dtype=np.float32)[:, None] for n in shape)
    out: Float32Array = m[:3, 3] + i[:, None, None] * m[:3, 0]
    out = out + j[None, :, None] * m[:3, 1]
    return out + k[None, None, :] * m[:3, 2]


def coordinates_box(coordinates: Array, shape: Index3) -> Box:
    """The voxels of a source of ``shape`` that are read when sampling at ``coordinates [..., 3]``."""
    xp = namespace(coordinates)
    flat = coordinates.reshape(-1, 3)
    low, high = xp.min(flat, axis=0).tolist(), xp.max(flat, axis=0).tolist()
    start = [min(max(math.floor(a), 0), n - 1) for a, n in zip(low, shape, strict=True)]
    stop = [max(min(math.floor(b) + 2, n), a + 1) for a, b, n in zip(start, high, shape, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def sample_linear(data: Array, coordinates: Array) -> Array:
    """``[C, I, J, K]`` at fractional indices ``[A, B, D, 3]`` -> float32 ``[C, A, B, D]``, linear;
    differentiable in tensors."""
    xp = namespace(data)
    flat = xp.astype(data, xp.float32, copy=False).reshape(data.shape[0], -1)
    corners = [_neighbours(coordinates[..., a], n) for a, n in enumerate(data.shape[1:])]
    out = 0.0
    for corner in itertools.product(*corners):
        (i, of_i), (j, of_j), (k, of_k) = corner
        index = (i * data.shape[2] + j) * data.shape[3] + k
        voxels = xp.take(flat, index.reshape(-1), axis=1).reshape(-1, *index.shape)
        out = out + voxels * (of_i * of_j * of_k)
    return out


def _neighbours(at: Array, size: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The two of ``size`` voxels between which each point of one axis lies, and their weights."""
    xp = namespace(at)
    at = at.clip(0, size - 1)
    low = xp.floor(at)
    share = at - low
    index = xp.astype(low, xp.int64)
    return (index, 1 - share), ((index + 1).clip(0, size - 1), share)


def sample_nearest(data: Array, coordinates: Array, outside: int | None = None) -> Array:
    """``[C, I, J, K]`` at fractional indices ``[A, B, D, 3]`` -> ``[C, A, B, D]``, type kept. Beyond the
    source the edge voxel's value is repeated, unless ``outside`` is given (a point is inside if its nearest
    voxel is)."""
    xp = namespace(data)
    index = _nearest(coordinates)
    i, j, k = (index[..., a].clip(0, n - 1) for a, n in enumerate(data.shape[1:]))
    at = (i * data.shape[2] + j) * data.shape[3] + k
    out = xp.take(data.reshape(data.shape[0], -1), at.reshape(-1), axis=1).reshape(-1, *at.shape)
    if outside is None:
        return out
    inside = (i == index[..., 0]) & (j == index[..., 1]) & (k == index[..., 2])
    return xp.where(inside, out, xp.asarray(outside, dtype=out.dtype))
