"""The sequence of trainings: a recipe's groups, and the copies needed for out-of-fold priors."""

from __future__ import annotations

from dataclasses import dataclass

from zoomseg.core.errors import TrainingError
from zoomseg.datasets.layouts import folds
from zoomseg.recipe import graph
from zoomseg.recipe.spec import Recipe


@dataclass(frozen=True)
class GroupRun:
    """One training of a group's stages: on all training cases or, so that training cases can be predicted by
    networks not trained on them, on one half of these. ``share`` is its part of the time budget relative to
    the other parts."""

    trained: tuple[str, ...]
    half: int | None
    share: float

    def row_name(self, stage: str) -> str:
        return stage if self.half is None else f"{stage}-half-{self.half + 1}"


def group_runs(recipe: Recipe) -> tuple[GroupRun, ...]:
    """Every group and, with ``prior_from: out_of_fold``, two copies of those that later ones read, which
    share the group's time."""
    groups = graph.training_groups(recipe)
    out: list[GroupRun] = []
    for n, group in enumerate(groups):
        later = {name for u in groups[n + 1 :] for s in u.trained for name in graph.ancestors(recipe, s)}
        copied = recipe.prior_from == "out_of_fold" and not later.isdisjoint(group.trained)
        halves = (None, 0, 1) if copied else (None,)
        share = graph.stage_of(recipe, group.trained[-1]).training.budget_share
        out += [GroupRun(group.trained, half, share / len(halves)) for half in halves]
    return tuple(out)


def split_in_halves(cases: tuple[str, ...], seed: int) -> tuple[tuple[str, ...], ...]:
    """The training cases in two halves.

    Raises:
        TrainingError: there are fewer than two.
    """
    if len(cases) < 2:
        raise TrainingError(
            "prior_from: out_of_fold needs 2 training cases or more, got 1; use 'predictions' or add cases"
        )
    return folds(cases, 2, seed)
