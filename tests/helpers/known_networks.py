"""Networks with known predictions, and the tiny scan for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from helpers.tiny_dataset import tiny_case, tiny_recipe
from zoomseg.core.case import Case
from zoomseg.core.tiling import Tile
from zoomseg.pipeline.sliding_window import StageNetwork, StageNetworkOf
from zoomseg.recipe.spec import Recipe

RECIPE = tiny_recipe(together=True)
COARSE, FINE = RECIPE.stages
SURE = 20.0
"""A logit relative to zeros: a probability of one, up to rounding."""


def each(answer: Callable[[np.ndarray, Tile], np.ndarray]) -> StageNetwork:
    """A network from a function of a single tile."""

    def network(x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
        assert len(x_BCIJK) == len(tiles)
        return np.concatenate([answer(x[None], tile) for x, tile in zip(x_BCIJK, tiles, strict=True)])

    return network


def constant(c: int, logit: float = SURE) -> StageNetwork:
    """A network that predicts class ``c`` everywhere."""

    @each
    def network(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        logits = np.zeros((1, 3, *tile.inner.shape), dtype=np.float32)
        logits[:, c] = logit
        return softmax(logits)

    return network


def softmax(logits_BCIJK: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits_BCIJK).softmax(dim=1).numpy()


def thresholds(image: np.ndarray) -> np.ndarray:
    """Class indices of a normalised image ``[I, J, K]``: the tiny organs differ in brightness."""
    return (image > 0.55).astype(np.int64) + (image > 0.75)


@each
def threshold(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
    """A network that predicts by thresholds of the middle of its input."""
    halo = [(a - b) // 2 for a, b in zip(tile.outer.shape, tile.inner.shape, strict=True)]
    assert tuple(x_BCIJK.shape[2:]) == tile.outer.shape
    i, j, k = (slice(h, h + n) for h, n in zip(halo, tile.inner.shape, strict=True))
    classes = thresholds(x_BCIJK[:, 0, i, j, k])
    hot = np.stack([classes == c for c in range(3)], axis=1)
    return softmax(SURE * hot.astype(np.float32))


def case(seed: int = 0) -> Case:
    return Case("a", tiny_case(seed)[0])


def by_name(networks: Mapping[str, StageNetwork]) -> StageNetworkOf:
    return lambda view: networks[view.stage.name]


def mean_of(networks: Sequence[StageNetwork]) -> StageNetwork:
    return lambda x, tiles: np.mean([network(x, tiles) for network in networks], axis=0)


def stripes(classes: str, logit: float = SURE) -> StageNetwork:
    """A network that predicts one class per index of the scan's first axis (``"001120..."``)."""
    hot = np.array([[int(c) == own for c in classes] for own in range(3)], dtype=np.float32)
    sure = softmax(hot[None] * np.float32(logit))[0]

    @each
    def network(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        at = np.arange(tile.inner.start[0], tile.inner.stop[0]).clip(0, len(classes) - 1)
        return np.broadcast_to(sure[:, at].reshape(1, 3, -1, 1, 1), (1, 3, *tile.inner.shape))

    return network


def with_stages(**changes: Mapping[str, object]) -> Recipe:
    stages = tuple(s.model_copy(update=dict(changes.get(s.name, {}))) for s in RECIPE.stages)
    return RECIPE.model_copy(update={"stages": stages})
