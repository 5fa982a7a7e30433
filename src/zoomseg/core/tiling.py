"""Cover a region with tiles, and stitch their answers.

::

    outer  |<------------------ what the network reads ------------------>|
    inner          |<--------- what the network answers --------->|
           |<-halo>|                                              |<-halo>|

With valid padding the halo is what the convolutions eat; with same padding it is zero. Inner boxes
cover the region, and nothing is computed that touches no voxel of it: tiles stand in rows of equal k, each
row only as wide as the region is there. Rows are computed in order, so that of the answer no more is held
at once than the tiles of a row reach.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoomseg.core import placing
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Index3
from zoomseg.core.placing import Tile
from zoomseg.core.region import Region


@dataclass(frozen=True)
class Tiling:
    """Tiles in the order of their first k."""

    tiles: tuple[Tile, ...]
    skipped: int
    """So many tiles more would cover the region's box."""

    @property
    def outer(self) -> Box:
        """The box that holds every voxel some tile reads."""
        box = self.tiles[0].outer
        for tile in self.tiles[1:]:
            box = box.union(tile.outer)
        return box

    @property
    def rows(self) -> Iterator[tuple[int, tuple[Tile, ...]]]:
        """First k of the inner boxes, and the tiles that have it."""
        for k, row in itertools.groupby(self.tiles, key=lambda tile: tile.inner.start[2]):
            yield k, tuple(row)


def cover(region: Region, tile: Index3, halo: Index3, overlap: float) -> Tiling:
    """Tiles of input shape ``tile`` whose inner boxes (``tile - 2 * halo``) cover ``region``.

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
    tiles = tuple(placing.place(region.box, region.mask, region.grid.shape, inner, halo, overlap))
    box = region.box
    whole = math.prod(
        len(placing.starts(low, high, size, overlap))
        for low, high, size in zip(box.start, box.stop, inner, strict=True)
    )
    return Tiling(tiles, max(0, whole - len(tiles)))


def tent(shape: Index3) -> Tensor:
    """``core.placing.importance_map`` as a tensor."""
    return torch.from_numpy(placing.importance_map(shape))


class TileAggregator:
    """Weighted mean of overlapping tiles' probabilities ``[C, ...]`` over ``box``, for tiles that come in the
    order of their first k. No more planes are held than a tile has.

    A voxel that no tile answered, or that is outside ``asked``, is background (channel 0 = 1).
    """

    def __init__(
        self,
        classes: int,
        box: Box,
        weights: Tensor,
        device: torch.device | str = "cpu",
        asked: Box | None = None,
    ) -> None:
        self.box = box
        self._asked = asked or box
        self._first = box.start[2]
        self._weights = weights.to(device)
        held = (*box.shape[:2], min(weights.shape[2], box.shape[2]))
        self._sum = torch.zeros((classes, *held), device=device)
        self._weight = torch.zeros(held, device=device)

    def add(self, tile: Tile, probabilities: Tensor) -> None:
        """``probabilities`` has the shape of ``tile.inner``; what falls outside what is asked is
        dropped.

        Raises:
            GeometryError: another shape, which would be pasted in the wrong place; or planes that were
                taken already, or cannot be held yet.
        """
        expected = (self._sum.shape[0], *self._weights.shape)
        if tuple(probabilities.shape) != expected or tile.inner.shape != self._weights.shape:
            raise GeometryError(
                f"a tile that answers for {tile.inner.shape} voxels got {tuple(probabilities.shape)}, "
                f"expected {expected}"
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
        self._sum[(slice(None), *here)].addcmul_(probabilities[(slice(None), *there)].float(), weights)
        self._weight[here] += weights

    def take(self, stop: int | None = None) -> Iterator[Tensor]:
        """What is finished once no tile to come begins before plane ``stop`` (None: no tile is to come):
        consecutive ``[C, I, J, planes]``, each but once, and to be used before the next is asked for."""
        stop = self.box.stop[2] if stop is None else min(stop, self.box.stop[2])
        while self._first < stop:
            count = min(stop - self._first, self._sum.shape[3])
            yield self._normalised(count)
            self._forget(count)

    def _normalised(self, count: int) -> Tensor:
        weight = self._weight[..., :count]
        unseen = weight == 0
        out = self._sum[..., :count].div_(weight.masked_fill(unseen, 1.0))
        out[0][unseen] = 1.0
        return out

    def _forget(self, count: int) -> None:
        self._first += count
        planes = self._weight.shape[2]
        for held in (self._sum, self._weight):
            for k in range(0, planes - count, count):  # each step reads only what no step has written
                width = min(count, planes - count - k)
                held[..., k : k + width] = held[..., k + count : k + count + width]
            held[..., planes - count :] = 0
