"""DICOM SEG: label maps as binary segments that refer to the images from which they were made.

Written with highdicom; one segment per organ that was found, with a coded name, and only the frames that
contain it.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
)
from pydicom.valuerep import format_number_as_ds

from zoomseg.anatomy.codes import PRIVATE_SCHEME, Code, coded, short_text
from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.geometry import GEOMETRY_TOLERANCE_VOX, FloatArray
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom import coordinates, uids
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write import derived_objects


def write_seg(
    path: Path, labels: LabelMap, series: DicomSeries, model: str, version: str = "", seed: str = ""
) -> bool:
    """Write the organs that were found as a binary DICOM SEG.

    Args:
        labels: on the series' own grid.
        model, version: for the record.
        seed: of the UIDs (see ``derived_objects.new_uid``).

    Returns:
        False if no organ was found: a SEG needs at least one segment, and nothing is written.

    Raises:
        GeometryError: the labels are on another grid.
        ScanError: the series mixes patients or studies.
        OutputError: the file cannot be written.
    """
    derived_objects.require_one_identity(series)
    found = derived_objects.found_classes(labels, series)
    if not found:
        return False
    attributes = derived_objects.series_of_result(series, model, 1000, datetime.now(), seed)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=short_text(model) or derived_objects.MANUFACTURER,
        family=concept(derived_objects.ARTIFICIAL_INTELLIGENCE),
        version=short_text(version) or derived_objects.software_version(),
        source=derived_objects.MANUFACTURER,
    )
    names = [labels.schema.names[c - 1] for c in found]
    described = [_segment(number, name, algorithm, seed) for number, name in enumerate(names, start=1)]
    dataset = hd.seg.Segmentation(
        source_images=_planes(series),
        pixel_array=_numbered(labels, found),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=attributes.SeriesInstanceUID,
        series_number=attributes.SeriesNumber,
        sop_instance_uid=derived_objects.new_uid(seed, "seg"),
        instance_number=1,
        manufacturer=derived_objects.MANUFACTURER,
        manufacturer_model_name=derived_objects.MANUFACTURER,
        software_versions=derived_objects.software_version(),
        device_serial_number="none",
        content_label="ORGANS",
        content_description="Organs found by a neural network",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
        coding_schemes=[
            hd.coding_schemes.CodingSchemeIdentificationItem(
                PRIVATE_SCHEME,
                name="ZoomSeg organ names",
                responsible_organization=derived_objects.MANUFACTURER,
            )
        ],
    )
    dataset.update(attributes)
    dataset.ContentDate, dataset.ContentTime = attributes.SeriesDate, attributes.SeriesTime
    dataset.update(derived_objects.patient_and_study(series))
    _refer(dataset, series)
    derived_objects.save(dataset, path)
    return True


def _numbered(labels: LabelMap, found: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Segment numbers ``[K, J, I]`` (frame, row, column): the classes, without gaps."""
    table = np.zeros(256, dtype=np.uint8)
    table[list(found)] = np.arange(1, len(found) + 1)
    return np.ascontiguousarray(table[labels.data].transpose(2, 1, 0))


def concept(code: Code) -> hd.sr.CodedConcept:
    """A code as highdicom expects it."""
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _segment(
    number: int, name: str, algorithm: hd.AlgorithmIdentificationSequence, seed: str
) -> hd.seg.SegmentDescription:
    organ = coded(name)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=short_text(name),
        segmented_property_category=concept(organ.category),
        segmented_property_type=concept(organ.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=derived_objects.new_uid(seed, "segment", name),
        tracking_id=short_text(name),
        display_color=hd.color.CIELabColor.from_rgb(*organ_colour(name)),
    )
    if organ.side is not None:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [concept(organ.side)]
    return described


def _planes(series: DicomSeries) -> list[Dataset]:
    """A single-frame image for each plane of the grid, as highdicom requires for its sources. ``_refer``
    corrects the references: planes may be frames of one object, or interpolated."""
    position = coordinates.plane_positions(series.grid)
    spacing = series.grid.spacing_mm
    # Without patient attributes: highdicom would validate them, and they are added later.
    first = derived_objects.patient_and_study(replace(series, patient=()))
    planes = []
    for k in range(series.grid.shape[2]):
        plane = Dataset()
        plane.update(first)
        plane.SOPClassUID = CTImageStorage
        plane.SOPInstanceUID = _plane_uid(k)
        plane.SeriesInstanceUID = uids.series_uid(series)
        plane.FrameOfReferenceUID = uids.frame_of_reference_uid(series)
        plane.Modality = series.modality
        plane.Columns, plane.Rows = series.grid.shape[:2]
        plane.PixelSpacing = [format_number_as_ds(spacing[1]), format_number_as_ds(spacing[0])]
        plane.SliceThickness = format_number_as_ds(spacing[2])
        plane.ImageOrientationPatient = [
            format_number_as_ds(c) for c in coordinates.in_plane_directions(series.grid)
        ]
        plane.ImagePositionPatient = [format_number_as_ds(float(c)) for c in position[k]]
        planes.append(plane)
    return planes


def _plane_uid(k: int) -> str:
    return f"2.25.{k + 1}"


def _refer(dataset: Dataset, series: DicomSeries) -> None:
    """Replace references to ``_planes`` by references to the stored slices."""
    planes = {_plane_uid(k): k for k in range(series.grid.shape[2])}
    shifted = _shifted(series)
    frames = dataset.PerFrameFunctionalGroupsSequence
    items = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in frames]
    # All are read before any is changed, as frames of one plane share an item.
    numbers = [planes[str(item.ReferencedSOPInstanceUID)] for item in items]
    for frame, item, k in zip(frames, items, numbers, strict=True):
        reference = derived_objects.reference_item(series, k)
        if reference is None:
            frame.DerivationImageSequence = []  # of type 2: it may be empty, not absent
            continue
        item.update(reference)
        item.SpatialLocationsPreserved = "NO" if shifted[k] else "YES"
    images = derived_objects.instance_items(series)
    if images:
        dataset.SourceImageSequence = images
        dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = images
    else:  # no reference is better than an empty one
        del dataset.SourceImageSequence, dataset.ReferencedSeriesSequence


def _shifted(series: DicomSeries) -> list[bool]:
    """For each plane, whether its voxels differ from the stored slice's (the gantry was tilted)."""
    stored = [
        p if s is None else s.position_lps_mm for s, p in zip(series.slices, _positions(series), strict=True)
    ]
    off = np.linalg.norm(np.array(stored) - _positions(series), axis=1)
    nothing_mm = GEOMETRY_TOLERANCE_VOX * min(series.grid.spacing_mm)
    return [bool(o > nothing_mm) for o in off]


def _positions(series: DicomSeries) -> FloatArray:
    return coordinates.plane_positions(series.grid)
