"""The benchmark of partial annotation: the compared cases, and the format of its table."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_dataset
from zoomseg.core.errors import DatasetError
from zoomseg.datasets.layouts import Dataset
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation
from zoomseg.evaluation.tolerances import Tolerances

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import partial_annotation

LEFT, RIGHT = ORGANS = ("left kidney", "right kidney")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Of four cases, the first lacks an organ, the second is declared complete."""
    made = tiny_dataset(tmp_path_factory.mktemp("tiny"))
    drawn = [frozenset({LEFT}), frozenset(ORGANS), None, None]
    return replace(made, cases=tuple(replace(c, annotated=d) for c, d in zip(made.cases, drawn, strict=True)))


def test_complete_cases_are_those_in_which_everything_was_drawn(data: Dataset) -> None:
    assert partial_annotation.complete_cases(data, data.ids[:3]) == ("case_1", "case_2")
    for ids, count in ((data.ids[1:], "3 of 3"), (data.ids[:1], "0 of 1")):
        with pytest.raises(DatasetError, match=f"{count} training cases are annotated completely"):
            partial_annotation.complete_cases(data, ids)


def scored(*dice: tuple[float, float]) -> Evaluation:
    cases = [
        CaseResult(
            f"case_{n}",
            tuple(OrganScore(o, d, d, 1.0, 1.0, 1.0, 1.0) for o, d in zip(ORGANS, own, strict=True)),
        )
        for n, own in enumerate(dice)
    ]
    return Evaluation(ORGANS, Tolerances.same(1.0), tuple(cases))


def test_the_table_has_every_organ_beside_the_cases_that_taught_it(data: Dataset) -> None:
    taught = {"partly": data, "complete": data.subset(data.ids[1:])}
    scores = {"partly": scored((0.5, 0.7), (0.7, 0.9)), "complete": scored((0.1, 0.2), (0.1, 0.2))}
    lines = partial_annotation.table(
        taught, scores, {"partly": "coarse 7", "complete": "coarse 9"}
    ).splitlines()
    assert lines[0] == (
        "| organ | cases scored | drawn in (partly) | Dice (partly) | drawn in (complete) | Dice (complete) |"
    )
    assert lines[2:5] == [
        "| left kidney | 2 | 4 | 0.600 | 3 | 0.100 |",
        "| right kidney | 2 | 3 | 0.800 | 3 | 0.200 |",
        "| mean over organs | | | 0.700 | | 0.150 |",
    ]
    assert "- complete: 3 training cases; steps: coarse 9" in lines
