"""Where tiles stand, and what their answers weigh. Numpy alone, as exported models carry it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Box, Index3

Mask = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """``outer`` is read, ``inner`` is answered; both in indices of the stage grid, and either may
    reach outside it."""

    outer: Box
    inner: Box


def starts(low: int, high: int, size: int, overlap: float) -> list[int]:
    """First indices of equal tiles that cover ``[low, high)``, evenly spread, sharing at least
    ``overlap`` of their size. A range smaller than a tile gets one tile, centred on it."""
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
        for start in starts(low + first, low + last + 1, size, overlap):
            yield min(max(start, 0), scan - size) if size <= scan else start


def place(
    box: Box, mask: Mask | None, scan: Index3, inner: Index3, halo: Index3, overlap: float
) -> Iterator[Tile]:
    """Tiles that cover what belongs of ``box`` (all of it, or ``mask`` of its shape): rows in k, in every row
    columns in i, in every column tiles in j.

    Args:
        scan: shape of the grid that the box is of.
        inner: what a tile answers for; it reads a ``halo`` around that.
    """
    occupied = np.ones(box.shape, dtype=bool) if mask is None else mask

    def along(axis: int, part: Mask) -> Iterator[tuple[int, slice]]:
        here = np.asarray(part.any(axis=tuple(a for a in range(3) if a != axis)))
        for start in _spread(box.start[axis], here, inner[axis], overlap, scan[axis]):
            first = start - box.start[axis]
            yield start, slice(max(0, first), first + inner[axis])

    for k, planes in along(2, occupied):
        row = occupied[:, :, planes]
        for i, rows in along(0, row):
            for j, _ in along(1, row[rows]):
                answered = Box((i, j, k), (i + inner[0], j + inner[1], k + inner[2]))
                yield Tile(answered.expand(halo), answered)


def importance_map(shape: Index3) -> Float32Array:
    """Stitching weights: highest in the middle, never zero, separable ``[I, J, K]``."""
    sides: list[Float32Array] = [
        np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32) / np.float32((n + 1) // 2)
        for n in shape
    ]
    i, j, k = sides
    weights: Float32Array = i[:, None, None] * j[None, :, None] * k[None, None, :]
    return weights.clip(min=np.float32(1e-3))
