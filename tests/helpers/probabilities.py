"""Probabilities similar to a network's, and what the naive argmax at full size makes of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoomseg.core.arrays import Array
from zoomseg.core.geometry import Grid
from zoomseg.core.resample import resample_data

LIBRARIES: tuple[Callable[[torch.Tensor], Array], ...] = (lambda x: x.numpy().copy(order="K"), torch.clone)
"""Functions that copy a tensor to a numpy array or a torch tensor."""


def random_probabilities(shape: tuple[int, int, int], classes: int = 40, seed: int = 0) -> torch.Tensor:
    """``[classes, ...]`` similar to a network's: background nearly everywhere, a few blobs of
    each class, sharp in places and undecided in others."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, *shape, generator=generator) * 3
    sharpness = torch.rand(shape, generator=generator) * 4
    logits[0] += 2
    return (logits * sharpness).softmax(dim=0)


def naive(probabilities: torch.Tensor, source: Grid, target: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Argmax at full size, and the difference between the two highest probabilities."""
    full = resample_data(probabilities, source, target, antialias=False)
    top = full.topk(2, dim=0).values
    return full.argmax(dim=0).byte(), top[0] - top[1]
