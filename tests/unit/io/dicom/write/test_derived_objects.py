"""Attributes that objects repeat from their series, and the files that are read at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage

from helpers import dicom_series
from helpers.dicom_annotations import ORGANS, drawn_on, grid_of, interpolated, series_on
from zoomseg.anatomy.codes import Code
from zoomseg.core.errors import GeometryError, OutputError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom.read.series_discovery import the_series
from zoomseg.io.dicom.series import DicomSeries, Identity
from zoomseg.io.dicom.write import derived_objects
from zoomseg.io.dicom.write.rtstruct import write_rtstruct
from zoomseg.io.dicom.write.seg import write_seg

SERIES = series_on(grid_of("oblique"))
CT = {str(CTImageStorage): "CT"}


def moved(series: DicomSeries, mm: float) -> DicomSeries:
    affine = series.grid.affine.copy()
    affine[0, 3] += mm
    return dataclasses.replace(series, grid=Grid(series.grid.shape, affine))


@pytest.mark.parametrize(
    ("keyword", "given", "kept"),
    [
        ("PatientName", "Döe^Jane", "Döe^Jane"),
        ("PatientID", "A\\B\n" + "x" * 100, "A B " + "x" * 60),
        ("StudyID", "y" * 17, ""),
        ("AccessionNumber", "a" * 16, "a" * 16),
        ("StudyDate", "20261231", "20261231"),
        ("StudyDate", "20261301", ""),
        ("StudyTime", "235959.5", "235959.5"),
        ("StudyTime", "24", ""),
        ("PatientSex", "O", "O"),
        ("PatientSex", "male", ""),
    ],
)
def test_of_the_patient_only_what_may_be_true_is_repeated(keyword: str, given: str, kept: str) -> None:
    found = derived_objects.patient_and_study(
        dataclasses.replace(SERIES, patient=((keyword, given), ("Rows", "3")))
    )
    assert found[keyword].value == kept
    assert "Rows" not in found
    assert found.StudyInstanceUID == "1.2.3.4"
    empty = [e.keyword for e in found if not e.value]
    assert len(empty) == 10 - bool(kept), "what is not known is there, but empty"


WHOSE = SERIES.identity


def slices_of(*identities: Identity | None) -> DicomSeries:
    """The first slices with these attributes in their headers, the others consistent."""
    given = (*identities, *[WHOSE] * (len(SERIES.slices) - len(identities)))
    pairs = zip(SERIES.slices, given, strict=True)
    return dataclasses.replace(
        SERIES, slices=tuple(s and dataclasses.replace(s, identity=i) for s, i in pairs)
    )


def test_a_series_is_of_whom_it_says() -> None:
    assert Identity("P1", "Doe^Jane", "", "1.2.3.4", "1.2.3.4.5", "1.2.3.4.6") == WHOSE
    derived_objects.require_one_identity(slices_of(WHOSE, None))
    derived_objects.require_one_identity(slices_of(dataclasses.replace(WHOSE, patient_name="DOE^JANE^^")))
    derived_objects.require_one_identity(interpolated(slices_of(WHOSE), 0))


@pytest.mark.parametrize(("field", "keyword"), list(zip(vars(WHOSE), Identity.KEYWORDS, strict=True)))
@pytest.mark.parametrize("value", ["", "1.2.77"])
@pytest.mark.parametrize("write", [write_seg, write_rtstruct])
def test_what_refers_to_slices_of_others_is_never_written(
    field: str, keyword: str, value: str, write: Callable[..., bool], tmp_path: Path
) -> None:
    other = dataclasses.replace(WHOSE, **{field: value})
    if other == WHOSE:
        other = dataclasses.replace(WHOSE, **{field: "19600101"})
    mixed = slices_of(WHOSE, other)
    with pytest.raises(ScanError) as error:
        write(tmp_path / "a.dcm", drawn_on(mixed.grid), mixed, "m")
    assert str(error.value) == (
        f"slices of series 'Abdomen' differ in {keyword}; no SEG or RTSTRUCT is made that may mix up "
        "patients: export each patient and study by itself"
    )
    assert not list(tmp_path.iterdir())


def test_slices_keep_what_their_own_headers_say(tmp_path: Path) -> None:
    """So that wrong combinations are detected; here one made by hand."""
    values = dicom_series.ramp(9, 12, 16)
    mine, other = (
        the_series(dicom_series.write(tmp_path / name, dicom_series.stack(values, PatientID=name))).series
        for name in ("p1", "p2")
    )
    derived_objects.require_one_identity(mine)
    mixed = dataclasses.replace(mine, slices=(*mine.slices[:4], *other.slices[4:]))
    with pytest.raises(ScanError, match="slices of series 'body' differ in PatientID;"):
        write_seg(tmp_path / "a.dcm", drawn_on(mixed.grid), mixed, "m")


def test_slices_in_no_plane_count_too(tmp_path: Path) -> None:
    datasets = dicom_series.uneven()
    series = the_series(dicom_series.write(tmp_path, datasets)).series
    named = [item.ReferencedSOPInstanceUID for item in derived_objects.instance_items(series)]
    assert sorted(named) == sorted(d.SOPInstanceUID for d in datasets)
    derived_objects.require_one_identity(series)
    identity = series.between[3].identity
    assert identity is not None
    other = dataclasses.replace(series.between[3], identity=dataclasses.replace(identity, patient_id="p2"))
    mixed = dataclasses.replace(series, between=(*series.between[:3], other))
    with pytest.raises(ScanError, match="differ in PatientID"):
        derived_objects.require_one_identity(mixed)


def test_two_runs_are_told_apart() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5)
    one = derived_objects.series_of_result(SERIES, "abdomen-ct", 1000, moment)
    other = derived_objects.series_of_result(SERIES, "abdomen-ct", 1000, moment + timedelta(seconds=1))
    assert one.SeriesDescription == "ZoomSeg abdomen-ct 2026-01-02 03:04:05"
    assert other.SeriesDescription == "ZoomSeg abdomen-ct 2026-01-02 03:04:06"
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert (one.SeriesNumber, one.SeriesDate, one.SeriesTime) == (1004, "20260102", "030405")
    assert other.SeriesTime == "030406"
    longest = derived_objects.series_of_result(SERIES, "m\\" * 99, 1000, moment).SeriesDescription
    assert len(longest) <= 64
    assert longest.endswith(" 2026-01-02 03:04:05")


@pytest.mark.parametrize("write", [write_seg, write_rtstruct])
def test_an_object_says_when_it_was_made(write: Callable[..., bool], tmp_path: Path) -> None:
    before = datetime.now().replace(microsecond=0)
    write(tmp_path / "a.dcm", drawn_on(SERIES.grid), SERIES, "abdomen-ct")
    found = pydicom.dcmread(tmp_path / "a.dcm")
    made = datetime.strptime(found.SeriesDate + found.SeriesTime, "%Y%m%d%H%M%S")
    assert before <= made <= datetime.now()
    assert found.SeriesDescription == f"ZoomSeg abdomen-ct {made:%Y-%m-%d %H:%M:%S}"
    content = (
        ("StructureSetDate", "StructureSetTime")
        if write is write_rtstruct
        else ("ContentDate", "ContentTime")
    )
    assert [found[keyword].value for keyword in content] == [found.SeriesDate, found.SeriesTime]


def test_planes_refer_to_the_stored_slices() -> None:
    single = derived_objects.reference_item(SERIES, 2)
    assert single is not None
    assert (single.ReferencedSOPClassUID, single.ReferencedSOPInstanceUID) == (CTImageStorage, "1.2.3.4.1.3")
    assert "ReferencedFrameNumber" not in single
    enhanced = series_on(SERIES.grid, enhanced=True)
    frame = derived_objects.reference_item(enhanced, 2)
    assert frame is not None
    assert (frame.ReferencedSOPInstanceUID, frame.ReferencedFrameNumber) == ("1.2.3.4.1", 3)
    assert [i.ReferencedSOPInstanceUID for i in derived_objects.instance_items(enhanced)] == ["1.2.3.4.1"]


def test_nothing_refers_to_what_is_not_there() -> None:
    series = interpolated(SERIES, 0)
    second = series.slices[1]
    assert second is not None
    damaged = dataclasses.replace(second, sop_uid="1.2.x")
    series = dataclasses.replace(series, slices=(None, damaged, *series.slices[2:]))
    assert [derived_objects.reference_item(series, k) is None for k in range(3)] == [True, True, False]
    uids = [item.ReferencedSOPInstanceUID for item in derived_objects.instance_items(series)]
    assert uids == [f"1.2.3.4.1.{k}" for k in range(3, 10)]


def test_a_code_is_its_triple() -> None:
    item = derived_objects.code_item(Code("10200004", "Liver"))
    assert (item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning) == ("10200004", "SCT", "Liver")


def test_labels_must_lie_where_the_series_does() -> None:
    def labels(series: DicomSeries) -> LabelMap:
        return LabelMap(np.zeros(series.grid.shape, dtype=np.uint8), series.grid, ORGANS)

    near = labels(moved(SERIES, 0.009))
    near.data[3, 4, 5], near.data[6, 7, 8] = 2, 1
    assert derived_objects.found_classes(near, SERIES) == [1, 2]
    with pytest.raises(GeometryError, match=r"\(16, 12, 9\) lie 0\.02 mm off the grid of series 'Abdomen'"):
        derived_objects.found_classes(labels(moved(SERIES, 0.02)), SERIES)
    with pytest.raises(GeometryError, match=r"\(16, 12, 8\) lie .* of shape \(16, 12, 9\); write them"):
        derived_objects.found_classes(labels(series_on(grid_of("oblique", (16, 12, 8)))), SERIES)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, dataset = tmp_path / "a.dcm", dicom_series.stack(dicom_series.ramp(1))[0]
    derived_objects.save(dataset, path)
    before = path.read_bytes()
    dataset["PixelData"]._value = 5  # the last element: most of the file has been written
    with pytest.raises(TypeError, match="'int'"):
        derived_objects.save(dataset, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="cannot be written"):
        derived_objects.save(dataset, tmp_path / "nowhere" / "a.dcm")
