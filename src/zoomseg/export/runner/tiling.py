"""Cover a region with tiles, and stitch what the network says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Index3
from zoomseg.export.runner.region import Mask, Region
from zoomseg.export.runner.resample import FloatArray


@dataclass(frozen=True)
class Tile:
    """``outer`` is read, ``inner`` is answered; either may reach outside the stage's grid."""

    outer: Box
    inner: Box


def _starts(low: int, high: int, size: int, overlap: float) -> list[int]:
    """First indices of equal tiles that cover ``[low, high)``, evenly spread, sharing at least ``overlap`` of
    their size. A range smaller than a tile gets one tile, centred on it."""
    length = high - low
    if length <= size:
        return [low - (size - length) // 2]
    step = max(1, math.floor(size * (1 - overlap)))
    count = math.ceil((length - size) / step) + 1
    return [low + round(n * (length - size) / (count - 1)) for n in range(count)]


def _spread(low: int, occupied: Mask, size: int, overlap: float, scan: int) -> Iterator[int]:
    """First indices of tiles that cover what is occupied of the indices from ``low`` on; where a tile's size
    or more lies empty between, none. They stay inside the ``scan`` indices that there are, if they can."""
    where = np.flatnonzero(occupied)
    gaps = np.flatnonzero(np.diff(where) > size)
    firsts, lasts = where[[0, *(gaps + 1)]], where[[*gaps, -1]]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        for start in _starts(low + first, low + last + 1, size, overlap):
            yield min(max(start, 0), scan - size) if size <= scan else start


def cover(region: Region, tile: Index3, halo: Index3, overlap: float) -> tuple[Tile, ...]:
    """Tiles of input shape ``tile`` whose inner boxes (``tile - 2 * halo``) cover ``region``; all touch it.

    Raises:
        GeometryError: no voxel belongs to the region.
    """
    if region.mask is not None and not region.mask.any():
        raise GeometryError(f"the region holds no voxel of a grid of shape {region.grid.shape}")
    size = (tile[0] - 2 * halo[0], tile[1] - 2 * halo[1], tile[2] - 2 * halo[2])
    starts = _covering(region, size, overlap)
    boxes = [Box((i, j, k), (i + size[0], j + size[1], k + size[2])) for i, j, k in starts]
    return tuple(Tile(box.expand(halo), box) for box in boxes)


def _covering(region: Region, size: Index3, overlap: float) -> Iterator[Index3]:
    """First voxels of the tiles: rows in k, in every row columns in i, in every column tiles in j."""
    mask = np.ones(region.box.shape, dtype=bool) if region.mask is None else region.mask
    origin, scan = region.box.start, region.grid.shape

    def along(axis: int, part: Mask) -> Iterator[tuple[int, slice]]:
        occupied = np.asarray(part.any(axis=tuple(a for a in range(3) if a != axis)))
        for start in _spread(origin[axis], occupied, size[axis], overlap, scan[axis]):
            first = start - origin[axis]
            yield start, slice(max(0, first), first + size[axis])

    for k, planes in along(2, mask):
        row = mask[:, :, planes]
        for i, rows in along(0, row):
            for j, _ in along(1, row[rows]):
                yield i, j, k


def tent(shape: Index3) -> FloatArray:
    """Stitching weights: highest in the middle, never zero, separable ``[I, J, K]``."""
    sides: list[FloatArray] = [
        np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32) / np.float32((n + 1) // 2)
        for n in shape
    ]
    i, j, k = sides
    weights: FloatArray = i[:, None, None] * j[None, :, None] * k[None, None, :]
    return weights.clip(min=np.float32(1e-3))


class Stitcher:
    """Weighted mean of overlapping tiles' probabilities ``[C, ...]`` over ``box``. A voxel that no tile
    answered is background (channel 0 = 1)."""

    def __init__(self, classes: int, box: Box, weights: FloatArray) -> None:
        self.box = box
        self._weights = weights
        self._sum = np.zeros((classes, *box.shape), dtype=np.float32)
        self._weight = np.zeros(box.shape, dtype=np.float32)

    def add(self, tile: Tile, probabilities: FloatArray) -> None:
        """``probabilities`` has the shape of ``tile.inner``; what falls outside ``box`` is dropped."""
        common = tile.inner.intersect(self.box)
        if common.empty:
            return
        here = common.relative_to(self.box.start).slices
        there = common.relative_to(tile.inner.start).slices
        weights = self._weights[there]
        self._sum[(slice(None), *here)] += probabilities[(slice(None), *there)] * weights
        self._weight[here] += weights

    def result(self) -> FloatArray:
        """``[C, *box.shape]``. Divides the sums in place to save memory: call it once, at the end."""
        unseen = self._weight == 0
        self._weight[unseen] = 1.0
        self._sum /= self._weight
        self._sum[0][unseen] = 1.0
        return self._sum
