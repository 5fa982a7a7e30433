"""Costs of a tile that was not counted."""

from __future__ import annotations

from zoomseg.backends.network_costs import CountedTile


def test_costs_grow_with_the_voxels() -> None:
    costs = CountedTile((8, 8, 4), 1000, 600)
    assert (costs.flops((8, 8, 4)), costs.activation_bytes((8, 8, 4))) == (1000, 600)
    assert (costs.flops((8, 4, 4)), costs.activation_bytes((4, 4, 4))) == (500, 150)
