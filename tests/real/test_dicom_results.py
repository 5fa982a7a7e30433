"""Real organs on a real series as SEG and RTSTRUCT, read by SimpleITK, highdicom and plain pydicom."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from matplotlib.path import Path as Polygon

from helpers import dciodvfy
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom.read.rtstruct import read_rtstruct
from zoomseg.io.dicom.read.seg import read_seg
from zoomseg.io.dicom.read.series_discovery import the_series
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write.rtstruct import write_rtstruct
from zoomseg.io.dicom.write.seg import write_seg

DATA = os.environ.get("ZOOMSEG_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ZOOMSEG_DATA is not set: no real data on this machine")

Mask = npt.NDArray[np.bool_]


@pytest.fixture(scope="module")
def series() -> DicomSeries:
    return the_series(Path(str(DATA)) / "ct_dicom").series


@pytest.fixture(scope="module")
def labels(series: DicomSeries) -> LabelMap:
    folder = Path(str(DATA)) / "ct_dicom"
    named = json.loads((folder / "reference_labels.json").read_text())
    schema = LabelSchema(tuple(named), tuple(named.values()))
    image = nib.as_closest_canonical(nib.load(folder / "reference_labels.nii.gz"))
    values = np.asarray(image.dataobj).astype(np.int64)[::-1, ::-1]  # from RAS+ to the LPS+ of DICOM
    classes = schema.encode(np.where(np.isin(values, schema.values), values, 0))
    labels = LabelMap(np.ascontiguousarray(classes), series.grid, schema)
    assert len(np.unique(labels.data)) == 1 + len(named)
    return labels


@pytest.fixture(scope="module")
def planes() -> dict[str, pydicom.Dataset]:
    """The series' files by SOP instance UID, which only the files' own headers contain."""
    files = (Path(str(DATA)) / "ct_dicom").glob("*.dcm")
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in files]
    return {h.file_meta.MediaStorageSOPInstanceUID: h for h in headers}


def expected(labels: LabelMap, name: str) -> Mask:
    mask: Mask = labels.data == labels.schema.class_of(name)
    return mask


def test_simpleitk_and_highdicom_read_the_segments_voxel_by_voxel(
    tmp_path: Path, series: DicomSeries, labels: LabelMap, planes: dict[str, pydicom.Dataset]
) -> None:
    path = tmp_path / "case.seg.dcm"
    write_seg(path, labels, series, "abdomen-ct")
    frames, dataset = sitk.GetArrayFromImage(sitk.ReadImage(str(path))), pydicom.dcmread(path)
    order = [uid for uid in series.slice_uids if uid]
    found = {s.SegmentLabel: np.zeros(series.grid.shape, dtype=bool) for s in dataset.SegmentSequence}
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        assert position == pytest.approx(np.array(planes[source].ImagePositionPatient, dtype=float), abs=1e-4)
        assert frame.any()
        found[dataset.SegmentSequence[number - 1].SegmentLabel][:, :, order.index(source)] = frame.T > 0
    assert set(found) == set(labels.schema.names)
    for name, mask in found.items():
        assert (mask == expected(labels, name)).all(), name
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    z = volume.affine[2, 3] + volume.affine[2, 0] * np.arange(volume.shape[0])
    k = np.rint((z - series.grid.affine[2, 3]) / series.grid.affine[2, 2]).astype(int)
    assert (volume.array.transpose(2, 1, 0) == labels.data[:, :, k]).all()
    assert (read_seg(path, series).label_map(labels.schema)[0].data == labels.data).all()


def test_contours_filled_by_matplotlib_are_the_organs_voxel_by_voxel(
    tmp_path: Path, series: DicomSeries, labels: LabelMap, planes: dict[str, pydicom.Dataset]
) -> None:
    path = tmp_path / "case.rtstruct.dcm"
    write_rtstruct(path, labels, series, "abdomen-ct")
    dataset = pydicom.dcmread(path)
    order = [uid for uid in series.slice_uids if uid]
    names = {roi.ROINumber: roi.ROIName for roi in dataset.StructureSetROISequence}
    assert set(names.values()) == set(labels.schema.names)
    for roi in dataset.ROIContourSequence:
        mask = np.zeros(series.grid.shape, dtype=bool)
        for contour in roi.ContourSequence:
            uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            x, y, z = (float(c) for c in planes[uid].ImagePositionPatient)
            points = np.array([float(c) for c in contour.ContourData]).reshape(-1, 3)
            assert np.abs(points[:, 2] - z).max() < 1e-3
            index = (points[:, :2] - (x, y)) / [float(s) for s in planes[uid].PixelSpacing][::-1]
            low, high = np.floor(index.min(axis=0)).astype(int), np.ceil(index.max(axis=0)).astype(int)
            columns, rows = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)))
            polygon = Polygon(np.concatenate([index, index[:1]]), closed=True)
            inside = polygon.contains_points(np.column_stack([columns.ravel(), rows.ravel()]))
            part = mask[low[0] : high[0] + 1, low[1] : high[1] + 1, order.index(uid)]
            part ^= inside.reshape(columns.shape).T
        name = names[roi.ReferencedROINumber]
        assert (mask == expected(labels, name)).all(), name
    assert (read_rtstruct(path, series).label_map(labels.schema)[0].data == labels.data).all()


@dciodvfy.needed
@pytest.mark.parametrize("write", [write_seg, write_rtstruct])
def test_objects_of_a_scanner_s_series_are_valid(
    write: Callable[..., bool], tmp_path: Path, series: DicomSeries, labels: LabelMap
) -> None:
    """Results contain the attributes of patient and study from the series' headers."""
    assert write(tmp_path / "object.dcm", labels, series, "abdomen-ct")
    told = dciodvfy.found_by(tmp_path / "object.dcm")
    assert [line for line in told if "Unrecognized defined term = <SECTRA>" not in line] == []
    found = pydicom.dcmread(tmp_path / "object.dcm", stop_before_pixels=True)
    source = pydicom.dcmread(series.paths[0], stop_before_pixels=True)
    for keyword in ("IssuerOfPatientID", "PatientWeight", "PregnancyStatus", "ProcedureCodeSequence"):
        assert found[keyword].value == source[keyword].value
