"""The probability of an organ in every voxel of a scan, from the predictions of the stages on their own
grids.

Stages are combined in the recipe's order, as in the label map (``pipeline.fusion``), but with probabilities
instead of labels: inside its region a stage's prediction replaces the previous one (``replace_in_roi``,
``replace_times_atlas``), or it replaces all previous predictions of the organ (``paste``, ``most_probable``).
Among stages that are fused together, the highest counts. Votes (``majority_vote``) have no probability.

This is done block by block and organ by organ: no array of (classes x scan voxels) ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.resample import resample_data
from zoomseg.pipeline.fusion import as_probabilities, blocks, times_atlas
from zoomseg.recipe import graph
from zoomseg.recipe.spec import FusionKind, Recipe

LEVELS = 255
"""Stored value of a probability of one. Networks compute with eight bits of precision where the processor is
fast at it (bfloat16), so that steps of 1/255 lose little, and a map takes a quarter of float32's memory.
NIfTI has no float16."""

Shares = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Fused:
    """One or more stages that are fused together."""

    kind: FusionKind
    predictions: tuple[StagePrediction, ...]


def require_probabilities(recipe: Recipe) -> None:
    """Raise an error if an expanded recipe gives no probabilities.

    Raises:
        RecipeError: stages vote, which leaves no probability.
    """
    voting = [stage.name for stage in recipe.stages if stage.fusion == "majority_vote"]
    if voting:
        raise RecipeError(
            f"recipe '{recipe.name}' has no probability maps: its stages {', '.join(voting)} vote for "
            "every voxel (majority_vote)"
        )


def probability_map(
    organ: str,
    grid: Grid,
    recipe: Recipe,
    stages: Mapping[str, StagePrediction],
    atlas: StagePrediction | None = None,
) -> npt.NDArray[np.uint8]:
    """``[I, J, K]`` on the scan's canonical ``grid``: the probability of an organ times ``LEVELS``, linearly
    interpolated. Post-processing of the finished label map (largest components, islands,
    absent organs) is not applied.

    Args:
        stages: predictions of the stages that had a region, as in ``cascade.Prediction``.
        atlas: needed for ``replace_times_atlas``.

    Raises:
        RecipeError: the stages vote.
    """
    require_probabilities(recipe)
    fused = tuple(_fused(recipe, stages, atlas))
    out = np.zeros(grid.shape[::-1], dtype=np.uint8).transpose()
    for block in blocks(grid.box):
        shares = np.zeros(block.shape, dtype=np.float32)
        for one in fused:
            _enter(shares, one, organ, grid, block)
        out[block.slices] = np.rint(np.clip(shares, 0, 1) * LEVELS)
    return out


def _fused(
    recipe: Recipe, stages: Mapping[str, StagePrediction], atlas: StagePrediction | None
) -> Iterator[_Fused]:
    for kind, group in graph.fused_groups(recipe.stages):
        found = [as_probabilities(stages[stage.name], stage) for stage in group if stage.name in stages]
        if kind == "replace_times_atlas" and found:
            assert atlas is not None  # a recipe without one is refused
            found = [times_atlas(one, atlas) for one in found]
        if kind == "most_probable" and found:
            yield _Fused(kind, tuple(found))
        else:
            yield from (_Fused(kind, (one,)) for one in found)


def _enter(shares: Shares, fused: _Fused, organ: str, grid: Grid, block: Box) -> None:
    """Add one prediction to the probabilities of a block of the scan's grid, in place."""
    replaces_all = fused.kind in ("replace_in_roi", "replace_times_atlas")
    if not replaces_all:
        if not any(organ in one.labels for one in fused.predictions):
            return  # predictions of other organs leave this one unchanged
        shares[...] = 0
    for prediction in fused.predictions:
        region = prediction.region
        box = region.box_on(grid).intersect(block)
        if box.empty:
            continue
        part, view = grid.crop(box), shares[box.relative_to(block.start).slices]
        asked = region.on(part).mask_in(part.box)
        found = _of(organ, prediction, part)
        np.copyto(view, found if replaces_all else np.maximum(view, found), where=asked)


def _of(organ: str, prediction: StagePrediction, grid: Grid) -> Shares:
    """A stage's probability of an organ ``[*grid.shape]``; zero if it does not predict the organ."""
    if organ not in prediction.labels:
        return np.zeros(grid.shape, dtype=np.float32)
    own = prediction.probabilities[prediction.channel(organ)][None]
    shares: Shares = to_numpy(resample_data(own, prediction.grid, grid, antialias=False)[0])
    return shares.astype(np.float32, copy=False)
