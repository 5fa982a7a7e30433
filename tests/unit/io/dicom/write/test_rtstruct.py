"""Contours are parsed by plain pydicom, placed by the series' headers and filled by matplotlib's paths."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset

from helpers.dicom_annotations import ORGANS, ORIENTATIONS, drawn_on, grid_of, interpolated, series_on
from helpers.grids import centre_mm
from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.errors import GeometryError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write.rtstruct import write_rtstruct

FloatArray = npt.NDArray[np.float64]


def points_of(contour: Dataset) -> FloatArray:
    points = np.array([float(c) for c in contour.ContourData]).reshape(-1, 3)
    assert len(points) == contour.NumberOfContourPoints
    assert contour.ContourGeometricType == "CLOSED_PLANAR"
    return points


def masks_of(path: Path, series: DicomSeries) -> dict[str, npt.NDArray[np.bool_]]:
    """Each structure as a mask ``[I, J, K]`` of the voxels whose centre its contours surround, by the slice
    to which each contour refers."""
    dataset = pydicom.dcmread(path)
    names = {roi.ROINumber: str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    slices = {uid: k for k, uid in enumerate(series.slice_uids)}
    voxels = np.stack(np.meshgrid(*map(np.arange, series.grid.shape), indexing="ij"), axis=-1)
    centres = series.grid.world(voxels) * (-1, -1, 1)
    found = {}
    for roi in dataset.ROIContourSequence:
        mask = found[names[roi.ReferencedROINumber]] = np.zeros(series.grid.shape, dtype=bool)
        for contour in roi.ContourSequence:
            points = points_of(contour)
            k = slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            flat = centres[:, :, k].reshape(-1, 3)
            along = np.linalg.svd(flat - flat.mean(axis=0))[2]  # two directions in the slice, one across
            assert np.abs((points - flat[0]) @ along[2]).max() < 1e-3
            polygon = Polygon(np.concatenate([points, points[:1]]) @ along[:2].T, closed=True)
            mask[:, :, k] ^= polygon.contains_points(flat @ along[:2].T).reshape(mask.shape[:2])
    return found


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_filled_contours_are_the_organs_voxel_by_voxel(orientation: str, tmp_path: Path) -> None:
    series = series_on(grid_of(orientation))
    labels, path = drawn_on(series.grid), tmp_path / "case.rtstruct.dcm"
    write_rtstruct(path, labels, series, "abdomen-ct")
    found = masks_of(path, series)
    assert set(found) == {"liver", "left kidney", "right_kidney", "my lesion"}
    for name, mask in found.items():
        assert (mask == (labels.data == ORGANS.class_of(name))).all(), name


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_ball_s_contours_lie_within_half_a_voxel_of_it(orientation: str, tmp_path: Path) -> None:
    grid = grid_of(orientation, shape=(40, 30, 11))
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(grid.world(voxels) - centre_mm(grid), axis=-1)
    ball = LabelMap((distance < 12).astype(np.uint8), grid, LabelSchema.consecutive(["liver"]))
    path = tmp_path / "case.rtstruct.dcm"
    write_rtstruct(path, ball, series_on(grid), "abdomen-ct")
    contours = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    assert len(contours) == int(ball.data.any(axis=0).any(axis=0).sum())
    half = math.hypot(0.8, 1.1) / 2
    for contour in contours:
        from_centre = points_of(contour) * (-1, -1, 1) - centre_mm(grid)
        across = grid.affine[:3, 2] / grid.spacing_mm[2]
        height = from_centre @ across
        radius = np.sqrt(144 - height[0] ** 2)
        off = np.linalg.norm(from_centre - np.outer(height, across), axis=1) - radius
        assert np.abs(off).max() < half


def test_holes_are_cut_out_by_keyholes(written_rtstruct: Path, series: DicomSeries) -> None:
    """Slices with a hole have one polygon, with two edges along the same connection."""
    dataset = pydicom.dcmread(written_rtstruct)
    liver = dataset.ROIContourSequence[0].ContourSequence
    assert len(liver) == 5
    z = {round((points_of(c)[0, 2] - 103.0) / 2.5): points_of(c).round(3) for c in liver}
    for k, holes in ((1, 0), (2, 1), (4, 1), (5, 0)):
        edges = [frozenset(map(tuple, e)) for e in zip(z[k], np.roll(z[k], -1, axis=0), strict=True)]
        assert len(edges) - len(set(edges)) == holes
        x, y = z[k][:, 0], z[k][:, 1]
        area = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
        assert area == pytest.approx((64 - 0.5 - holes * (9 - 0.5)) * 0.8 * 1.1, rel=1e-3)


def test_structures_are_named_coded_and_coloured(written_rtstruct: Path) -> None:
    dataset = pydicom.dcmread(written_rtstruct)
    names = [str(roi.ROIName) for roi in dataset.StructureSetROISequence]
    assert names == ["liver", "left kidney", "right_kidney", "my lesion"]
    for name, roi, observation in zip(
        names, dataset.ROIContourSequence, dataset.RTROIObservationsSequence, strict=True
    ):
        assert tuple(roi.ROIDisplayColor) == organ_colour(name)
        assert observation.RTROIInterpretedType == "ORGAN"
        assert observation.ReferencedROINumber == roi.ReferencedROINumber
    kidney = dataset.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0]
    assert (kidney.CodeValue, kidney.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert {roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {"AUTOMATIC"}
    assert dataset.ApprovalStatus == "UNAPPROVED"


def test_it_belongs_to_the_study_and_refers_to_the_slices(
    written_rtstruct: Path, series: DicomSeries
) -> None:
    dataset = pydicom.dcmread(written_rtstruct)
    assert (dataset.PatientID, dataset.StudyInstanceUID) == ("P1", series.study_uid)
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == series.frame_of_reference_uid
    (images,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert images.SeriesInstanceUID == series.series_uid
    assert [i.ReferencedSOPInstanceUID for i in images.ContourImageSequence] == list(series.slice_uids)
    assert {r.ReferencedFrameOfReferenceUID for r in dataset.StructureSetROISequence} == {
        series.frame_of_reference_uid
    }


def test_frames_and_interpolated_planes_are_referred_to_as_far_as_they_exist(tmp_path: Path) -> None:
    series = interpolated(series_on(grid_of("axial"), enhanced=True), 3)
    path = tmp_path / "case.rtstruct.dcm"
    write_rtstruct(path, drawn_on(series.grid), series, "abdomen-ct")
    for contour in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence:
        k = round((points_of(contour)[0, 2] - 103.0) / 2.5)
        if k == 3:
            assert "ContourImageSequence" not in contour
        else:
            assert contour.ContourImageSequence[0].ReferencedFrameNumber == k + 1


def test_every_value_fits_into_its_field(tmp_path: Path) -> None:
    """Far from the origin, with names longer than their fields."""
    grid = grid_of("oblique")
    affine = grid.affine.copy()
    affine[:3, 3] = (-98765.4321, 12345.6789, -99999.9)
    grid = dataclasses.replace(grid, affine=affine)
    labels = drawn_on(grid)
    schema = LabelSchema(("a\\b" + "long" * 30, *ORGANS.names[1:]), ORGANS.values)
    path = tmp_path / "case.rtstruct.dcm"
    write_rtstruct(path, LabelMap(labels.data, grid, schema), series_on(grid), "m" * 100, "v" * 100)
    dataset = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        raw = [
            str(c) for roi in dataset.ROIContourSequence for t in roi.ContourSequence for c in t.ContourData
        ]
    assert max(map(len, raw)) <= 16
    assert str(dataset.StructureSetROISequence[0].ROIName) == ("a b" + "long" * 30)[:64]
    pydicom.dcmread(path).to_json_dict()  # converts, and thereby checks, every element


def test_nothing_found_is_nothing_written(tmp_path: Path, series: DicomSeries) -> None:
    nothing = LabelMap(np.zeros(series.grid.shape, dtype=np.uint8), series.grid, ORGANS)
    assert not write_rtstruct(tmp_path / "case.rtstruct.dcm", nothing, series, "abdomen-ct")
    assert not list(tmp_path.iterdir())


def test_labels_on_another_grid_are_refused(tmp_path: Path, series: DicomSeries) -> None:
    with pytest.raises(GeometryError, match="mm off the grid of series 'Abdomen'"):
        write_rtstruct(tmp_path / "r.dcm", drawn_on(grid_of("oblique")), series, "abdomen-ct")
