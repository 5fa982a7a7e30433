"""Scores come back from disk, and several evaluations are one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from zoomseg.report.attribution import Attribution
from zoomseg.report.evaluate import write_metrics
from zoomseg.report.metrics import OrganScore
from zoomseg.report.result import CaseResult, Evaluation, Failure
from zoomseg.report.saved import pool, read_scores


@pytest.mark.parametrize("text", ["", "{", '{"cases": 1}', '{"cases": 1, "organs": 3}'])
def test_damaged_scores_are_made_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    (tmp_path / "metrics.csv").write_text("case,organ\n")
    assert read_scores(tmp_path, 1) is None


def test_scores_come_back_from_disk(tmp_path: Path) -> None:
    cases = (
        CaseResult("a", (OrganScore("liver", 0.5, 0.25, 3.0, 1.5, 10.0, 12.0),)),
        CaseResult("b", (OrganScore("liver", 0.0, 0.0, float("inf"), float("inf"), 0.0, 12.0),)),
    )
    made = Evaluation(("liver",), 1.0, cases)
    write_metrics(tmp_path / "metrics.csv", made)
    (tmp_path / "summary.json").write_text(json.dumps(made.as_json()))
    assert read_scores(tmp_path, 2) == made
    assert read_scores(tmp_path, 3) is None


def test_what_was_lost_and_what_failed_comes_back(tmp_path: Path) -> None:
    told = {"liver": Attribution(0.5, 0.0, 0.25, 0.125, 0.125)}
    case = CaseResult("a", (OrganScore("liver", 0.5, 0.25, 3.0, 1.5, 10.0, 12.0),), told)
    made = Evaluation(("liver",), 1.0, (case,), (Failure("b", "is no scan"),))
    write_metrics(tmp_path / "metrics.csv", made)
    (tmp_path / "summary.json").write_text(json.dumps(made.as_json()))
    assert read_scores(tmp_path) == made


def test_pooled_scores_are_those_of_all_cases() -> None:
    def scored(case: str, dice: float) -> CaseResult:
        return CaseResult(case, (OrganScore("liver", dice, dice, 1.0, 1.0, 1.0, 1.0),))

    one = Evaluation(("liver",), 1.0, (scored("c", 0.9), scored("a", 0.6)))
    two = replace(one, cases=(scored("b", 0.3),), failures=(Failure("d", "why"),))
    both = pool([one, two])
    assert [case.id for case in both.cases] == ["a", "b", "c"]
    assert math.isclose(both.mean["dice"], 0.6)
    assert both.failures == (Failure("d", "why"),)
