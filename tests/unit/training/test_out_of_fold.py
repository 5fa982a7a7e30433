"""Parts of a training: their stages, cases, and shares of the time."""

from __future__ import annotations

import pytest

from helpers.tiny_dataset import tiny_recipe
from zoomseg.core.errors import TrainingError
from zoomseg.training.out_of_fold import group_runs, split_in_halves


def test_copies_share_their_stages_time() -> None:
    alone = tiny_recipe(together=False)
    recipe = alone.model_copy(update={"prior_from": "out_of_fold"})
    parts = [(part.trained, part.half, part.share) for part in group_runs(recipe)]
    third = pytest.approx(1 / 3)
    coarse, fine = ("coarse",), ("fine",)
    assert parts == [(coarse, None, third), (coarse, 0, third), (coarse, 1, third), (fine, None, 1.0)]
    assert [part.half for part in group_runs(alone)] == [None, None]
    assert [part.trained for part in group_runs(tiny_recipe(together=True))] == [("coarse", "fine")]


def test_rows_of_copies_are_told_apart() -> None:
    recipe = tiny_recipe(together=False).model_copy(update={"prior_from": "out_of_fold"})
    assert [p.row_name("coarse") for p in group_runs(recipe)[:3]] == [
        "coarse",
        "coarse-half-1",
        "coarse-half-2",
    ]


def test_halves_hold_every_case_once_and_differ_by_at_most_one() -> None:
    cases = tuple(f"case_{n}" for n in range(7))
    one, other = split_in_halves(cases, seed=0)
    assert sorted(one + other) == sorted(cases)
    assert abs(len(one) - len(other)) == 1
    assert split_in_halves(cases, seed=0) == (one, other)


def test_one_case_has_no_halves() -> None:
    with pytest.raises(TrainingError, match="out_of_fold needs 2 training cases or more, got 1"):
        split_in_halves(("case_0",), seed=0)
