"""UIDs for derived objects: the series' own, or generated ones if it lost them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID

from helpers import dicom_series
from helpers.dicom_annotations import grid_of, series_on
from zoomseg.core.geometry import Grid
from zoomseg.io.dicom import uids
from zoomseg.io.dicom.read.series_discovery import the_series
from zoomseg.io.dicom.series import DicomSeries

SERIES = series_on(grid_of("oblique"))
UIDS = (uids.study_uid, uids.series_uid, uids.frame_of_reference_uid)


def moved(series: DicomSeries, mm: float) -> DicomSeries:
    affine = series.grid.affine.copy()
    affine[0, 3] += mm
    return dataclasses.replace(series, grid=Grid(series.grid.shape, affine))


def without_uids(series: DicomSeries, **changes: Any) -> DicomSeries:
    nameless = tuple(s and dataclasses.replace(s, sop_uid="") for s in series.slices)
    lost = dict.fromkeys(("study_uid", "series_uid", "frame_of_reference_uid"), "")
    return dataclasses.replace(series, slices=nameless, **lost, **changes)


def test_uids_of_the_series_are_kept() -> None:
    assert [uid(SERIES) for uid in UIDS] == ["1.2.3.4", "1.2.3.4.5", "1.2.3.4.6"]


@pytest.mark.parametrize("bad", ["", "1", "1.2.03", "1.2.", "1.2\n", "1.2.x", "1." + "2" * 63])
def test_a_uid_that_is_none_is_replaced_by_one_that_stays_the_same(bad: str) -> None:
    lost = dataclasses.replace(SERIES, study_uid=bad)
    found = uids.study_uid(lost)
    assert UID(found).is_valid
    assert found == uids.study_uid(dataclasses.replace(lost))
    assert uids.series_uid(lost) == SERIES.series_uid
    other = dataclasses.replace(lost, series_uid="1.2.3.4.7")
    assert uids.study_uid(other) != found


def test_the_longest_uid_is_one() -> None:
    longest = "1." + "2" * 62
    assert uids.study_uid(dataclasses.replace(SERIES, study_uid=longest)) == longest


def test_series_that_lost_all_uids_are_still_told_apart() -> None:
    lost = without_uids(SERIES)
    found = {uid(lost) for uid in UIDS}
    assert found == {uid(without_uids(SERIES)) for uid in UIDS}
    others = (without_uids(SERIES, patient=(("PatientID", "P2"),)), moved(lost, 0.5))
    assert len(found.union(*({uid(other) for uid in UIDS} for other in others))) == 9


def test_what_a_series_lacks_that_objects_must_name_is_told(tmp_path: Path) -> None:
    assert uids.notes_on_identity(SERIES) == ()
    assert uids.notes_on_identity(without_uids(SERIES)) == (
        "it lacks a valid StudyInstanceUID and SeriesInstanceUID and FrameOfReferenceUID; a SEG or RTSTRUCT "
        "of it has a generated one, and archives and viewers do not associate it with the images",
        "it has slices without SOPInstanceUID; a SEG or RTSTRUCT does not refer to these",
    )
    lost = dicom_series.stack(dicom_series.ramp(), StudyInstanceUID=None)
    lacking, note = the_series(dicom_series.write(tmp_path, lost)).series.notes
    assert lacking == (
        "its headers lack StudyInstanceUID; images of several studies could not be distinguished"
    )
    assert note.startswith("it lacks a valid StudyInstanceUID; a SEG or RTSTRUCT of it has a generated one")
