"""RTSTRUCT: label maps as contours in patient coordinates, slice by slice, and back.

Contours are closed and planar, in LPS+ millimetres, one polygon per connected part in a slice; holes are cut
out by keyholes (see ``io.dicom.contours``). When reading, contours of one structure in one slice are combined
by exclusive or, so that holes drawn as contours of their own are holes, too.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage

from zoomseg.core.colours import organ_colour
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom import objects
from zoomseg.io.dicom.codes import coded, short_text
from zoomseg.io.dicom.contours import filled, outlines
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.structures import Indices, Structures, unused_name
from zoomseg.io.files import reading

KINDS = {str(RTStructureSetStorage): "RTSTRUCT"}
"""SOP classes that are read."""

PLANE_TOLERANCE = 0.2
"""A contour whose points lie further than so many slice distances off a slice is refused."""

MAX_STRUCTURES = 2_000
MAX_CONTOURS = 500_000
MAX_POINTS = 2_000_000
"""More points in one contour are refused."""

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_CONTOUR_DATA = Tag("ContourData")
_DECIMALS = 4  # a ten-thousandth of a millimetre; with it every coordinate fits into sixteen characters


# --- writing --------------------------------------------------------------------------------------


def write_rtstruct(path: Path, labels: LabelMap, series: DicomSeries, model: str, version: str = "") -> bool:
    """Write the organs that were found as an RTSTRUCT.

    Args:
        labels: on the series' own grid.
        model, version: what made them, for the record.

    Returns:
        False where no organ was found: nothing is written.

    Raises:
        GeometryError: the labels lie on another grid.
        OutputError: the file cannot be written.
    """
    found = objects.found_classes(labels, series)
    if not found:
        return False
    dataset = _header(series, model, version)
    classes = labels.data.cpu().numpy()
    rois, contours, observations = [], [], []
    for number, value in enumerate(found, start=1):
        name = labels.schema.names[value - 1]
        rois.append(_roi(number, name, series, model))
        contours.append(_contours(number, name, np.asarray(classes == value), series))
        observations.append(_observation(number, name))
    dataset.StructureSetROISequence = rois
    dataset.ROIContourSequence = contours
    dataset.RTROIObservationsSequence = observations
    objects.save(dataset, path)
    return True


def _header(series: DicomSeries, model: str, version: str) -> Dataset:
    dataset = objects.patient_and_study(series)
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = UID(objects.new_uid())
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = UID(objects.new_uid())
    dataset.SeriesNumber = (series.number or 0) % 100_000 + 2000
    dataset.SeriesDescription = f"ZoomSeg {short_text(model)}"[:64]
    dataset.OperatorsName = ""
    dataset.Manufacturer = objects.MANUFACTURER
    dataset.ManufacturerModelName = short_text(f"{model} {version}") or objects.MANUFACTURER
    dataset.SoftwareVersions = objects.software_version()
    dataset.StructureSetLabel = "ZoomSeg"
    dataset.StructureSetDescription = "Organs found by a neural network, not reviewed"
    dataset.StructureSetDate = dataset.InstanceCreationDate = time.strftime("%Y%m%d")
    dataset.StructureSetTime = dataset.InstanceCreationTime = time.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.FrameOfReferenceUID = objects.frame_of_reference_uid(series)
    dataset.PositionReferenceIndicator = ""
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(series)]
    return dataset


def _frame_of_reference(series: DicomSeries) -> Dataset:
    images, study, frame = Dataset(), Dataset(), Dataset()
    images.SeriesInstanceUID = objects.series_uid(series)
    images.ContourImageSequence = objects.instance_items(series)
    study.ReferencedSOPClassUID = UID(
        "1.2.840.10008.3.1.2.3.1"
    )  # a retired class, but the field must be there
    study.ReferencedSOPInstanceUID = objects.study_uid(series)
    study.RTReferencedSeriesSequence = [images]
    frame.FrameOfReferenceUID = objects.frame_of_reference_uid(series)
    frame.RTReferencedStudySequence = [study]
    return frame


def _roi(number: int, name: str, series: DicomSeries, model: str) -> Dataset:
    roi = Dataset()
    roi.ROINumber = number
    roi.ReferencedFrameOfReferenceUID = objects.frame_of_reference_uid(series)
    roi.ROIName = short_text(name)
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    roi.ROIGenerationDescription = short_text(f"ZoomSeg {model}")
    return roi


def _observation(number: int, name: str) -> Dataset:
    organ, observation = coded(name), Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.ROIObservationLabel = short_text(name, longest=16)
    kind = objects.code_item(organ.type)
    if organ.side is not None:
        kind.SegmentedPropertyTypeModifierCodeSequence = [objects.code_item(organ.side)]
    observation.RTROIIdentificationCodeSequence = [kind]
    observation.RTROIInterpretedType = "ORGAN"
    observation.ROIInterpreter = ""
    return observation


def _contours(number: int, name: str, mask: objects.Mask, series: DicomSeries) -> Dataset:
    found: list[Dataset] = []
    for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        reference = objects.reference_item(series, k)
        for polygon in outlines(mask[:, :, k]):
            found.append(_contour(len(found) + 1, polygon, k, series.grid, reference))
    roi = Dataset()
    roi.ReferencedROINumber = number
    roi.ROIDisplayColor = list(organ_colour(name))
    roi.ContourSequence = found
    return roi


def _contour(number: int, polygon: FloatArray, k: int, grid: Grid, reference: Dataset | None) -> Dataset:
    contour = Dataset()
    contour.ContourNumber = number
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(polygon)
    points = objects.lps(grid.world(np.column_stack([polygon, np.full(len(polygon), k)])))
    # Adding zero makes -0.0 a plain zero.
    text = [f"{c:.{_DECIMALS}f}" for c in (points.round(_DECIMALS) + 0.0).ravel().tolist()]
    # Converted already: pydicom would check a million numbers one by one.
    contour.add(DataElement(_CONTOUR_DATA, "DS", text, already_converted=True))
    if reference is not None:
        contour.ContourImageSequence = [reference]
    return contour


# --- reading --------------------------------------------------------------------------------------


def read_rtstruct(path: Path, series: DicomSeries) -> Structures:
    """The closed contours of an RTSTRUCT that was drawn on ``series``, as voxels whose centres lie within.
    What has none (points, open lines) is left out, with a note; what lies beyond the series is cut.

    Raises:
        ScanError: unreadable, no RTSTRUCT, drawn on another series, or contours that lie across its slices.
    """
    path = Path(path)
    dataset = objects.read_object(path, KINDS)
    with reading(path, "DICOM"):
        names = _names(path, dataset, series)
        voxels: dict[str, Indices] = {}
        notes = []
        for roi in dataset.get("ROIContourSequence", []):
            name = names.pop(int(roi.ReferencedROINumber), None)
            if name is None:
                raise ScanError(f"{path}: has contours of a structure that it does not name, or twice of one")
            found = _voxels(path, name, roi, series.grid)
            if found.size:
                voxels[name] = found
            else:
                notes.append(f"structure '{name}' has no closed contour within the series")
        notes += [f"structure '{name}' has no contours" for name in names.values()]
        return Structures(series.grid, voxels, tuple(notes))


def _names(path: Path, dataset: Dataset, series: DicomSeries) -> dict[int, str]:
    """ROI number to name."""
    rois = dataset.get("StructureSetROISequence", [])
    if not 1 <= len(rois) <= MAX_STRUCTURES:
        raise ScanError(f"{path}: names {len(rois)} structures; 1 to {MAX_STRUCTURES} are read")
    names: dict[int, str] = {}
    for roi in rois:
        objects.require_frame(path, str(roi.get("ReferencedFrameOfReferenceUID", "")), series)
        names[int(roi.ROINumber)] = unused_name(str(roi.get("ROIName", "")), names.values())
    return names


def _voxels(path: Path, name: str, roi: Dataset, grid: Grid) -> Indices:
    slices: dict[int, list[FloatArray]] = {}
    for points in _closed_contours(path, name, roi):
        index = grid.index(objects.lps(points))
        k = _plane(path, name, index[:, 2])
        if 0 <= k < grid.shape[2]:
            slices.setdefault(k, []).append(index[:, :2])
    parts = [np.empty(0, dtype=np.int64)]
    for k, polygons in slices.items():
        i, j = np.nonzero(filled(polygons, grid.shape[:2]))
        parts.append((i * grid.shape[1] + j) * grid.shape[2] + k)
    return np.sort(np.concatenate(parts))


def _plane(path: Path, name: str, k: FloatArray) -> int:
    """The slice that a contour lies in; far ones are all alike beyond the series."""
    nearest = float(np.rint(np.clip(np.median(k), -2, 2**20)))
    off = float(np.abs(k - np.median(k)).max()), abs(float(np.clip(np.median(k), -2, 2**20)) - nearest)
    if max(off) > PLANE_TOLERANCE:
        raise ScanError(
            f"{path}: a contour of '{name}' lies across or between the slices of the series; give the series "
            "that it was drawn on"
        )
    return int(nearest)


def _closed_contours(path: Path, name: str, roi: Dataset) -> Iterator[FloatArray]:
    """Points ``[N, 3]`` in LPS+ millimetres."""
    contours = roi.get("ContourSequence") or []
    if len(contours) > MAX_CONTOURS:
        raise ScanError(f"{path}: '{name}' has {len(contours)} contours; at most {MAX_CONTOURS} are read")
    for contour in contours:
        if contour.get("ContourGeometricType") not in _CLOSED:
            continue
        numbers = _numbers(contour)
        if numbers.size % 3 or numbers.size > 3 * MAX_POINTS or not np.isfinite(numbers).all():
            raise ScanError(
                f"{path}: a contour of '{name}' has {numbers.size} coordinates that make no points"
            )
        if numbers.size >= 9:
            yield numbers.reshape(-1, 3)


def _numbers(contour: Dataset) -> FloatArray:
    """The contour's coordinates; of what pydicom has not looked at yet, without its checks of each number."""
    raw = contour.get_item(_CONTOUR_DATA)
    value = None if raw is None else raw.value
    if isinstance(value, bytes):
        return np.array(value.decode("ascii").strip(" \0").split("\\"), dtype=np.float64)
    return np.array(contour.get("ContourData") or [], dtype=np.float64)
