"""Provenance of predictions, from a file that may be missing, damaged or hostile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_recipe
from zoomseg.core.errors import DatasetError
from zoomseg.datasets.layouts import read_labelling
from zoomseg.evaluation.provenance import Origin, read_measures, read_origin, read_scans
from zoomseg.io.files import MAX_JSON_BYTES
from zoomseg.recipe.load import dump


def test_what_is_known_is_named(tmp_path: Path) -> None:
    recipe = tiny_recipe(together=True)
    run = {
        "zoomseg": "1.2",
        "recipe": "tiny",
        "recipe_in_full": recipe.model_dump(mode="json"),
        "models": ["a", "b"],
        "trained": {},
        "labels": {"liver": 1},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    about = {"predicted with ZoomSeg": "1.2", "model": ["a", "b"], "recipe": "tiny"}
    assert read_origin(tmp_path) == Origin(about, dump(recipe))


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", "{", "[" * 100_000, '{"recipe_in_full": {"stages": 3}}', '{"recipe_in_full": []}'],
)
def test_what_is_no_account_says_nothing(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert read_origin(tmp_path) == Origin()


def test_what_cases_took(tmp_path: Path) -> None:
    """A failed case and invalid numbers are ignored."""
    cases = {
        "a": {"seconds": {"fine": 1.0, "total": 2.5}, "peak_ram_mb": 300, "ram_area_mb_s": "many"},
        "b": {"status": "failed"},
        "c": 3,
    }
    (tmp_path / "run.json").write_text(json.dumps({"cases": cases}))
    assert read_measures(tmp_path) == {"a": {"seconds": 2.5, "peak_ram_mb": 300.0}}


def test_the_account_of_any_number_of_cases_is_read(tmp_path: Path) -> None:
    """Larger than other JSON files."""
    cases = {"a": {"peak_ram_mb": 300}}
    padding = " " * MAX_JSON_BYTES
    (tmp_path / "run.json").write_text(json.dumps({"labels": {"liver": 1}, "cases": cases}) + padding)
    assert read_measures(tmp_path) == {"a": {"peak_ram_mb": 300.0}}
    found = read_labelling(tmp_path / "run.json")
    assert found is not None
    assert found[0].names == ("liver",)
    (tmp_path / "run.json").rename(tmp_path / "labels.json")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_labelling(tmp_path / "labels.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": 3}', "{}"])
def test_nothing_is_known_of_damaged_runs(tmp_path: Path, text: str) -> None:
    assert read_measures(tmp_path) == {}
    (tmp_path / "run.json").write_text(text)
    assert read_measures(tmp_path) == {}


def test_scans_are_found_from_the_folder_of_predictions(tmp_path: Path) -> None:
    """If all of their files exist; anything but a list of names is ignored."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("one.nii.gz", "two_0000.nii.gz"):
        (tmp_path / name).touch()
    cases = {
        "one": {"scan": ["../one.nii.gz"]},
        "two": {"scan": ["../two_0000.nii.gz", "../two_0001.nii.gz"]},
        "absolute": {"scan": [str(tmp_path / "one.nii.gz")]},
        **{f"odd {n}": own for n, own in enumerate((3, {}, {"scan": "a"}, {"scan": [1]}, {"scan": ["\0"]}))},
    }
    (out / "run.json").write_text(json.dumps({"cases": cases}))
    assert read_scans(out) == {
        "one": (out / ".." / "one.nii.gz",),
        "absolute": (tmp_path / "one.nii.gz",),
    }
