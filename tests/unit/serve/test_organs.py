"""The list of organs next to a scan."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from helpers.servers import write_results
from helpers.tiny_dataset import tiny_case
from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.errors import DatasetError, ScanError
from zoomseg.evaluation.case_matching import find_pairs
from zoomseg.io.files import write_json_atomic
from zoomseg.io.scans import write_array, write_labels
from zoomseg.serve.organs import (
    Organ,
    notes_of_result,
    organs_of_file,
    organs_of_result,
    summary_of_result,
)


def test_organs_of_a_result(tmp_path: Path) -> None:
    write_results(tmp_path / "out", "abc")
    left, right = organs_of_result(tmp_path / "out", "abc")
    assert left == Organ(
        name="left kidney",
        value=3,
        colour=organ_colour("left kidney"),
        volume_ml=1.5,
        mean_intensity=70.0,
        confidence=0.93,
        flags=["touches_scan_border"],
    )
    assert (right.confidence, right.flags) == (None, ["missing"])
    assert organs_of_result(tmp_path / "out", "another")[0].volume_ml is None


def test_a_flag_that_comes_twice_is_one(tmp_path: Path) -> None:
    write_results(tmp_path / "out", "abc")
    path = tmp_path / "out" / "summary.csv"
    path.write_text(
        path.read_text().replace("touches_scan_border", "misplaced;touches_scan_border;misplaced")
    )
    assert organs_of_result(tmp_path / "out", "abc")[0].flags == ["misplaced", "touches_scan_border"]


def test_a_summary_has_the_scan_s_own_name_which_is_no_formula(tmp_path: Path) -> None:
    write_results(tmp_path / "out", "abc")
    found = summary_of_result(tmp_path / "out", "abc", "=1+1, 'a'")
    assert list(csv.reader(found.splitlines()))[1] == [
        "'=1+1, 'a'",
        "left kidney",
        "1.5",
        "70.0",
        "0.93",
        "touches_scan_border",
    ]
    for case, text in (("other", None), ("abc", "x,y\n1,2\n")):
        if text is not None:
            (tmp_path / "out" / "summary.csv").write_text(text)
        with pytest.raises(DatasetError):
            summary_of_result(tmp_path / "out", case, "a")


def test_notes_of_a_result(tmp_path: Path) -> None:
    run = {
        "notes": ["a file was left out"],
        "cases": {"abc": {"notes": ["unlike"]}, "other": {"notes": ["no"]}},
    }
    write_json_atomic(tmp_path / "run.json", run)
    assert notes_of_result(tmp_path, "abc") == ["a file was left out", "unlike"]
    for odd in ({}, {"notes": 3, "cases": []}, {"cases": {"abc": {"notes": [1, {}]}}}):
        write_json_atomic(tmp_path / "run.json", odd)
        assert notes_of_result(tmp_path, "abc") == []
    with pytest.raises(DatasetError):
        notes_of_result(tmp_path / "nowhere", "abc")


def test_a_summary_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    write_results(tmp_path / "out", "abc")
    before = organs_of_result(tmp_path / "out", "abc")
    path = tmp_path / "out" / "summary.csv"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert organs_of_result(tmp_path / "out", "abc") == before
    assert before[0].volume_ml is not None


def test_a_summary_that_is_none_is_named(tmp_path: Path) -> None:
    write_results(tmp_path / "out", "abc")
    (tmp_path / "out" / "summary.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DatasetError, match=r"summary\.csv: not a summary"):
        organs_of_result(tmp_path / "out", "abc")


def test_organs_of_a_file_are_those_in_it_with_their_volumes(tmp_path: Path) -> None:
    labels = tiny_case(0)[1]
    write_labels(tmp_path / "a.nii.gz", labels)
    voxels = {c: int((labels.data == c).sum()) for c in (1, 2)}
    found = organs_of_file(tmp_path / "a.nii.gz", "a")
    assert [(o.name, o.value) for o in found] == [("label 3", 3), ("label 7", 7)]
    assert [o.volume_ml for o in found] == pytest.approx([voxels[1] * 0.012, voxels[2] * 0.012])


@pytest.mark.parametrize(
    "place", ["labelsTr/run.json", "labelsTr/labels.json", "dataset.json", "labels.json", "run.json"]
)
def test_files_beside_it_name_its_values(tmp_path: Path, place: str) -> None:
    (tmp_path / "labelsTr").mkdir()
    write_labels(tmp_path / "labelsTr" / "a.nii.gz", tiny_case(0)[1])
    write_json_atomic(tmp_path / place, {"labels": {"background": 0, "liver": 3}})
    found = organs_of_file(tmp_path / "labelsTr" / "a.nii.gz", "a")
    assert [(o.name, o.colour) for o in found] == [
        ("liver", organ_colour("liver")),
        ("label 7", organ_colour("label 7")),
    ]


def test_the_page_and_the_scores_name_values_alike(tmp_path: Path) -> None:
    """A user overrides the names of a run by a ``labels.json``."""
    write_labels(tmp_path / "a.nii.gz", tiny_case(0)[1])
    write_json_atomic(tmp_path / "run.json", {"labels": {"background": 0, "spleen": 3, "aorta": 7}})
    write_json_atomic(tmp_path / "labels.json", {"liver": 3, "stomach": 7})
    shown = {organ.name: organ.value for organ in organs_of_file(tmp_path / "a.nii.gz", "a")}
    (tmp_path / "reference").mkdir()
    write_labels(tmp_path / "reference" / "a.nii.gz", tiny_case(0)[1])
    scored = find_pairs(tmp_path, tmp_path / "reference", None, None)
    assert shown == scored.predicted_schema.value_of == {"liver": 3, "stomach": 7}


def test_a_label_map_of_another_run_is_named_by_the_labels_of_that_run(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.nii.gz", tiny_case(0)[1])
    other = {"run": {"labels": {"background": 0, "liver": 3}}}
    write_json_atomic(
        tmp_path / "run.json", {"labels": {"background": 0, "spleen": 3}, "cases": {"a": other}}
    )
    assert [organ.name for organ in organs_of_file(tmp_path / "a.nii.gz", "a")] == ["liver", "label 7"]


def test_an_empty_label_map_is_refused(tmp_path: Path) -> None:
    grid = tiny_case(0)[1].grid
    write_array(tmp_path / "a.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    with pytest.raises(ScanError, match="holds no label"):
        organs_of_file(tmp_path / "a.nii.gz", "a")
    write_array(tmp_path / "b.nii.gz", np.full(grid.shape, -1, np.int16), grid)
    with pytest.raises(ScanError, match="holds the value -1"):
        organs_of_file(tmp_path / "b.nii.gz", "b")
