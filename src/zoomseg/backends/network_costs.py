"""Costs of a tile: floating-point operations, and memory for feature maps. With torch they are counted from
shapes alone; for a compiled network, the values counted at its conversion are scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from zoomseg.core.geometry import Index3


class NetworkCosts(Protocol):
    """Costs of one network, by the shape of a tile ``[I, J, K]``."""

    def flops(self, tile: Index3) -> int:
        """Floating-point operations of its convolutions: two for every multiplication with a weight."""

    def activation_bytes(self, tile: Index3) -> int:
        """Maximum memory of feature maps alive at once while it computes the tile in float32."""


@dataclass(frozen=True)
class CountedTile:
    """Costs counted for one tile; those of others are assumed to be proportional to their voxels."""

    tile: Index3
    flops_of_tile: int
    activation_bytes_of_tile: int

    def flops(self, tile: Index3) -> int:
        return round(self.flops_of_tile * self._share(tile))

    def activation_bytes(self, tile: Index3) -> int:
        return round(self.activation_bytes_of_tile * self._share(tile))

    def _share(self, tile: Index3) -> float:
        return math.prod(tile) / math.prod(self.tile)
