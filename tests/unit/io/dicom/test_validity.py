"""Validation by dciodvfy of dicom3tools for objects of all kinds of series: no errors, and no new
warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import MRImageStorage

from helpers import dciodvfy
from helpers.dicom_annotations import ORIENTATIONS, drawn_on, grid_of, interpolated, series_on
from helpers.dicom_series import item, ramp, stack, write
from zoomseg.io.dicom.read.series_discovery import the_series
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write.rtstruct import write_rtstruct
from zoomseg.io.dicom.write.seg import write_seg

pytestmark = dciodvfy.needed

WRITERS = {"SEG": write_seg, "RTSTRUCT": write_rtstruct}

FULL = {
    "PatientBirthDate": "19600102",
    "PatientSex": "F",
    "PatientAge": "066Y",
    "PatientSize": "1.68",
    "PatientWeight": "71.5",
    "PregnancyStatus": 4,
    "IssuerOfPatientID": "HOSPITAL A",
    "OtherPatientNames": ["Roe^Jane", "Poe^Jane"],
    "OtherPatientIDsSequence": [item(PatientID="Z9", TypeOfPatientID="TEXT")],
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "by hand",
    "ReferringPhysicianName": "House^Gregory",
    "StudyID": "7",
    "StudyDate": "20260101",
    "StudyTime": "101112",
    "AccessionNumber": "A1",
    "StudyDescription": "CT abdomen",
    "ProcedureCodeSequence": [item(CodeValue="24531-6", CodingSchemeDesignator="LN", CodeMeaning="US")],
}


def bare() -> DicomSeries:
    series = series_on(grid_of("axial"))
    nameless = tuple(s and dataclasses.replace(s, sop_uid="") for s in series.slices)
    lost = dict.fromkeys(("study_uid", "series_uid", "frame_of_reference_uid", "description"), "")
    return dataclasses.replace(series, slices=nameless, patient=(), number=None, **lost)


def tilted() -> DicomSeries:
    """Slices that lie in their planes, but not at the grid's voxels."""
    series = series_on(grid_of("axial"))
    slices = []
    for k, one in enumerate(series.slices):
        assert one is not None
        x, y, z = one.position_lps_mm
        slices.append(dataclasses.replace(one, position_lps_mm=(x, y + k, z)))
    return dataclasses.replace(series, slices=tuple(slices))


SERIES: dict[str, Callable[[], DicomSeries]] = {
    **{name: lambda name=name: series_on(grid_of(name)) for name in ORIENTATIONS},
    "interpolated": lambda: interpolated(series_on(grid_of("axial")), 3),
    "enhanced": lambda: series_on(grid_of("coronal"), enhanced=True),
    "enhanced, interpolated": lambda: interpolated(series_on(grid_of("oblique"), enhanced=True), 2),
    "of an MR": lambda: dataclasses.replace(
        series_on(grid_of("sagittal")), modality="MR", sop_class_uid=str(MRImageStorage)
    ),
    "tilted": tilted,
    "without identity": bare,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", SERIES)
def test_objects_are_valid(kind: str, name: str, tmp_path: Path) -> None:
    series, path = SERIES[name](), tmp_path / "object.dcm"
    assert WRITERS[kind](path, drawn_on(series.grid), series, "abdomen-ct", "3")
    assert dciodvfy.found_by(path) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_objects_of_a_patient_who_is_known_well_are_valid(kind: str, tmp_path: Path) -> None:
    series = the_series(write(tmp_path / "in", stack(ramp(9, 12, 16), **FULL))).series
    path = tmp_path / "object.dcm"
    assert WRITERS[kind](path, drawn_on(series.grid), series, "abdomen-ct", "3")
    assert dciodvfy.found_by(path) == []


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    series, path = interpolated(series_on(grid_of("axial")), 3), tmp_path / "object.dcm"
    write_seg(path, drawn_on(series.grid), series, "abdomen-ct")
    dataset = pydicom.dcmread(path)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        if not frame.DerivationImageSequence:
            del frame.DerivationImageSequence
    dataset.save_as(path)
    errors = [line for line in dciodvfy.found_by(path) if line.startswith("Error")]
    assert len(errors) == 3, "the interpolated plane has three organs"
    assert all("DerivationImageSequence" in error for error in errors)
