"""Cover a region with tiles, and aggregate their predictions.

::

    outer  |<------------------ what the network reads ------------------>|
    inner          |<-------- what the network predicts --------->|
           |<-halo>|                                              |<-halo>|

With valid padding the halo is the margin that convolutions remove; with same padding it is zero. Inner boxes
cover the region, and no tile is computed that touches no voxel of it: tiles are arranged in rows of equal k,
each row only as wide as the region is there. Rows are computed in order, so that no more of the prediction is
held at once than the tiles of a row cover.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import Array, array_like, float32_zeros, namespace
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Index3, Vector3

if TYPE_CHECKING:
    from zoomseg.core.region import Region

Mask = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
Placement = Literal["spread", "lattice"]
"""``spread``: evenly over the region, from its first voxel to its last. ``lattice``: at multiples of one step
from the grid's first voxel, independent of the region; tiles at its ends extend beyond it."""


@dataclass(frozen=True)
class Tile:
    """A tile: ``outer`` is read, ``inner`` is predicted; both in indices of the stage grid, and either may
    extend outside it."""

    outer: Box
    inner: Box


@dataclass(frozen=True)
class Tiling:
    """Tiles in the order of their first k."""

    tiles: tuple[Tile, ...]
    skipped: int
    """Number of further tiles that would be needed to cover the region's box."""

    @property
    def outer(self) -> Box:
        """The box that contains every voxel read by a tile."""
        box = self.tiles[0].outer
        for tile in self.tiles[1:]:
            box = box.union(tile.outer)
        return box

    @property
    def rows(self) -> Iterator[tuple[int, tuple[Tile, ...]]]:
        """First k of the inner boxes, and the tiles with this k."""
        for k, row in itertools.groupby(self.tiles, key=lambda tile: tile.inner.start[2]):
            yield k, tuple(row)


def cover(
    region: Region,
    tile: Index3,
    halo: Index3,
    overlap: float | Vector3,
    placement: Placement = "spread",
) -> Tiling:
    """Tiles of input shape ``tile`` whose inner boxes (``tile - 2 * halo``) cover ``region``.

    Args:
        overlap: share of the inner box that neighbours have in common, along all axes or each.

    Raises:
        GeometryError: the halo leaves nothing of the tile, or no voxel belongs to the region.
    """
    inner = (tile[0] - 2 * halo[0], tile[1] - 2 * halo[1], tile[2] - 2 * halo[2])
    if min(inner) < 1:
        raise GeometryError(f"a tile of {tile} voxels leaves nothing inside a halo of {halo}")
    if region.voxels == 0:
        raise GeometryError(
            f"the region holds no voxel of a grid of shape {region.grid.shape}: it is smaller than its voxels"
        )
    shares = overlap if isinstance(overlap, tuple) else (overlap, overlap, overlap)
    tiles = tuple(place(region.box, region.mask, region.grid.shape, inner, halo, shares, placement))
    box = region.box
    first_indices = starts if placement == "spread" else lattice_starts
    whole = math.prod(
        len(first_indices(low, high, size, share))
        for low, high, size, share in zip(box.start, box.stop, inner, shares, strict=True)
    )
    return Tiling(tiles, max(0, whole - len(tiles)))


ROUNDING = 1e-9
"""Tiles of which fewer than this fraction would be needed are due to rounding: 1 - 0.8 is not 0.2."""


