"""Written objects are read by SimpleITK and highdicom; objects to be read were written by highdicom, or by
hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.sr.codedict import codes

from helpers.dicom_annotations import (
    ORGANS,
    ORIENTATIONS,
    drawn_on,
    grid_of,
    interpolated,
    series_on,
)
from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.errors import GeometryError
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom.read.seg import read_seg
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write.seg import write_seg

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_simpleitk_reads_every_frame_as_the_organ_in_its_plane(orientation: str, tmp_path: Path) -> None:
    grid = grid_of(orientation)
    labels, path = drawn_on(grid), tmp_path / "case.seg.dcm"
    write_seg(path, labels, series_on(grid), "abdomen-ct")
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    dataset = pydicom.dcmread(path)
    found = np.zeros(grid.shape, dtype=np.uint8)
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        assert frame.any()
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float) * (-1, -1, 1)
        i, j, k = grid.index(position)
        assert (i, j) == pytest.approx((0, 0), abs=1e-6)
        assert k == pytest.approx(round(k), abs=1e-6)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        name = dataset.SegmentSequence[number - 1].SegmentLabel
        found[:, :, round(k)][frame.T > 0] = ORGANS.class_of(name)
    assert (found == labels.data).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_highdicom_reads_the_labels_where_they_were(orientation: str, tmp_path: Path) -> None:
    grid = grid_of(orientation, shape=(13, 11, 9))  # frames do not end with a byte
    labels, path = drawn_on(grid), tmp_path / "case.seg.dcm"
    write_seg(path, labels, series_on(grid), "abdomen-ct")
    seg = hd.seg.segread(path)
    volume = seg.get_volume(combine_segments=True)  # [plane, row, column]
    names = ["", *(seg.get_segment_description(n).segment_label for n in seg.segment_numbers)]
    to_grid = np.linalg.inv(grid.affine) @ LPS @ volume.affine
    found = np.zeros(grid.shape, dtype=np.uint8)
    at = np.argwhere(volume.array)
    index = np.rint(at @ to_grid[:3, :3].T + to_grid[:3, 3]).astype(int)
    numbers = volume.array[tuple(at.T)]
    found[tuple(index.T)] = [ORGANS.class_of(names[n]) for n in numbers]
    assert (found == labels.data).all()


def test_segments_are_coded_coloured_and_say_who_made_them(written_seg: Path) -> None:
    seg = hd.seg.segread(written_seg)
    liver, left, right, lesion = (seg.get_segment_description(n) for n in seg.segment_numbers)
    assert [s.segment_label for s in (liver, left, right, lesion)] == [
        *("liver", "left kidney", "right_kidney", "my lesion")
    ]
    assert liver.segmented_property_type == codes.SCT.Liver
    assert left.segmented_property_type == right.segmented_property_type == codes.SCT.Kidney
    assert liver.segmented_property_category == codes.SCT.AnatomicalStructure
    sides = [s.SegmentedPropertyTypeCodeSequence[0] for s in (left, right)]
    values = [s.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue for s in sides]
    assert values == [codes.SCT.Left.value, codes.SCT.Right.value]
    assert lesion.segmented_property_type.scheme_designator == "99ZOOMSEG"
    assert lesion.segmented_property_type.meaning == "my lesion"
    identified = liver.algorithm_identification
    assert (identified.name, identified.version) == ("abdomen-ct", "3")
    assert liver.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    for segment in (liver, left, right, lesion):
        lab = np.array(segment.RecommendedDisplayCIELabValue)
        assert rgb_of(lab) == pytest.approx(organ_colour(segment.segment_label), abs=2)


def rgb_of(stored: npt.NDArray[np.int_]) -> npt.NDArray[np.float64]:
    """DICOM's 16-bit CIELab to sRGB, by the formulas of the CIE (D65)."""
    lightness, a, b = stored[0] / 65535 * 100, stored[1] / 257 - 128, stored[2] / 257 - 128
    y = (lightness + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.95047, 1.0, 1.08883)
    matrix = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    linear = np.clip(np.array(matrix) @ xyz, 0, 1)
    out: npt.NDArray[np.float64] = 255 * np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return out


