"""Conversion of DICOM series and their annotations, voxel by voxel; nothing is guessed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.dicom_series import Array, ramp, stack, write
from zoomseg.core.errors import DatasetError, OutputError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.dicom import Survey, convert, survey
from zoomseg.datasets.layouts import open_dataset
from zoomseg.io.dicom.read.series_discovery import the_series
from zoomseg.io.dicom.write.rtstruct import write_rtstruct
from zoomseg.io.dicom.write.seg import write_seg

LIVER = (slice(1, 5), slice(1, 4), slice(0, 3))
KIDNEY = (slice(5, 7), slice(2, 6), slice(1, 4))
SHAPE = (7, 6, 5)


def scanned(folder: Path, number: int, **tags: Any) -> Path:
    """The series of a separate patient."""
    uids = {
        "StudyInstanceUID": f"1.2.3.{number}",
        "SeriesInstanceUID": f"1.2.3.{number}.4",
        "FrameOfReferenceUID": f"1.2.3.{number}.5",
    }
    return write(folder, stack(ramp() + np.uint16(1000 * number), **(uids | tags)))


def drawn(organs: Mapping[str, tuple[slice, ...]]) -> Array:
    classes = np.zeros(SHAPE, dtype=np.uint8)
    for value, where in enumerate(organs.values(), start=1):
        classes[where] = value
    return classes


def draw(path: Path, series: Path, organs: Mapping[str, tuple[slice, ...]], contours: bool = False) -> None:
    on = the_series(series).series
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = LabelMap(drawn(organs), on.grid, LabelSchema.consecutive(organs))
    assert (write_rtstruct if contours else write_seg)(path, labels, on, "someone")


def labelled(folder: Path, number: int, *names: str, contours: bool = False, **tags: Any) -> Path:
    """A patient's series, and a first organ that is a liver, a second that is a kidney."""
    scanned(folder / "ct", number, **tags)
    organs = dict(zip(names, (LIVER, KIDNEY), strict=False))
    draw(folder / "drawn" / "labels.dcm", folder / "ct", organs, contours)
    return folder


def of(found: Survey) -> dict[str, tuple[str, ...]]:
    return {case.id: case.names for case in found.cases}


