"""Cover a region with tiles, and stitch their answers.

::

    outer  |<------------------ what the network reads ------------------>|
    inner          |<--------- what the network answers --------->|
           |<-halo>|                                              |<-halo>|

With valid padding the halo is what the convolutions eat; with same padding it is zero. Inner boxes
cover the region's box; those that touch no voxel of the region are not computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Index3
from zoomseg.core.region import Region


@dataclass(frozen=True)
class Tile:
    """``outer`` is read, ``inner`` is answered; both in indices of the stage grid, and either may
    reach outside it."""

    outer: Box
    inner: Box


@dataclass(frozen=True)
class Tiling:
    tiles: tuple[Tile, ...]
    skipped: int
    """Tiles of the region's box that were left out as they touch no voxel of the region."""

    @property
    def outer(self) -> Box:
        """The box that holds every voxel some tile reads."""
        box = self.tiles[0].outer
        for tile in self.tiles[1:]:
            box = box.union(tile.outer)
        return box


def _starts(low: int, high: int, size: int, overlap: float) -> list[int]:
    """First indices of equal tiles that cover ``[low, high)``, evenly spread, sharing at least
    ``overlap`` of their size. A range smaller than a tile gets one tile, centred on it."""
    length = high - low
    if length <= size:
        return [low - (size - length) // 2]
    step = max(1, math.floor(size * (1 - overlap)))
    count = math.ceil((length - size) / step) + 1
    return [low + round(n * (length - size) / (count - 1)) for n in range(count)]


def cover(region: Region, tile: Index3, halo: Index3, overlap: float) -> Tiling:
    """Tiles of input shape ``tile`` whose inner boxes (``tile - 2 * halo``) cover ``region``.

    Raises:
        GeometryError: the halo leaves nothing of the tile, or no voxel belongs to the region.
    """
    inner = (tile[0] - 2 * halo[0], tile[1] - 2 * halo[1], tile[2] - 2 * halo[2])
    if min(inner) < 1:
        raise GeometryError(f"a tile of {tile} voxels leaves nothing inside a halo of {halo}")
    axes = [
        _starts(low, high, size, overlap)
        for low, high, size in zip(region.box.start, region.box.stop, inner, strict=True)
    ]
    kept: list[Tile] = []
    for i in axes[0]:
        for j in axes[1]:
            for k in axes[2]:
                box = Box((i, j, k), (i + inner[0], j + inner[1], k + inner[2]))
                if region.touches(box):
                    kept.append(Tile(box.expand(halo), box))
    if not kept:
        raise GeometryError(
            f"the region holds no voxel of a grid of shape {region.grid.shape}: it is smaller than its voxels"
        )
    return Tiling(tuple(kept), math.prod(len(a) for a in axes) - len(kept))


def tent(shape: Index3) -> Tensor:
    """Stitching weights: highest in the middle, never zero, separable ``[I, J, K]``."""
    i, j, k = (
        torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)).float() / ((n + 1) // 2) for n in shape
    )
    return (i[:, None, None] * j[None, :, None] * k[None, None, :]).clamp_min(1e-3)


class Stitcher:
    """Weighted mean of overlapping tiles' probabilities ``[C, ...]`` over ``box``.

    A voxel that no tile answered is background (channel 0 = 1).
    """

    def __init__(self, classes: int, box: Box, weights: Tensor, device: torch.device | str = "cpu") -> None:
        self.box = box
        self._weights = weights.to(device)
        self._sum = torch.zeros((classes, *box.shape), device=device)
        self._weight = torch.zeros(box.shape, device=device)

    def add(self, tile: Tile, probabilities: Tensor) -> None:
        """``probabilities`` has the shape of ``tile.inner``; what falls outside ``box`` is dropped.

        Raises:
            GeometryError: another shape, which would be pasted in the wrong place.
        """
        expected = (self._sum.shape[0], *self._weights.shape)
        if tuple(probabilities.shape) != expected or tile.inner.shape != self._weights.shape:
            raise GeometryError(
                f"a tile that answers for {tile.inner.shape} voxels got {tuple(probabilities.shape)}, "
                f"expected {expected}"
            )
        common = tile.inner.intersect(self.box)
        if common.empty:
            return
        here = common.relative_to(self.box.start).slices
        there = common.relative_to(tile.inner.start).slices
        weights = self._weights[there]
        self._sum[(slice(None), *here)] += probabilities[(slice(None), *there)].float() * weights
        self._weight[here] += weights

    def result(self) -> Tensor:
        """``[C, *box.shape]``. Divides the sums in place to save memory: call it once, at the end."""
        unseen = self._weight == 0
        out = self._sum.div_(self._weight.masked_fill(unseen, 1.0))
        out[0][unseen] = 1.0
        return out
