"""Costs of a tile for a network in torch, counted from shapes alone, on the meta device: nothing is
computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoomseg.core.geometry import Index3
from zoomseg.networks.build import multiply_adds


@dataclass(frozen=True, eq=False)
class TorchCosts:
    """``backends.network_costs.NetworkCosts`` of a torch module."""

    weightless: Callable[[], nn.Module]
    """Returns a copy of the network in evaluation mode on the meta device: a new one each time, so that
    several threads can count while the network itself computes."""
    channels: int
    _flops: dict[Index3, int] = field(default_factory=dict, init=False)
    _alive: dict[Index3, int] = field(default_factory=dict, init=False)

    def flops(self, tile: Index3) -> int:
        if tile not in self._flops:
            self._flops[tile] = 2 * multiply_adds(self.weightless(), (self.channels, *tile))
        return self._flops[tile]

    def activation_bytes(self, tile: Index3) -> int:
        if tile not in self._alive:
            module = self.weightless()
            with torch.inference_mode(), _Alive(module) as alive:
                module(torch.empty(1, self.channels, *tile, device="meta"))
            self._alive[tile] = alive.most
        return self._alive[tile]


class _Alive:
    """Counts the bytes of inputs and outputs of a module's parts, as long as these are alive."""

    def __init__(self, module: nn.Module) -> None:
        self.most = 0
        self._now = 0
        self._met: set[int] = set()
        self._users: dict[int, int] = {}
        leaves = [part for part in module.modules() if not list(part.children())]
        self._hooks = [part.register_forward_hook(self._watch) for part in leaves]

    def __enter__(self) -> _Alive:
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, part: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        for tensor in (*given, output):
            if id(tensor) not in self._met:
                self._meet(tensor)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._met.add(id(tensor))
        self._users[key] = self._users.get(key, 0) + 1
        if self._users[key] == 1:
            self._now += size
            self.most = max(self.most, self._now)
        weakref.finalize(tensor, self._part, id(tensor), key, size)

    def _part(self, tensor: int, key: int, size: int) -> None:
        self._met.discard(tensor)
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key]
            self._now -= size