def lattice_starts(low: int, high: int, size: int, overlap: float) -> range:
    """First indices of the tiles that touch ``[low, high)``, at multiples of the largest step of whole voxels
    that the overlap allows."""
    step = max(1, math.floor(size * (1 - overlap) + ROUNDING))
    return range(((low - size) // step + 1) * step, high, step)


def starts(low: int, high: int, size: int, overlap: float) -> list[int]:
    """First indices of equal tiles that cover ``[low, high)``, evenly spread, overlapping by at least
    ``overlap`` of their size, apart from the rounding of each index to a voxel (as in nnU-Net's
    ``compute_steps_for_sliding_window``). A range smaller than a tile gets one tile, centred on it."""
    length = high - low
    if length <= size:
        return [low - (size - length) // 2]
    count = math.ceil((length - size) / max(1.0, size * (1 - overlap)) - ROUNDING) + 1
    step = (length - size) / (count - 1)
    return [low + round(n * step) for n in range(count)]


def _spread(low: int, occupied: Mask, size: int, overlap: float, scan: int) -> Iterator[int]:
    """First indices of tiles that cover the occupied indices from ``low`` on, with none in gaps of at least a
    tile's size. They stay inside the ``scan`` indices if they can."""
    where = np.flatnonzero(occupied)
    gaps = np.flatnonzero(np.diff(where) > size)
    firsts, lasts = where[[0, *(gaps + 1)]], where[[*gaps, -1]]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        for start in starts(low + first, low + last + 1, size, overlap):
            yield min(max(start, 0), scan - size) if size <= scan else start


def _on_lattice(low: int, occupied: Mask, size: int, overlap: float) -> Iterator[int]:
    """First indices of the lattice's tiles that touch the occupied indices from ``low`` on."""
    for start in lattice_starts(low, low + len(occupied), size, overlap):
        if occupied[max(0, start - low) : start - low + size].any():
            yield start


def place(
    box: Box,
    mask: Mask | None,
    scan: Index3,
    inner: Index3,
    halo: Index3,
    overlap: Vector3,
    placement: Placement = "spread",
) -> Iterator[Tile]:
    """Tiles that cover ``box``, or the voxels of ``mask`` (of its shape): rows in k, in every row
    columns in i, in every column tiles in j.

    Args:
        scan: shape of the grid to which the box belongs.
        inner: shape of the box that a tile predicts; it reads a ``halo`` around it.
    """
    occupied = np.ones(box.shape, dtype=bool) if mask is None else mask

    def along(axis: int, part: Mask) -> Iterator[tuple[int, slice]]:
        here = np.asarray(part.any(axis=tuple(a for a in range(3) if a != axis)))
        low, size, share = box.start[axis], inner[axis], overlap[axis]
        if placement == "spread":
            found = _spread(low, here, size, share, scan[axis])
        else:
            found = _on_lattice(low, here, size, share)
        for start in found:
            first = start - low
            yield start, slice(max(0, first), first + size)

    for k, planes in along(2, occupied):
        row = occupied[:, :, planes]
        for i, rows in along(0, row):
            for j, _ in along(1, row[rows]):
                predicted = Box((i, j, k), (i + inner[0], j + inner[1], k + inner[2]))
                yield Tile(predicted.expand(halo), predicted)


def importance_map(shape: Index3) -> Float32Array:
    """Weights for the aggregation of tiles: highest in the middle, never zero, separable ``[I, J, K]``."""
    sides: list[Float32Array] = [
        np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32) / np.float32((n + 1) // 2)
        for n in shape
    ]
    i, j, k = sides
    weights: Float32Array = i[:, None, None] * j[None, :, None] * k[None, None, :]
    return weights.clip(min=np.float32(1e-3))


def gaussian_importance_map(shape: Index3) -> Float32Array:
    """Weights for the aggregation of tiles ``[I, J, K]``: a Gaussian around voxel ``shape // 2``, its
    standard deviation an eighth of the tile, and ten in the middle, in half precision as in nnU-Net, where
    zeros become the smallest other value (``nnunetv2.inference.sliding_window_prediction.compute_gaussian``).
    """
    sides = [np.exp(-0.5 * ((np.arange(n) - n // 2) / (n / 8)) ** 2) for n in shape]
    weights = sides[0][:, None, None] * sides[1][None, :, None] * sides[2][None, None, :]
    out: Float32Array = (10 * weights).astype(np.float16).astype(np.float32)
    return np.where(out > 0, out, out[out > 0].min())


LOWEST_LOG = math.log(1e-37)
"""Probabilities below 1e-37, float32's smallest, are raised to it before their logarithm is taken."""


def logarithms(probabilities: Array) -> Array:
    """Natural logarithms, none below ``LOWEST_LOG``."""
    xp = namespace(probabilities)
    lowest = array_like(np.array(1e-37, dtype=np.float32), probabilities)
    out = xp.maximum(xp.astype(probabilities, xp.float32, copy=False), lowest)
    return xp.log(out, out=out)  # in place: of a hundred classes, another copy may not fit


def normalised(logs: Array) -> Array:
    """Probabilities from logarithms ``[C, ...]`` that are known up to a constant per voxel (softmax)."""
    xp = namespace(logs)
    out = xp.exp(logs - xp.max(logs, axis=0, keepdims=True))
    out /= xp.sum(out, axis=0, keepdims=True)
    return out


def overlapping(logs: Array) -> Array:
    """Probabilities that each label remains, from logarithms ``[C, ...]`` whose differences to the first one
    are the log-odds of a label: of the labels of a voxel the last one remains, and labels are assumed to be
    independent."""
    xp = namespace(logs)
    out = xp.empty_like(logs)
    left: Array = xp.ones_like(logs[0, ...])
    for c in range(logs.shape[0] - 1, 0, -1):
        odds = xp.exp(xp.clip(logs[0, ...] - logs[c, ...], max=-LOWEST_LOG))
        share = 1 / (1 + odds)
        out[c, ...] = left * share
        left = left * (1 - share)
    out[0, ...] = left
    return out


LOGITS_AT_ONCE = 1 << 25
"""Number of logits that a ``PointwiseHead`` computes at once: 128 MB in float32."""


@dataclass(frozen=True, eq=False)
class PointwiseHead:
    """The last layer of a network if it is a 1x1x1 convolution: logits are ``weight @ features + bias``. It
    is affine, so the weighted mean of logits over tiles equals the logits of the mean features. With fewer
    features than classes, averaging features takes less memory and time."""

    weight: Float32Array
    """``[classes, features]``."""
    bias: Float32Array
    """``[classes]``."""

    @property
    def classes(self) -> int:
        return len(self.weight)

    @property
    def features(self) -> int:
        return len(self.weight[0])

    def logits(self, features: Array, known: Array | float = 1.0) -> Array:
        """``[features, I, J, K]`` -> ``[classes, I, J, K]``; zero where features and ``known`` are zero."""
        xp = namespace(features)
        flat = xp.reshape(features, (self.features, -1))
        out = xp.reshape(array_like(self.weight, features) @ flat, (self.classes, *features.shape[1:]))
        for values, constant in zip(out, self.bias.tolist(), strict=True):
            values += constant * known
        return out


def logit_planes(classes: int, shape: Index3) -> int:
    """Number of planes of a box of ``shape`` whose logits are computed at once."""
    return min(shape[2], max(1, LOGITS_AT_ONCE // (classes * shape[0] * shape[1])))


class TileAggregator:
    """Weighted mean of overlapping tiles' probabilities ``[C, ...]`` over ``box``, or of their logarithms,
    for tiles in the order of their first k. At most as many planes are held as a tile has.

    A voxel that no tile predicts, or that is outside ``asked``, is background (channel 0 = 1).
    """

    def __init__(
        self,
        channels: int,
        box: Box,
        weights: Array,
        asked: Box | None = None,
        background: float = 1.0,
        head: PointwiseHead | None = None,
    ) -> None:
        """``weights`` are a tile's ``[I, J, K]``; sums are arrays of their library, on their device. Where no
        tile predicts, channel 0 is ``background`` and all others are zero.

        Args:
            channels: of a tile's values: classes, or features of ``head``.
            head: converts the mean of features to logits.
        """
        self.box = box
        self._head = head
        self._background = background
        self._asked = asked or box
        self._first = box.start[2]
        self._weights = weights
        held = (*box.shape[:2], min(weights.shape[2], box.shape[2]))
        self._shape = (channels, *held)
        self._weight = float32_zeros(held, weights)

    @functools.cached_property
    def _sum(self) -> Array:
        """Allocated with the first tile, so that it does not add to the memory of that tile's network."""
        return float32_zeros(self._shape, self._weights)

    def add(self, tile: Tile, probabilities: Array, logs: bool = False) -> None:
        """Add a tile. ``probabilities`` has the shape of ``tile.inner``; values outside ``asked`` are
        dropped. With ``logs``, their logarithms are added.

        Raises:
            GeometryError: another shape, which would be pasted at the wrong position; or planes that were
                taken already, or cannot be held yet.
        """
        expected = (self._sum.shape[0], *self._weights.shape)
        if tuple(probabilities.shape) != expected or tile.inner.shape != self._weights.shape:
            raise GeometryError(
                f"a tile that predicts {tile.inner.shape} voxels has probabilities "
                f"{tuple(probabilities.shape)}, expected {expected}"
            )
        common = tile.inner.intersect(self._asked)
        if common.empty:
            return
        held = (self._first, self._first + self._sum.shape[3])
        if common.start[2] < held[0] or common.stop[2] > held[1]:
            raise GeometryError(
                f"a tile with planes {common.start[2]} to {common.stop[2]} came where {held[0]} to {held[1]} "
                "are held; tiles must come in the order of their first k"
            )
        here = common.relative_to((*self.box.start[:2], self._first)).slices
        there = common.relative_to(tile.inner.start).slices
        weights = self._weights[there]
        # Class by class, as the weighted predictions of all classes would take as much memory again.
        for total, values in zip(
            self._sum[(slice(None), *here)], probabilities[(slice(None), *there)], strict=True
        ):
            total += (logarithms(values) if logs else values) * weights
        self._weight[here] += weights

    def take(self, stop: int | None = None) -> Iterator[Array]:
        """The planes that are finished if no further tile begins before plane ``stop`` (None: there is no
        further tile): consecutive ``[C, I, J, planes]``, each only once, and to be used before the next is
        requested."""
        stop = self.box.stop[2] if stop is None else min(stop, self.box.stop[2])
        while self._first < stop:
            count = min(stop - self._first, self._sum.shape[3])
            thick = count if self._head is None else logit_planes(self._head.classes, self.box.shape)
            for k in range(0, count, thick):
                yield self._finished(slice(k, min(k + thick, count)))
            self._forget(count)

    def _finished(self, planes: slice) -> Array:
        weight = self._weight[..., planes]
        unseen = namespace(weight).astype(weight == 0, weight.dtype)
        out = self._sum[..., planes]
        out /= weight + unseen
        if self._head is not None:
            out = self._head.logits(out, 1 - unseen)
        out[0, ...] += self._background * unseen  # empty sums become zero
        return out

    def _forget(self, count: int) -> None:
        self._first += count
        planes = self._weight.shape[2]
        for held in (self._sum, self._weight):
            for k in range(0, planes - count, count):  # each step reads only values that no step has written
                width = min(count, planes - count - k)
                held[..., k : k + width] = held[..., k + count : k + count + width]
            held[..., planes - count :] = 0
