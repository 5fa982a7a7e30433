"""The series of objects is found by UIDs alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from helpers.dicom_annotations import drawn_on
from helpers.dicom_series import ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.archive import Source
from zoomseg.io.dicom.read.references import series_of
from zoomseg.io.dicom.read.rtstruct import read_rtstruct
from zoomseg.io.dicom.read.seg import read_seg
from zoomseg.io.dicom.read.series_discovery import Stack, the_series
from zoomseg.io.dicom.read.structures import Structures
from zoomseg.io.dicom.write.rtstruct import write_rtstruct
from zoomseg.io.dicom.write.seg import write_seg

KINDS = ("seg", "rtstruct")


@pytest.fixture
def stacks(tmp_path: Path) -> list[Stack]:
    """Two series in one frame of reference, one in another."""
    return [
        the_series(
            write(
                tmp_path / str(number),
                stack(
                    ramp(9, 12, 16) + number,
                    SeriesInstanceUID=f"1.2.3.{number}",
                    FrameOfReferenceUID=f"1.2.9.{frame}",
                ),
            )
        )
        for number, frame in ((1, 1), (2, 1), (3, 2))
    ]


def drawn_at(stack: Stack, kind: str, tmp_path: Path) -> Path:
    path = tmp_path / f"{kind}.dcm"
    write_ = write_seg if kind == "seg" else write_rtstruct
    assert write_(path, drawn_on(stack.series.grid), stack.series, "m")
    return path


def without_series(path: Path) -> Path:
    dataset = pydicom.dcmread(path)
    dataset.pop("ReferencedSeriesSequence", None)
    frame: Dataset
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        del frame.RTReferencedStudySequence
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_series_that_is_named(kind: str, stacks: list[Stack], tmp_path: Path) -> None:
    for index, one in enumerate(stacks):
        source = Source(drawn_at(one, kind, tmp_path))
        assert series_of(source, stacks) == index
        with pytest.raises(ScanError, match="the series that it belongs to is missing"):
            series_of(source, [s for s in stacks if s is not one])


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_that_lost_its_uid(kind: str, stacks: list[Stack], tmp_path: Path) -> None:
    by_others = Source(drawn_at(stacks[1], kind, tmp_path))
    slices = tuple(s and dataclasses.replace(s, identity=None) for s in stacks[1].series.slices)
    lost = dataclasses.replace(stacks[1].series, series_uid="", slices=slices)
    nameless = dataclasses.replace(stacks[1], series=lost)
    assert series_of(by_others, [stacks[0], nameless]) == 1
    by_us = Source(drawn_at(nameless, kind, tmp_path))
    without_images = dataclasses.replace(
        nameless, series=dataclasses.replace(nameless.series, slices=stacks[2].series.slices)
    )
    with pytest.raises(ScanError, match="belongs to is missing"):
        series_of(by_us, [stacks[0], without_images])
    assert series_of(by_us, [stacks[0], nameless]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_that_lost_all_uids(kind: str, stacks: list[Stack], tmp_path: Path) -> None:
    """Objects derived from it refer to no image, but have a frame of reference generated from its remaining
    attributes."""
    slices = tuple(s and dataclasses.replace(s, identity=None, sop_uid="") for s in stacks[1].series.slices)
    uids = dict.fromkeys(("study_uid", "series_uid", "frame_of_reference_uid"), "")
    lost = dataclasses.replace(stacks[1].series, slices=slices, **uids)
    nameless = dataclasses.replace(stacks[1], series=lost)
    path = drawn_at(nameless, kind, tmp_path)
    assert series_of(Source(path), [stacks[0], nameless, stacks[2]]) == 1
    assert set(read(kind, path, nameless).names) == {"liver", "left kidney", "right_kidney", "my lesion"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_one_in_the_frame_of_reference(kind: str, stacks: list[Stack], tmp_path: Path) -> None:
    assert series_of(Source(without_series(drawn_at(stacks[2], kind, tmp_path))), stacks) == 2
    source = Source(without_series(drawn_at(stacks[0], kind, tmp_path)))
    with pytest.raises(ScanError, match="may belong to any of 2 volumes"):
        series_of(source, stacks)
    assert series_of(source, [stacks[2], stacks[1]]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_series_of_several_volumes_the_one_with_its_images(
    kind: str, stacks: list[Stack], tmp_path: Path
) -> None:
    alike = dataclasses.replace(stacks[1].series, series_uid=stacks[0].series.series_uid)
    volumes = [dataclasses.replace(stacks[1], series=alike), stacks[0]]
    source = Source(drawn_at(stacks[0], kind, tmp_path))
    assert series_of(source, volumes) == 1
    with pytest.raises(ScanError, match="may belong to any of 2 volumes"):
        series_of(source, [volumes[1], volumes[1]])


def test_unreadable_ones(stacks: list[Stack], tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="labels in zips are not read; unpack it"):
        series_of(Source(tmp_path / "a.zip", "seg.dcm"), stacks)
    (tmp_path / "noise.dcm").write_bytes(bytes(500))
    with pytest.raises(ScanError, match="damaged, truncated or not DICOM"):
        series_of(Source(tmp_path / "noise.dcm"), stacks)


# --- identity -------------------------------------------------------------------------------------


def changed(path: Path, **tags: object) -> Path:
    dataset = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def read(kind: str, path: Path, stack: Stack) -> Structures:
    return (read_seg if kind == "seg" else read_rtstruct)(path, stack.series)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("image", "drawn", "other"),
    [
        ({}, {}, None),
        ({}, {"PatientID": "p2"}, "PatientID"),
        ({}, {"PatientID": ""}, None),
        ({}, {"PatientID": "", "PatientName": "Roe^John"}, "PatientName"),
        ({}, {"PatientName": "Smith^Jane"}, None),  # the ID decides
        ({}, {"PatientID": "", "PatientName": "DOE^JANE^^"}, None),
        ({}, {"PatientID": "", "PatientName": "Doe^Jane="}, None),
        ({"PatientID": 70 * "a"}, {"PatientID": 64 * "a"}, None),  # cut to the length of its field
        ({"PatientID": 70 * "a"}, {"PatientID": 64 * "a" + "b"}, "PatientID"),
        ({"PatientBirthDate": "19600102"}, {"PatientBirthDate": "19600103"}, "PatientBirthDate"),
        ({"PatientBirthDate": "19600102"}, {"PatientBirthDate": ""}, None),
        ({"PatientID": None, "PatientName": None}, {"PatientID": "p2"}, None),
    ],
)
def test_labels_of_another_patient_are_refused(
    kind: str, image: dict[str, object], drawn: dict[str, object], other: str | None, tmp_path: Path
) -> None:
    stack_ = the_series(write(tmp_path / "in", stack(ramp(9, 12, 16), **image)))
    path = changed(drawn_at(stack_, kind, tmp_path), **drawn)
    if other is None:
        assert read(kind, path, stack_).notes == ()
        return
    with pytest.raises(ScanError) as error:
        read(kind, path, stack_)
    text = str(error.value)
    assert text.startswith(
        f"{path}: its {other} is not that of the series; labels of one patient are not used"
    )
    assert not any(str(value) in text for value in drawn.values() if value), "nobody is named"


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_another_series_are_refused_unless_they_lie_in_its_space(
    kind: str, stacks: list[Stack], tmp_path: Path
) -> None:
    """The first two series share a frame of reference, the third has another."""
    path = drawn_at(stacks[0], kind, tmp_path)
    assert read(kind, path, stacks[0]).notes == ()
    assert read(kind, path, stacks[1]).notes == ("annotates another series in the same frame of reference",)
    nowhere = dataclasses.replace(stacks[2].series, frame_of_reference_uid="")
    for series in (stacks[2].series, nowhere):
        with pytest.raises(ScanError, match="give the series that it annotates"):
            read(kind, path, dataclasses.replace(stacks[2], series=series))


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_told_for_sure_is_noted(kind: str, stacks: list[Stack], tmp_path: Path) -> None:
    path = drawn_at(stacks[0], kind, tmp_path)
    nowhere = dataclasses.replace(stacks[0].series, frame_of_reference_uid="")
    assert read(kind, path, dataclasses.replace(stacks[0], series=nowhere)).notes == (
        "it or its series has no frame of reference; placed by its coordinates alone",
    )
    changed(path, StudyInstanceUID="1.2.77")
    assert read(kind, path, stacks[0]).notes == ("belongs to another study than its series",)


def test_a_structure_s_own_frame_of_reference_leads_to_its_series(
    stacks: list[Stack], tmp_path: Path
) -> None:
    """Some files have it only there."""
    path = drawn_at(stacks[2], "rtstruct", tmp_path)
    dataset = pydicom.dcmread(path)
    del dataset.ReferencedFrameOfReferenceSequence, dataset.FrameOfReferenceUID
    dataset.save_as(path)
    assert series_of(Source(path), stacks) == 2
    assert read("rtstruct", path, stacks[2]).notes == ()