def test_nested_patients_become_a_data_set(tmp_path: Path) -> None:
    labelled(tmp_path / "in" / "a", 1, "liver", "Left Kidney")
    labelled(tmp_path / "in" / "b", 2, "Liver", "kidney_left", contours=True)
    labelled(tmp_path / "in" / "c" / "deep", 3, "liver")
    scanned(tmp_path / "in" / "d", 4)
    found = survey(tmp_path / "in")
    assert of(found) == {"a": ("liver", "Left Kidney"), "b": ("Liver", "kidney_left"), "c": ("liver",)}
    assert (found.schema.names, found.channel, found.unlabelled) == (("liver", "Left Kidney"), "CT", 1)
    assert found.problems == ()
    steps: list[str] = []
    result = convert(found, tmp_path / "out", steps.append)
    assert (result.written, result.problems, result.notes) == (("a", "b", "c"), (), ())
    assert steps == ["a", "b", "c"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == {
        "name": "out",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "Left Kidney": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "cases": {"c": {"annotated": ["liver"]}},
    }
    data = open_dataset(tmp_path / "out")
    assert data.is_ct
    assert [case.annotated for case in data.cases] == [None, None, {"liver"}]
    both, one = drawn({"liver": LIVER, "kidney": KIDNEY}), drawn({"liver": LIVER})
    for number, (files, classes) in enumerate(zip(data.cases, (both, both, one), strict=True), start=1):
        case = data.load(files)
        assert case.labels is not None
        assert np.array_equal(case.labels.data, classes)
        stored = (ramp() + np.uint16(1000 * number)).astype(np.float32) - 1024
        assert np.array_equal(case.image.data[0], stored.transpose(2, 1, 0))
        # LPS to RAS: the first voxel lies at (-10, -20, 30), columns 0.75 mm and rows 0.5 mm apart.
        affine = [[-0.75, 0.0, 0.0, 10.0], [0.0, -0.5, 0.0, 20.0], [0.0, 0.0, 2.0, 30.0]]
        assert np.allclose(case.image.grid.affine[:3], affine)


def test_several_objects_of_one_series_are_put_together(tmp_path: Path) -> None:
    labelled(tmp_path / "in" / "a", 1, "liver")
    ct = tmp_path / "in" / "a" / "ct"
    draw(tmp_path / "in" / "a" / "drawn" / "again.dcm", ct, {"Liver": LIVER}, contours=True)
    draw(tmp_path / "in" / "a" / "drawn" / "more.dcm", ct, {"kidney": KIDNEY})
    found = survey(tmp_path / "in")
    assert (found.schema.names, found.problems) == (("Liver", "kidney"), ())
    convert(found, tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    case = data.load(data.cases[0])
    assert case.labels is not None
    assert np.array_equal(case.labels.data, drawn({"liver": LIVER, "kidney": KIDNEY}))


@pytest.mark.parametrize("contours", [False, True])
@pytest.mark.parametrize("names", [("Brain", "Brain~"), ("Lung-GTV", "GTV_Lung"), ("PTV+5", "PTV-5")])
def test_names_that_differ_in_a_symbol_are_two_structures(
    tmp_path: Path, names: tuple[str, str], contours: bool
) -> None:
    labelled(tmp_path / "in" / "a", 1, *names, contours=contours)
    found = survey(tmp_path / "in")
    assert (of(found), found.notes) == ({"in": names}, ())
    convert(found, tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    case = data.load(data.cases[0])
    assert case.labels is not None
    values = [data.schema.class_of(name) for name in names]
    expected = drawn(dict(zip(names, (LIVER, KIDNEY), strict=True)))
    assert np.array_equal(case.labels.data, np.array([0, *values])[expected])


def test_two_spellings_in_one_object_are_joined_with_a_note(tmp_path: Path) -> None:
    labelled(tmp_path / "in" / "a", 1, "liver", "LIVER")
    found = survey(tmp_path / "in")
    assert (of(found), found.problems) == ({"in": ("liver",)}, ())
    what = "'liver' and 'LIVER' are one name: their voxels are one structure"
    assert found.notes == (f"{tmp_path}/in/a/drawn/labels.dcm: {what}",)
    convert(found, tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    case = data.load(data.cases[0])
    assert case.labels is not None
    assert np.array_equal(case.labels.data, drawn({"liver": LIVER, "kidney": KIDNEY}) > 0)


def test_of_two_different_drawings_neither_is_believed(tmp_path: Path) -> None:
    labelled(tmp_path / "a", 1, "liver", "kidney")
    draw(tmp_path / "a" / "drawn" / "other.dcm", tmp_path / "a" / "ct", {"Liver": KIDNEY})
    found = survey(tmp_path)
    assert found.schema.names == ("kidney",)
    (problem,) = found.problems
    assert problem.startswith(f"{tmp_path}/a/drawn/other.dcm: 'Liver' is annotated differently in ")


def test_what_lies_wholly_under_others_is_not_taught_to_be_absent(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b"), start=1):
        labelled(tmp_path / "in" / name, number, "liver", "kidney")
    draw(tmp_path / "in" / "a" / "twin.dcm", tmp_path / "in" / "a" / "ct", {"hepar": LIVER})
    draw(tmp_path / "in" / "b" / "twin.dcm", tmp_path / "in" / "b" / "ct", {"hepar": (slice(0, 1),) * 3})
    result = convert(survey(tmp_path / "in"), tmp_path / "out")
    assert result.notes == ("a: 'liver' is completely covered by other structures; left out",)
    annotated = [case.annotated for case in open_dataset(tmp_path / "out").cases]
    assert annotated == [{"kidney", "hepar"}, None]


def test_cases_are_not_called_like_patients(tmp_path: Path) -> None:
    labelled(tmp_path / "DOE JANE", 1, "liver")
    labelled(tmp_path / "S-7", 2, "liver", PatientName="S-7", PatientID="S-7")
    labelled(tmp_path / "x [1]", 3, "liver")
    labelled(tmp_path / "x (1)", 4, "liver")
    labelled(tmp_path / "X {1}", 5, "liver")
    assert list(of(survey(tmp_path))) == ["case_001", "S-7", "x_1", "x_1-2", "X_1-3"]


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    labelled(tmp_path / "a", 1, "liver")
    labelled(tmp_path / "b", 2, "liver")
    labelled(tmp_path / "c", 3, "liver")
    for file in (tmp_path / "b" / "ct").iterdir():
        file.unlink()
    whole = (tmp_path / "c" / "drawn" / "labels.dcm").read_bytes()
    (tmp_path / "c" / "drawn" / "labels.dcm").write_bytes(whole[:-10])
    scanned(tmp_path / "d" / "ct", 4)
    draw(tmp_path / "d" / "labels.dcm", tmp_path / "d" / "ct", {"liver": LIVER})
    next(p for p in (tmp_path / "d" / "ct").iterdir() if p.name.endswith("-2.dcm")).unlink()
    found = survey(tmp_path)
    assert of(found) == {"a": ("liver",)}
    first, second, third = sorted(found.problems)
    assert first.startswith(f"{tmp_path}/b/drawn/labels.dcm: the series that it belongs to is missing")
    assert second.startswith(f"{tmp_path}/c/drawn/labels.dcm: ")
    assert third.startswith("d: its slices are missing or uneven")
    (tmp_path / "a" / "drawn" / "labels.dcm").unlink()
    with pytest.raises(DatasetError, match=r"DICOM without labels .*/b/drawn/labels\.dcm: the series"):
        survey(tmp_path)


def test_a_series_that_breaks_later_is_left_out(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b"), start=1):
        labelled(tmp_path / "in" / name, number, *("liver", "kidney")[:number])
    found = survey(tmp_path / "in")
    min((tmp_path / "in" / "b" / "ct").iterdir()).unlink()
    result = convert(found, tmp_path / "out")
    assert result.written == ("a",)
    (problem,) = result.problems
    assert problem.startswith(f"b: {tmp_path}/in/b/ct/")
    data = open_dataset(tmp_path / "out")
    assert (data.ids, data.schema.names, data.cases[0].annotated) == (("a",), ("liver",), None)
    min((tmp_path / "in" / "a" / "ct").iterdir()).unlink()
    with pytest.raises(DatasetError, match="no case can be converted"):
        convert(found, tmp_path / "none")


def test_what_makes_no_data_set(tmp_path: Path) -> None:
    labelled(tmp_path / "in" / "a", 1, "liver")
    found = survey(tmp_path / "in")
    many = dataclasses.replace(found.cases[0], names=tuple(f"structure {n}" for n in range(255)))
    with pytest.raises(DatasetError, match="at most 254 labels are supported, got 255; delete"):
        convert(dataclasses.replace(found, cases=(many,)), tmp_path / "out")
    stack_ = found.cases[0].stack
    mr = dataclasses.replace(stack_, series=dataclasses.replace(stack_.series, modality="MR"))
    mixed = dataclasses.replace(found, cases=(*found.cases, dataclasses.replace(found.cases[0], stack=mr)))
    with pytest.raises(DatasetError, match="labels on 1 CT and 1 MR series"):
        convert(mixed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="not empty"):
        convert(found, tmp_path / "in")
