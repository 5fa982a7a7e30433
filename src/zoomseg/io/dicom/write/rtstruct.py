"""RTSTRUCT: label maps as contours in patient coordinates, slice by slice.

Contours are closed and planar, in LPS+ millimetres, one polygon per connected part in a slice; holes are cut
out by keyholes (see ``io.dicom.contours``).
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ImplicitVRLittleEndian, RTStructureSetStorage

from zoomseg.anatomy.codes import coded, short_text
from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.geometry import Box, FloatArray, Grid
from zoomseg.core.region import class_boxes
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom import coordinates, uids
from zoomseg.io.dicom.contours import outlines
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write import derived_objects

_CONTOUR_DATA = Tag("ContourData")
_DECIMALS = 4  # a ten-thousandth of a millimetre; with it every coordinate fits into sixteen characters


def write_rtstruct(
    path: Path, labels: LabelMap, series: DicomSeries, model: str, version: str = "", seed: str = ""
) -> bool:
    """Write the organs that were found as an RTSTRUCT.

    Args:
        labels: on the series' own grid.
        model, version: for the record.
        seed: of the UIDs (see ``derived_objects.new_uid``).

    Returns:
        False if no organ was found: nothing is written.

    Raises:
        GeometryError: the labels are on another grid.
        ScanError: the series mixes patients or studies.
        OutputError: the file cannot be written.
    """
    derived_objects.require_one_identity(series)
    found = derived_objects.found_classes(labels, series)
    if not found:
        return False
    dataset = _header(series, model, version, seed)
    boxes = class_boxes(labels.data, found)
    rois, contours, observations = [], [], []
    for number, value in enumerate(found, start=1):
        name = labels.schema.names[value - 1]
        rois.append(_roi(number, name, series, model))
        contours.append(
            _contours(number, name, labels.data[boxes[value].slices] == value, boxes[value], series)
        )
        observations.append(_observation(number, name))
    dataset.StructureSetROISequence = rois
    dataset.ROIContourSequence = contours
    dataset.RTROIObservationsSequence = observations
    derived_objects.save(dataset, path)
    return True


def _header(series: DicomSeries, model: str, version: str, seed: str) -> Dataset:
    dataset = derived_objects.patient_and_study(series)
    dataset.update(derived_objects.series_of_result(series, model, 2000, datetime.now(), seed))
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = UID(derived_objects.new_uid(seed, "rtstruct"))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    # Explicit VRs have 16 bits for the length of a contour: longer ones would become UN (PS3.5 6.2.2).
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.Modality = "RTSTRUCT"
    dataset.OperatorsName = ""
    dataset.Manufacturer = derived_objects.MANUFACTURER
    dataset.ManufacturerModelName = short_text(f"{model} {version}") or derived_objects.MANUFACTURER
    dataset.SoftwareVersions = derived_objects.software_version()
    dataset.StructureSetLabel = "ZoomSeg"
    dataset.StructureSetDescription = "Organs found by a neural network, not reviewed"
    dataset.StructureSetDate, dataset.StructureSetTime = dataset.SeriesDate, dataset.SeriesTime
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.FrameOfReferenceUID = uids.frame_of_reference_uid(series)
    dataset.PositionReferenceIndicator = ""
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(series)]
    return dataset


def _frame_of_reference(series: DicomSeries) -> Dataset:
    images, study, frame = Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID = uids.frame_of_reference_uid(series)
    images.SeriesInstanceUID = uids.series_uid(series)
    images.ContourImageSequence = derived_objects.instance_items(series)
    if not images.ContourImageSequence:  # no reference is better than an empty one
        return frame
    study.ReferencedSOPClassUID = UID("1.2.840.10008.3.1.2.3.1")  # a retired class, but the field is required
    study.ReferencedSOPInstanceUID = uids.study_uid(series)
    study.RTReferencedSeriesSequence = [images]
    frame.RTReferencedStudySequence = [study]
    return frame


def _roi(number: int, name: str, series: DicomSeries, model: str) -> Dataset:
    roi = Dataset()
    roi.ROINumber = number
    roi.ReferencedFrameOfReferenceUID = uids.frame_of_reference_uid(series)
    roi.ROIName = short_text(name)
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    roi.ROIGenerationDescription = short_text(f"ZoomSeg {model}")
    return roi


def _observation(number: int, name: str) -> Dataset:
    organ, observation = coded(name), Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.ROIObservationLabel = short_text(name, longest=16)
    kind = derived_objects.code_item(organ.type)
    if organ.side is not None:
        kind.SegmentedPropertyTypeModifierCodeSequence = [derived_objects.code_item(organ.side)]
    observation.RTROIIdentificationCodeSequence = [kind]
    observation.RTROIInterpretedType = "ORGAN"
    observation.ROIInterpreter = ""
    return observation


def _contours(number: int, name: str, mask: derived_objects.Mask, box: Box, series: DicomSeries) -> Dataset:
    """Contours of an organ's mask in its bounding box."""
    found: list[Dataset] = []
    # Slices contiguous in memory, as they are processed one by one.
    for k, plane in enumerate(np.ascontiguousarray(mask.transpose(2, 0, 1)), start=box.start[2]):
        reference = derived_objects.reference_item(series, k)
        for polygon in outlines(plane):
            placed = polygon + np.array(box.start[:2])
            found.append(_contour(len(found) + 1, placed, k, series.grid, reference))
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
    points = coordinates.lps(grid.world(np.column_stack([polygon, np.full(len(polygon), k)])))
    # Adding zero turns -0.0 into 0.0.
    text = "\\".join([f"{c:.{_DECIMALS}f}" for c in (points.round(_DECIMALS) + 0.0).ravel().tolist()])
    # Already converted and joined: pydicom would check a million numbers one by one.
    contour.add(DataElement(_CONTOUR_DATA, "DS", text, already_converted=True))
    if reference is not None:
        contour.ContourImageSequence = [reference]
    return contour
