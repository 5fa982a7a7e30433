"""The record of a study: its names in the file, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zoomseg.core.errors import TrainingError
from zoomseg.study.study_record import StudyRecord


def record(**changed: Any) -> StudyRecord:
    settings: dict[str, Any] = {
        "ablation": "tiny",
        "data_set": "some",
        "cases": ("a", "b"),
        "time_budget_in_seconds": None,
        "folds": 2,
        "seed": 0,
        "coarser": 1.0,
        "narrower": 1.0,
        "init": None,
    }
    return StudyRecord(**{**settings, **changed})


def test_it_is_written_in_words_and_accepts_itself(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    own = record(splits=((("a",), ("b",), ()),), small_organs=("liver",), recipe={"name": "r", "n": [1, 2]})
    own.write(file)
    known = json.loads(file.read_text())
    assert known == {
        "ablation": "tiny",
        "data set": "some",
        "cases": ["a", "b"],
        "time budget in seconds": None,
        "folds": 2,
        "seed": 0,
        "coarser": 1.0,
        "narrower": 1.0,
        "init": None,
        "recipe": {"name": "r", "n": [1, 2]},
        "small organs": ["liver"],
        "atlases": None,
        "splits": [[["a"], ["b"], []]],
        "test set": None,
        "unlabelled scans": None,
    }
    own.require_same(file)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"time_budget_in_seconds": 60.0}, "time budget in seconds null, this one has 60.0"),
        ({"cases": ("a",)}, r'cases \["a", "b"\], this one has \["a"\]'),
        ({"recipe": {"name": "r", "n": [3]}}, 'recipe "r", which has changed since then'),
    ],
)
def test_another_study_is_refused(tmp_path: Path, changed: dict[str, Any], what: str) -> None:
    record(recipe={"name": "r", "n": [1]}).write(tmp_path / "study.json")
    with pytest.raises(TrainingError, match=f"holds a study with {what}; give the same options"):
        record(**{"recipe": {"name": "r", "n": [1]}, **changed}).require_same(tmp_path / "study.json")


@pytest.mark.parametrize("change", [{"seed": None}, {"folds": "2"}, {"cases": 3}, {"splits": [["a"]]}])
def test_a_setting_of_another_type_is_damage_and_not_another_study(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "study.json"
    record().write(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(TrainingError, match=r"study\.json is damaged .*; choose another folder"):
        record().require_same(file)
