"""Cover a region with tiles, and stitch what the network says of them."""

from __future__ import annotations

import numpy as np

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Index3
from zoomseg.core.tiling import Tile, place
from zoomseg.export.runner.region import Region
from zoomseg.export.runner.resample import FloatArray


def cover(region: Region, tile: Index3, halo: Index3, overlap: float) -> tuple[Tile, ...]:
    """Tiles of input shape ``tile`` whose inner boxes (``tile - 2 * halo``) cover ``region``; all touch it.

    Raises:
        GeometryError: no voxel belongs to the region.
    """
    if region.mask is not None and not region.mask.any():
        raise GeometryError(f"the region holds no voxel of a grid of shape {region.grid.shape}")
    size = (tile[0] - 2 * halo[0], tile[1] - 2 * halo[1], tile[2] - 2 * halo[2])
    return tuple(place(region.box, region.mask, region.grid.shape, size, halo, overlap))


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