def test_it_belongs_to_the_patient_and_study_and_refers_to_the_slices(
    written_seg: Path, series: DicomSeries
) -> None:
    dataset = pydicom.dcmread(written_seg)
    assert (dataset.PatientName, dataset.PatientID, dataset.StudyDate) == ("Doe^Jane", "P1", "20260102")
    assert dataset.StudyInstanceUID == series.study_uid
    assert dataset.SeriesInstanceUID != series.series_uid
    assert dataset.FrameOfReferenceUID == series.frame_of_reference_uid
    (referenced,) = dataset.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.series_uid
    uids = [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence]
    assert uids == list(series.slice_uids)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        mine = next(s for s in series.slices if s and s.sop_uid == source.ReferencedSOPInstanceUID)
        assert position == pytest.approx(mine.position_lps_mm, abs=1e-6)
        assert source.ReferencedSOPClassUID == series.sop_class_uid
        assert source.SpatialLocationsPreserved == "YES"
        assert "ReferencedFrameNumber" not in source


def test_an_interpolated_plane_refers_to_nothing_and_a_tilted_one_says_so(tmp_path: Path) -> None:
    series = interpolated(series_on(grid_of("axial")), 3)
    first = series.slices[2]
    assert first is not None
    x, y, z = first.position_lps_mm
    tilted = dataclasses.replace(first, position_lps_mm=(x, y + 4, z))
    series = dataclasses.replace(series, slices=(*series.slices[:2], tilted, *series.slices[3:]))
    path = tmp_path / "case.seg.dcm"
    write_seg(path, drawn_on(series.grid), series, "abdomen-ct")
    seen = set()
    for frame in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        z = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        k = round((z - 103.0) / 2.5)
        if k == 3:
            assert len(frame.DerivationImageSequence) == 0, "it may be empty, not absent"
        else:
            source = frame.DerivationImageSequence[0].SourceImageSequence[0]
            assert source.ReferencedSOPInstanceUID == series.slice_uids[k]
            assert source.SpatialLocationsPreserved == ("NO" if k == 2 else "YES")
        seen.add(k)
    assert {2, 3, 4} <= seen


def test_frames_of_an_enhanced_image_are_referred_to_by_number(tmp_path: Path) -> None:
    series = series_on(grid_of("coronal"), enhanced=True)
    path = tmp_path / "case.seg.dcm"
    write_seg(path, drawn_on(series.grid), series, "abdomen-ct")
    dataset = pydicom.dcmread(path)
    assert len(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float) * (-1, -1, 1)
        assert source.ReferencedFrameNumber == round(series.grid.index(position)[2]) + 1


def test_nothing_found_is_nothing_written(tmp_path: Path, series: DicomSeries) -> None:
    nothing = LabelMap(np.zeros(series.grid.shape, dtype=np.uint8), series.grid, ORGANS)
    assert not write_seg(tmp_path / "case.seg.dcm", nothing, series, "abdomen-ct")
    assert not list(tmp_path.iterdir())


def test_labels_on_another_grid_are_refused(tmp_path: Path, series: DicomSeries) -> None:
    with pytest.raises(GeometryError, match="mm off the grid of series 'Abdomen'"):
        write_seg(tmp_path / "case.seg.dcm", drawn_on(grid_of("oblique")), series, "abdomen-ct")


def test_headers_that_lack_what_they_should_have_are_no_obstacle(
    tmp_path: Path, series: DicomSeries, recwarn: pytest.WarningsRecorder
) -> None:
    nameless = tuple(dataclasses.replace(s, sop_uid="") for s in series.slices if s)
    bare = dataclasses.replace(
        series,
        slices=nameless,
        study_uid="not a UID",
        series_uid="1." + "2" * 100,
        frame_of_reference_uid="",
        modality="",
        number=None,
        patient=(
            *(("StudyDate", "20261341"), ("PatientSex", "\\"), ("PatientName", "A\\B"), ("StudyTime", "99")),
            *(("PatientBirthDate", "yesterday"), ("PatientID", "x" * 100), ("StudyID", "y" * 100)),
        ),
    )
    path, labels = tmp_path / "case.seg.dcm", drawn_on(series.grid)
    write_seg(path, labels, bare, "", "")
    assert not recwarn.list
    dataset = pydicom.dcmread(path)
    assert (dataset.StudyDate, dataset.PatientSex, dataset.PatientName) == ("", "", "A B")
    found, _ = read_seg(path, bare).label_map(ORGANS)
    assert (found.data == labels.data).all()
