"""Costs of a tile, counted from shapes alone."""

from __future__ import annotations

import torch
from torch import nn

from zoomseg.backends.torch_costs import TorchCosts


class Chain(nn.Module):
    """Three 1x1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv3d(1, 4, 1), nn.Conv3d(4, 8, 1), nn.Conv3d(8, 3, 1))

    def forward(self, x_BCIJK: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.parts(x_BCIJK),)


def test_what_is_alive_at_once_is_counted_by_hand() -> None:
    """At most two maps are alive: 4 and 8 channels are the maximum."""
    found = TorchCosts(lambda: Chain().to("meta"), 1).activation_bytes((8, 8, 8))
    # The input is held by the caller; the convolution's 4 channels go once its 8 are made.
    assert found == 4 * 8**3 * (1 + 4 + 8)


def test_operations_by_hand() -> None:
    assert TorchCosts(lambda: Chain().to("meta"), 1).flops((8, 4, 2)) == 2 * 64 * (4 + 4 * 8 + 8 * 3)


def test_a_tile_is_counted_once() -> None:
    built: list[nn.Module] = []
    costs = TorchCosts(lambda: built.append(Chain().to("meta")) or built[-1], 1)
    first = costs.activation_bytes((8, 8, 8))
    assert costs.activation_bytes((8, 8, 8)) == first
    assert len(built) == 1
    costs.activation_bytes((4, 4, 4))
    assert len(built) == 2
