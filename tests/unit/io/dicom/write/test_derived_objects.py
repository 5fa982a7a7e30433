"""What objects repeat of the series they were made of, and which files are read at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, DeflatedExplicitVRLittleEndian

from helpers import dicom_series
from helpers.dicom_annotations import ORGANS, ORIENTATIONS, drawn_on, grid_of, interpolated, series_on
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
UIDS = (derived_objects.study_uid, derived_objects.series_uid, derived_objects.frame_of_reference_uid)


def without_uids(series: DicomSeries, **changes: Any) -> DicomSeries:
    nameless = tuple(s and dataclasses.replace(s, sop_uid="") for s in series.slices)
    lost = dict.fromkeys(("study_uid", "series_uid", "frame_of_reference_uid"), "")
    return dataclasses.replace(series, slices=nameless, **lost, **changes)


def moved(series: DicomSeries, mm: float) -> DicomSeries:
    affine = series.grid.affine.copy()
    affine[0, 3] += mm
    return dataclasses.replace(series, grid=Grid(series.grid.shape, affine))


# --- written --------------------------------------------------------------------------------------


def test_uids_of_the_series_are_kept() -> None:
    assert [uid(SERIES) for uid in UIDS] == ["1.2.3.4", "1.2.3.4.5", "1.2.3.4.6"]


@pytest.mark.parametrize("bad", ["", "1", "1.2.03", "1.2.", "1.2\n", "1.2.x", "1." + "2" * 63])
def test_a_uid_that_is_none_is_replaced_by_one_that_stays_the_same(bad: str) -> None:
    lost = dataclasses.replace(SERIES, study_uid=bad)
    found = derived_objects.study_uid(lost)
    assert UID(found).is_valid
    assert found == derived_objects.study_uid(dataclasses.replace(lost))
    assert derived_objects.series_uid(lost) == SERIES.series_uid
    other = dataclasses.replace(lost, series_uid="1.2.3.4.7")
    assert derived_objects.study_uid(other) != found


def test_the_longest_uid_is_one() -> None:
    longest = "1." + "2" * 62
    assert derived_objects.study_uid(dataclasses.replace(SERIES, study_uid=longest)) == longest


def test_series_that_lost_all_uids_are_still_told_apart() -> None:
    lost = without_uids(SERIES)
    found = {uid(lost) for uid in UIDS}
    assert found == {uid(without_uids(SERIES)) for uid in UIDS}
    others = (without_uids(SERIES, patient=(("PatientID", "P2"),)), moved(lost, 0.5))
    assert len(found.union(*({uid(other) for uid in UIDS} for other in others))) == 9


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


# --- identity -------------------------------------------------------------------------------------

WHOSE = SERIES.identity


def slices_of(*identities: Identity | None) -> DicomSeries:
    """The first slices as if their headers said this, the others as if they agreed."""
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
    """So that whatever puts them together wrongly is found out: here a hand that does."""
    values = dicom_series.ramp(9, 12, 16)
    mine, other = (
        the_series(dicom_series.write(tmp_path / name, dicom_series.stack(values, PatientID=name))).series
        for name in ("p1", "p2")
    )
    derived_objects.require_one_identity(mine)
    mixed = dataclasses.replace(mine, slices=(*mine.slices[:4], *other.slices[4:]))
    with pytest.raises(ScanError, match="slices of series 'body' differ in PatientID;"):
        write_seg(tmp_path / "a.dcm", drawn_on(mixed.grid), mixed, "m")


def test_what_a_series_lacks_that_objects_must_name_is_told(tmp_path: Path) -> None:
    assert derived_objects.notes_on_identity(SERIES) == ()
    assert derived_objects.notes_on_identity(without_uids(SERIES)) == (
        "it lacks a valid StudyInstanceUID and SeriesInstanceUID and FrameOfReferenceUID; a SEG or RTSTRUCT "
        "of it has one made up, and archives and viewers do not put it with the images",
        "it has slices without SOPInstanceUID; a SEG or RTSTRUCT does not refer to these",
    )
    lost = dicom_series.stack(dicom_series.ramp(), StudyInstanceUID=None)
    lacking, note = the_series(dicom_series.write(tmp_path, lost)).series.notes
    assert lacking == ("its headers lack StudyInstanceUID; images of several studies could not be told apart")
    assert note.startswith("it lacks a valid StudyInstanceUID; a SEG or RTSTRUCT of it has one made up")


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


# --- references -----------------------------------------------------------------------------------


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


def test_left_and_back_are_positive_in_dicom() -> None:
    points = np.array([[1.0, 2.0, 3.0], [-4.0, 5.0, -6.0]])
    assert derived_objects.lps(points).tolist() == [[-1, -2, 3], [4, -5, -6]]
    assert derived_objects.lps(derived_objects.lps(points)).tolist() == points.tolist()


def test_an_axial_grid_in_dicoms_words() -> None:
    grid = grid_of("axial")
    assert derived_objects.in_plane_directions(grid) == (1, 0, 0, 0, 1, 0)
    positions = derived_objects.plane_positions(grid)
    assert positions[:2].tolist() == [[-31.25, 17.5, 103.0], [-31.25, 17.5, 105.5]]
    assert len(positions) == 9


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_is_written_of_a_plane_leads_back_to_its_voxels(orientation: str) -> None:
    grid = grid_of(orientation)  # 0.8 mm between columns, 1.1 mm between rows
    position = derived_objects.plane_positions(grid)[4]
    affine = derived_objects.slice_affine(
        derived_objects.in_plane_directions(grid), (1.1, 0.8), position.tolist()
    )
    at = np.array([[0, 0, 1], [15, 0, 1], [0, 11, 1], [3.5, 7.25, 1]])
    assert (at @ affine.T)[:, 3].tolist() == [1, 1, 1, 1]
    expected = grid.world([(0, 0, 4), (15, 0, 4), (0, 11, 4), (3.5, 7.25, 4)])
    np.testing.assert_allclose((at @ affine.T)[:, :3], expected, atol=1e-12)


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


# --- read -----------------------------------------------------------------------------------------


def saved(path: Path, dataset: Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def image() -> Dataset:
    return dicom_series.stack(dicom_series.ramp(1))[0]


def refused(path: Path, kinds: dict[str, str]) -> str:
    with pytest.raises(ScanError) as error:
        derived_objects.read_object(path, kinds)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_an_object_of_the_kind_asked_for_is_read(image: Dataset, tmp_path: Path) -> None:
    found = derived_objects.read_object(saved(tmp_path / "a.dcm", image), CT)
    assert (found.SOPInstanceUID, found.PixelData) == (image.SOPInstanceUID, image.PixelData)


def test_other_kinds_are_refused_by_name(image: Dataset, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.dcm", image)
    assert (
        refused(path, {"1.2": "SEG", "1.3": "RTSTRUCT"}) == "is CT Image Storage; a SEG or RTSTRUCT is needed"
    )
    data = path.read_bytes()
    at = data.rindex(str(CTImageStorage).encode())
    path.write_bytes(data[:at] + b"1\n3" + data[at + 3 :])
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        assert refused(path, CT) == "is 1 3.840.10008.5.1.4.1.1.2; a CT is needed"
    path.write_bytes(data[:at] + b"\0" * len(CTImageStorage) + data[at + len(CTImageStorage) :])
    assert refused(path, CT) == "is of no kind; a CT is needed"


def test_what_hides_its_size_or_is_too_large_is_refused_unread(
    image: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = saved(tmp_path / "deflated.dcm", image)
    monkeypatch.setattr(pydicom, "dcmread", lambda path: pytest.fail("read"))
    assert refused(deflated, CT).startswith("is deflated as a whole; write it uncompressed")
    monkeypatch.setattr(derived_objects, "MAX_OBJECT_BYTES", deflated.stat().st_size - 1)
    assert refused(deflated, CT).startswith(f"larger than {derived_objects.MAX_OBJECT_BYTES} bytes")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.dcm", CT) == "no such file"
    (tmp_path / "a.dcm").write_bytes(b"PK\3\4" * 100)
    for path in (tmp_path / "a.dcm", tmp_path):
        assert refused(path, CT).startswith("damaged, truncated or not DICOM (")


def test_what_was_drawn_in_another_frame_of_reference_is_refused() -> None:
    path = Path("x.dcm")
    with pytest.raises(ScanError) as error:
        derived_objects.require_frame(path, "1.2\n9", SERIES)
    assert str(error.value) == (
        "x.dcm: drawn in frame of reference 1.2 9, but series 'Abdomen' lies in 1.2.3.4.6; "
        "give the series that it was drawn on"
    )
    derived_objects.require_frame(path, "1.2.3.4.6", SERIES)
    derived_objects.require_frame(path, "", SERIES)
    derived_objects.require_frame(path, "1.2.9", without_uids(SERIES))
