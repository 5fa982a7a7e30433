"""Lists of cases from a file, in our own format and nnU-Net's; invalid ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_dataset
from zoomseg.core.errors import DatasetError
from zoomseg.datasets.layouts import Dataset
from zoomseg.datasets.split_file import CaseSplit, read_splits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("split"))


def written(folder: Path, content: object) -> Path:
    file = folder / "split.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_three_lists(data: Dataset, tmp_path: Path) -> None:
    file = written(tmp_path, {"train": ["case_3", "case_0"], "validation": ["case_1"], "test": ["case_2"]})
    assert read_splits(file, data) == (CaseSplit(("case_3", "case_0"), ("case_1",), ("case_2",)),)


def test_nnunet_s_list_of_folds(data: Dataset, tmp_path: Path) -> None:
    folds = [
        {"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]},
        {"train": ["case_2", "case_3"], "val": ["case_0", "case_1"]},
    ]
    assert read_splits(written(tmp_path, folds), data) == (
        CaseSplit(("case_0", "case_1"), ("case_2", "case_3")),
        CaseSplit(("case_2", "case_3"), ("case_0", "case_1")),
    )


ONE = ["case_0"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ([], "is empty"),
        (["case_0"], "expected {"),
        ({"train": ONE, "holdout": ["case_1"]}, "expected {"),
        ({"train": ONE}, "no case in 'validation'"),
        ({"train": [], "validation": ONE}, "no case in 'train'"),
        ({"train": "case_0", "validation": ["case_1"]}, "'train' is not a list of case ids"),
        ({"train": [0], "validation": ["case_1"]}, "'train' is not a list of case ids"),
        ({"train": ONE, "val": ["case_1"], "validation": ["case_2"]}, "has both 'val' and 'validation'"),
        ({"train": ONE, "validation": ["case_1"], "test": ONE}, "split 0: case 'case_0' is named twice"),
        ([{"train": ONE, "val": ["case_1"]}, {"train": ONE, "val": ["x"]}], "split 1: .* no labelled case x"),
        (
            [{"train": ONE, "val": ["case_1", "case_2"]}, {"train": ONE, "val": ["case_3", "case_2"]}],
            "split.json: case 'case_2' is held out in several splits, .*; allowed: one, or a file for each",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(data: Dataset, tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        read_splits(written(tmp_path, content), data)


def test_cases_without_labels_are_refused(data: Dataset, tmp_path: Path) -> None:
    cases = tuple(replace(c, labels=None) if c.id == "case_3" else c for c in data.cases)
    file = written(tmp_path, {"train": ONE, "validation": ["case_3"]})
    with pytest.raises(DatasetError, match="no labelled case case_3"):
        read_splits(file, replace(data, cases=cases))


def test_no_such_file(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.json cannot be read"):
        read_splits(tmp_path / "nowhere.json", data)
