"""Scans are labelled one after the other, and none of them ends the others' labelling."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from helpers.tiny_dataset import SCHEMA, tiny_case
from zoomseg.core.case import Case
from zoomseg.core.errors import OutputError, ScanError, TrainingError
from zoomseg.inference.batch import Failed
from zoomseg.io.scans import find_scans, write_image
from zoomseg.training import model_labels
from zoomseg.training.log import NullObserver


class Watching(NullObserver):
    def __init__(self) -> None:
        self.told: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def message(self, text: str) -> None:
        self.told.append(text)

    def preparing(self, stage: str, done: int, total: int) -> None:
        self.steps.append((stage, done, total))


class Predictor:
    """Fails on the second scan as it is told to."""

    channels = 1

    def __init__(self, error: Exception) -> None:
        self.error = error

    def predict(self, case: Case, keep: bool = True) -> str:
        if case.id == "b":
            raise self.error
        return f"prediction of {case.id}"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_image(folder / f"{name}.nii.gz", tiny_case(0)[0])
    return folder


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ScanError("unlike"), "unlike"),
        (RuntimeError("x"), "unexpected RuntimeError"),
        (MemoryError(), "memory"),
    ],
)
def test_a_scan_that_fails_is_named_and_the_others_are_labelled(
    scans: Path, tmp_path: Path, error: Exception, reason: str
) -> None:
    watch = Watching()
    used: list[tuple[Path, str, str]] = []

    def use(path: Path, case: Case, prediction: object) -> int:
        used.append((path, case.id, str(prediction)))
        return len(used)

    found = list(
        model_labels.label(find_scans(scans), Predictor(error), tmp_path, use, "labels", watch)  # type: ignore[arg-type]
    )
    assert [(scan.id, result) for scan, result in found if scan.id != "b"] == [("a", 1), ("c", 2)]
    assert used == [(tmp_path / f"{name}.nii.gz", name, f"prediction of {name}") for name in ("a", "c")]
    (failed,) = (result for scan, result in found if scan.id == "b")
    assert isinstance(failed, Failed)
    assert reason in failed.reason
    assert watch.told == [f"b: not used ({failed.reason})"]
    assert watch.steps == [("labels", done, 3) for done in range(4)]


def test_a_disk_that_is_full_ends_the_labelling(scans: Path, tmp_path: Path) -> None:
    full = Predictor(OutputError("no space left"))
    with pytest.raises(OutputError):
        list(
            model_labels.label(find_scans(scans), full, tmp_path, lambda *found: 1, "labels", NullObserver())
        )  # type: ignore[arg-type]


class Known(BaseModel):
    cases: dict[str, tuple[str, ...]]


def organs(known: Known) -> dict[str, tuple[str, ...]]:
    return known.cases


def test_a_list_is_read_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    assert model_labels.read_list(file, Known, organs, SCHEMA) is None
    file.write_text('{"cases": {"a": ["left kidney"], "b": []}}')
    found = model_labels.read_list(file, Known, organs, SCHEMA)
    assert found is not None
    assert found.cases == {"a": ("left kidney",), "b": ()}
    for text in ("{", '{"cases": 1}', '{"cases": {"../a": []}}', '{"cases": {"a": ["heart"]}}'):
        file.write_text(text)
        with pytest.raises(
            TrainingError, match=r"labels\.json is damaged .*; remove it to label the scans again"
        ):
            model_labels.read_list(file, Known, organs, SCHEMA)
