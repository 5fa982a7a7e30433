"""Decisions at the start of a training are read back unchanged, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_recipe
from zoomseg.core.errors import TrainingError
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.training import record
from zoomseg.training.record import CrossValidationRecord, SelfTrainingRecord, TrainingRecord

QUANTILES = tuple(float(n) for n in range(-90, 100, 10))
RECORD = TrainingRecord(
    channels=("CT",),
    labels={"left kidney": 3, "right kidney": 7},
    seed=4,
    seconds=60.5,
    epochs=None,
    init="/models/a",
    teachers=("/models/b", "/models/c"),
    recipe=tiny_recipe(together=True).model_dump(mode="json"),
    train=("a", "b"),
    validation=("c",),
    planning_seconds=12.25,
    training_domain=TrainingDomain("CT", (QUANTILES,), (-125.0, -120.0), (300.0, 420.5), {}),
)
FOLDS = CrossValidationRecord(
    channels=("CT",), labels={"liver": 1}, seed=0, seconds=None, epochs=3, cases=("a", "b", "c"), folds=3
)
UNLABELLED = SelfTrainingRecord(
    channels=("CT",),
    labels={"liver": 1},
    seed=2,
    seconds=60.0,
    epochs=None,
    cases=("a", "b"),
    unlabelled="/scans",
    recipe=None,
    folds=None,
    fold=0,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / record.FILE).parent.mkdir()
    return tmp_path / record.FILE


def test_there_and_back(tmp_path: Path, file: Path) -> None:
    record.write(RECORD, file)
    assert record.read_training(tmp_path) == RECORD
    record.write(FOLDS, tmp_path / record.FOLDS)
    assert record.read_cross_validation(tmp_path) == FOLDS
    record.write(UNLABELLED, tmp_path / record.UNLABELLED)
    assert record.read_self_training(tmp_path) == UNLABELLED
    assert RECORD.resolved_recipe(tmp_path) == tiny_recipe(together=True)


@pytest.mark.parametrize(
    ("seconds", "epochs", "longer"),
    [
        (None, None, False),
        (60.5, None, False),
        (61.0, None, True),
        (30.0, None, False),
        (None, 1, True),  # of another kind
    ],
)
def test_a_length_replaces_the_recorded_one(seconds: float | None, epochs: int | None, longer: bool) -> None:
    given = RECORD.lasting(seconds, epochs)
    expected = (seconds, epochs) if (seconds, epochs) != (None, None) else (60.5, None)
    assert (given.seconds, given.epochs) == expected
    assert given.is_longer_than(RECORD) == longer
    assert given.model_copy(update={"seconds": 60.5, "epochs": None}) == RECORD


def test_epochs_are_compared_and_the_recipes_length_is_another_kind() -> None:
    assert FOLDS.lasting(None, 4).is_longer_than(FOLDS)
    assert not FOLDS.lasting(None, 2).is_longer_than(FOLDS)
    assert FOLDS.is_longer_than(FOLDS.model_copy(update={"epochs": None}))


@pytest.mark.parametrize(("planning", "left"), [(0.0, 60.5), (20.5, 40.0), (90.0, 0.0)])
def test_planning_is_part_of_the_time(planning: float, left: float) -> None:
    assert RECORD.model_copy(update={"planning_seconds": planning}).seconds_left == left


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": []},
        {"train": [1]},
        {"seed": "4"},
        {"seconds": "NaN"},
        {"channels": "CT"},
        {"training_domain": {"modality": 3}},
        {"planning_seconds": -1.0},
    ],
    ids=str,
)
def test_an_entry_that_is_wrong_is_named(tmp_path: Path, file: Path, wrong: dict[str, object]) -> None:
    (key,) = wrong
    file.write_text(json.dumps({**RECORD.model_dump(mode="json"), **wrong}))
    with pytest.raises(TrainingError, match=rf"job\.json is damaged \({key}.*train again"):
        record.read_training(tmp_path)


def test_one_fold_is_no_cross_validation(tmp_path: Path) -> None:
    (tmp_path / record.FOLDS).write_text(json.dumps({**FOLDS.model_dump(mode="json"), "folds": 1}))
    with pytest.raises(TrainingError, match=r"folds\.json is damaged \(folds: "):
        record.read_cross_validation(tmp_path)


def test_a_folder_without_one_says_what_to_leave_out(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no training to resume .*; omit --resume"):
        record.read_training(tmp_path)
    with pytest.raises(TrainingError, match=r"no cross-validation to resume .*; omit --resume"):
        record.read_cross_validation(tmp_path)
