"""Missing information of a data set is requested, with the line to write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.label_files import save
from zoomseg.datasets.advice import Advice, advise, hounsfield
from zoomseg.datasets.layouts import open_dataset

SHAPE = (12, 10, 8)


def body(seed: int) -> np.ndarray:
    """A box of soft tissue with a bone, in air."""
    image = np.random.default_rng(seed).normal(-1000, 10, SHAPE)
    image[2:10, 2:8] += 1050
    image[5, 5] += 500
    return image.astype(np.int16)


def drawn(*values: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    for n, value in enumerate(values):
        labels[3 + n, 4, 4] = value
    return labels


def plain(root: Path, names: tuple[str, ...] = ("a", "b"), values: tuple[int, ...] = (1, 2)) -> Path:
    for seed, name in enumerate(names):
        save(root / "images" / f"{name}.nii.gz", body(seed))
        save(root / "labels" / f"{name}.nii.gz", drawn(*values))
    return root


def described(root: Path, **description: object) -> Path:
    (root / "dataset.json").write_text(json.dumps(description))
    return root


LABELS = {"background": 0, "liver": 1, "spleen": 2}


def advice(root: Path) -> tuple[Advice, ...]:
    dataset = open_dataset(root)
    return advise(dataset, [hounsfield(dataset.load(case).image) for case in dataset.cases])


def line(todo: str) -> dict[str, object]:
    """The line to write, as JSON."""
    found: dict[str, object] = json.loads(todo[todo.index("{") : todo.rindex("}") + 1])
    return found


def test_ct_in_plain_folders_is_asked_for(tmp_path: Path) -> None:
    (one, labels) = advice(plain(tmp_path))
    assert one.kind == "channel_names"
    assert (
        "channel 0 ('channel_0'): values are distributed like Hounsfield units in 2 of 2 cases" in one.found
    )
    assert line(one.todo) == {"channel_names": {"0": "CT"}}
    assert one.todo.endswith(f"to {tmp_path / 'dataset.json'}")
    assert labels.kind == "label_names"


def test_writing_the_lines_answers_them(tmp_path: Path) -> None:
    (channels, labels) = advice(plain(tmp_path))
    assert line(labels.todo) == {"labels": {"background": 0, "NAME OF 1": 1, "NAME OF 2": 2}}
    described(tmp_path, **line(channels.todo), labels=LABELS)
    assert open_dataset(tmp_path).is_ct
    assert advice(tmp_path) == ()


def test_a_line_for_a_file_that_is_there_goes_into_it(tmp_path: Path) -> None:
    (one,) = advice(described(plain(tmp_path), labels=LABELS))
    assert one.todo == f'if it is CT, write "channel_names": {{"0": "CT"}} into {tmp_path / "dataset.json"}'


def test_names_of_labels_json_are_kept_when_the_channels_are_named(tmp_path: Path) -> None:
    (plain(tmp_path) / "labels.json").write_text(json.dumps(LABELS))
    (one,) = advice(tmp_path)
    described(tmp_path, **line(one.todo))
    assert open_dataset(tmp_path).schema.names == ("liver", "spleen")
    assert advice(tmp_path) == ()


@pytest.mark.parametrize("name", ["MR", "T2w", "CBCT", "FDG-PET"])
def test_a_channel_that_says_it_is_something_else_is_believed(tmp_path: Path, name: str) -> None:
    assert advice(described(plain(tmp_path), labels=LABELS, channel_names={"0": name})) == ()


@pytest.mark.parametrize("cases", [1, 2, 3])
def test_most_cases_tell(tmp_path: Path, cases: int) -> None:
    root = described(plain(tmp_path, ("a", "b", "c", "d")), labels=LABELS)
    dataset = open_dataset(root)
    units = [(n < cases,) for n in range(4)]
    assert len(advise(dataset, units)) == (cases > 2)


def test_of_several_channels_only_that_which_looks_like_ct_is_called_so(tmp_path: Path) -> None:
    for case in "ab":
        save(tmp_path / "images" / f"{case}_0000.nii.gz", body(1))
        save(tmp_path / "images" / f"{case}_0001.nii.gz", np.abs(body(2)))
        save(tmp_path / "labels" / f"{case}.nii.gz", drawn(1, 2))
    channels, units = advice(described(tmp_path, labels=LABELS))
    assert channels.found == (
        "a_0000.nii.gz to a_0001.nii.gz were read as 2 channels of one scan, 'a', and so on for 1 more"
    )
    assert '"channel_names": {"0": "NAME OF 0", "1": "NAME OF 1"}' in channels.todo
    assert '"channel_names": {"0": "CT", "1": "channel_1"}' in units.todo
    described(tmp_path, labels=LABELS, channel_names={"0": "CT", "1": "PET"})
    assert advice(tmp_path) == ()


def test_cases_that_are_called_like_channels_are_told(tmp_path: Path) -> None:
    root = described(plain(tmp_path, ("img_0000", "img_0001", "x")), labels=LABELS, channel_names={"0": "CT"})
    assert open_dataset(root).ids == ("img_0000", "img_0001", "x")
    (one,) = advice(root)
    assert one.found == "img_0000 to img_0001 are named like channels of one case, but each has labels"
    assert "rename them" in one.todo


def test_numbers_that_nobody_could_mistake_for_channels_are_not_told(tmp_path: Path) -> None:
    names = ("scan_0007", "scan_0009")
    assert advice(described(plain(tmp_path, names), labels=LABELS, channel_names={"0": "CT"})) == ()


def test_long_lists_of_unnamed_labels_are_cut_short(tmp_path: Path) -> None:
    root = described(plain(tmp_path, values=(1, 2, 3, 4, 5, 6, 7)), channel_names={"0": "CT"})
    (one,) = advice(root)
    assert one.found.startswith("label_1, label_2, label_3, label_4, label_5 and 2 more: no name of an organ")
    assert one.todo.endswith("and so on")


def test_letters_that_may_be_sides_are_asked_for(tmp_path: Path) -> None:
    (one,) = advice(described(plain(tmp_path), labels={"RK": 1, "LK": 2}, channel_names={"0": "CT"}))
    assert one.what == "side names"
    assert str(one).startswith(
        "'LK' and 'RK' may be the left and the right one, so patches are not mirrored; if"
    )
