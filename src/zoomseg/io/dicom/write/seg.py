"""DICOM SEG: label maps as binary segments that refer to the images they were made from, and back.

Written with highdicom; one segment per organ that was found, its name coded, only the frames in which it is.
Read with checks of our own, as the file may be anyone's: binary, fractional and label map segmentations whose
frames lie on the series' voxels, in any order and orientation.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SegmentationStorage,
)
from pydicom.valuerep import format_number_as_ds

from zoomseg.anatomy.codes import PRIVATE_SCHEME, Code, coded, short_text
from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.errors import ScanError
from zoomseg.core.extras import how_to_install
from zoomseg.core.geometry import GEOMETRY_TOLERANCE_VOX, FloatArray, Grid
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom.read.pixel_storage import lacks_gdcm
from zoomseg.io.dicom.read.references import require_drawn_on
from zoomseg.io.dicom.read.structures import Indices, Structures, unused_name
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write import derived_objects
from zoomseg.io.files import reading, reason_of

AnyArray = npt.NDArray[Any]

KINDS = {str(SegmentationStorage): "DICOM SEG", "1.2.840.10008.5.1.4.1.1.66.7": "label map SEG"}
"""SOP classes that are read."""

LATTICE_TOLERANCE_VOX = 0.05
"""Frames whose voxels lie further than this beside the series' voxels are refused."""

MAX_FRAMES = 200_000
MAX_SEGMENTS = 2_000
MAX_VOXELS = 2**36
"""A SEG that promises more voxels in all its frames is refused."""


# --- writing --------------------------------------------------------------------------------------


def write_seg(path: Path, labels: LabelMap, series: DicomSeries, model: str, version: str = "") -> bool:
    """Write the organs that were found as a binary DICOM SEG.

    Args:
        labels: on the series' own grid.
        model, version: what made them, for the record.

    Returns:
        False where no organ was found: a SEG without a segment cannot be, and nothing is written.

    Raises:
        GeometryError: the labels lie on another grid.
        ScanError: the series mixes patients or studies.
        OutputError: the file cannot be written.
    """
    derived_objects.require_one_identity(series)
    found = derived_objects.found_classes(labels, series)
    if not found:
        return False
    told = derived_objects.series_of_result(series, model, 1000, datetime.now())
    algorithm = hd.AlgorithmIdentificationSequence(
        name=short_text(model) or derived_objects.MANUFACTURER,
        family=_concept(derived_objects.ARTIFICIAL_INTELLIGENCE),
        version=short_text(version) or derived_objects.software_version(),
        source=derived_objects.MANUFACTURER,
    )
    names = [labels.schema.names[c - 1] for c in found]
    described = [_segment(number, name, algorithm) for number, name in enumerate(names, start=1)]
    dataset = hd.seg.Segmentation(
        source_images=_planes(series),
        pixel_array=_numbered(labels, found),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=told.SeriesInstanceUID,
        series_number=told.SeriesNumber,
        sop_instance_uid=derived_objects.new_uid(),
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
    dataset.update(told)
    dataset.ContentDate, dataset.ContentTime = told.SeriesDate, told.SeriesTime
    dataset.update(derived_objects.patient_and_study(series))
    _refer(dataset, series)
    derived_objects.save(dataset, path)
    return True


def _numbered(labels: LabelMap, found: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Segment numbers ``[K, J, I]`` (frame, row, column): as classes, but without gaps."""
    table = np.zeros(256, dtype=np.uint8)
    table[list(found)] = np.arange(1, len(found) + 1)
    return np.ascontiguousarray(table[labels.data].transpose(2, 1, 0))


def _concept(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _segment(
    number: int, name: str, algorithm: hd.AlgorithmIdentificationSequence
) -> hd.seg.SegmentDescription:
    organ = coded(name)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=short_text(name),
        segmented_property_category=_concept(organ.category),
        segmented_property_type=_concept(organ.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=derived_objects.new_uid(),
        tracking_id=short_text(name),
        display_color=hd.color.CIELabColor.from_rgb(*organ_colour(name)),
    )
    if organ.side is not None:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(organ.side)]
    return described


def _planes(series: DicomSeries) -> list[Dataset]:
    """A single-frame image for each plane of the grid, as highdicom wants its sources. What they refer to is
    put right by ``_refer``: planes may be frames of one object, or interpolated."""
    position = derived_objects.plane_positions(series.grid)
    spacing = series.grid.spacing_mm
    # Of the patient nothing: highdicom would judge what it finds, and it is put in later.
    first = derived_objects.patient_and_study(replace(series, patient=()))
    planes = []
    for k in range(series.grid.shape[2]):
        plane = Dataset()
        plane.update(first)
        plane.SOPClassUID = CTImageStorage
        plane.SOPInstanceUID = _plane_uid(k)
        plane.SeriesInstanceUID = derived_objects.series_uid(series)
        plane.FrameOfReferenceUID = derived_objects.frame_of_reference_uid(series)
        plane.Modality = series.modality
        plane.Columns, plane.Rows = series.grid.shape[:2]
        plane.PixelSpacing = [format_number_as_ds(spacing[1]), format_number_as_ds(spacing[0])]
        plane.SliceThickness = format_number_as_ds(spacing[2])
        plane.ImageOrientationPatient = [
            format_number_as_ds(c) for c in derived_objects.in_plane_directions(series.grid)
        ]
        plane.ImagePositionPatient = [format_number_as_ds(float(c)) for c in position[k]]
        planes.append(plane)
    return planes


def _plane_uid(k: int) -> str:
    return f"2.25.{k + 1}"


def _refer(dataset: Dataset, series: DicomSeries) -> None:
    """References to the stored slices in place of those to ``_planes``."""
    planes = {_plane_uid(k): k for k in range(series.grid.shape[2])}
    shifted = _shifted(series)
    frames = dataset.PerFrameFunctionalGroupsSequence
    items = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in frames]
    # All before any is changed: frames of one plane share an item.
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
    else:  # rather no reference than one that is empty
        del dataset.SourceImageSequence, dataset.ReferencedSeriesSequence


def _shifted(series: DicomSeries) -> list[bool]:
    """Of each plane, whether its voxels are not the stored slice's (the gantry was tilted)."""
    stored = [
        p if s is None else s.position_lps_mm for s, p in zip(series.slices, _positions(series), strict=True)
    ]
    off = np.linalg.norm(np.array(stored) - _positions(series), axis=1)
    nothing_mm = GEOMETRY_TOLERANCE_VOX * min(series.grid.spacing_mm)
    return [bool(o > nothing_mm) for o in off]


def _positions(series: DicomSeries) -> FloatArray:
    return derived_objects.plane_positions(series.grid)


# --- reading --------------------------------------------------------------------------------------


def read_seg(path: Path, series: DicomSeries) -> Structures:
    """The segments of a SEG that was drawn on ``series``. A fractional segment is where at least half is.

    Raises:
        ScanError: unreadable, no SEG, made for another patient or series, or on other voxels than these.
    """
    path = Path(path)
    dataset = derived_objects.read_object(path, KINDS)
    with reading(path, "DICOM"):
        derived_objects.require_frame(path, str(dataset.get("FrameOfReferenceUID", "")), series)
        notes = require_drawn_on(path, dataset, series)
        names = _names(path, dataset)
        found: dict[int, list[Indices]] = {number: [] for number in names}
        for frame, place in zip(_frames(path, dataset), _places(path, dataset, series.grid), strict=True):
            for number, mask in _segments_of(frame, place.segment):
                if number not in found:
                    raise ScanError(f"{path}: a frame is of segment {number}, which is not described")
                found[number].append(place.indices(mask, series.grid))
        voxels = {names[n]: np.unique(np.concatenate(parts)) for n, parts in found.items() if parts}
        empty = [f"segment '{names[n]}' is empty" for n, parts in found.items() if not parts]
        return Structures(series.grid, voxels, (*notes, *empty))


def _names(path: Path, dataset: Dataset) -> dict[int, str]:
    """Segment number to name."""
    described = dataset.get("SegmentSequence", [])
    if not 1 <= len(described) <= MAX_SEGMENTS:
        raise ScanError(f"{path}: describes {len(described)} segments; 1 to {MAX_SEGMENTS} are read")
    names: dict[int, str] = {}
    for segment in described:
        name = unused_name(str(segment.get("SegmentLabel", "")), set(names.values()))
        number = int(segment.SegmentNumber)
        if number in names:
            raise ScanError(
                f"{path}: describes several segments of number {number}; which is meant is not said"
            )
        names[number] = name
    return names


@dataclass(frozen=True, eq=False)
class _Place:
    """Which segment a frame is of (None: its values say), and (column, row, 1) to the series' indices."""

    segment: int | None
    matrix: npt.NDArray[np.int64]

    def indices(self, mask: npt.NDArray[np.bool_], grid: Grid) -> Indices:
        row, column = np.nonzero(mask)
        at = self.matrix @ np.stack([column, row, np.ones_like(row)])
        voxels: Indices = np.ravel_multi_index((at[0], at[1], at[2]), grid.shape).astype(np.int64)
        return voxels


def _places(path: Path, dataset: Dataset, grid: Grid) -> Iterator[_Place]:
    groups = dataset.get("PerFrameFunctionalGroupsSequence", [])
    shared = dataset.get("SharedFunctionalGroupsSequence", [])
    numbered = dataset.SegmentationType != "LABELMAP"
    size = (int(dataset.Columns), int(dataset.Rows))

    def macro(frame: Dataset, keyword: str) -> Dataset:
        for group in (frame, *shared):
            if group.get(keyword):
                item: Dataset = group[keyword].value[0]
                return item
        raise ScanError(f"{path}: frames have no {keyword}; it cannot be placed on the series")

    for frame in groups:
        orientation = macro(frame, "PlaneOrientationSequence").ImageOrientationPatient
        spacing = macro(frame, "PixelMeasuresSequence").PixelSpacing
        position = macro(frame, "PlanePositionSequence").ImagePositionPatient
        affine = derived_objects.slice_affine(orientation, spacing, position)
        segment = None
        if numbered:
            segment = int(macro(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        yield _Place(segment, _on_lattice(path, affine, size, grid))


def _on_lattice(path: Path, affine: FloatArray, size: tuple[int, int], grid: Grid) -> npt.NDArray[np.int64]:
    """The whole-numbered map from (column, row, 1) to the grid's indices.

    Raises:
        ScanError: a frame's voxels are not voxels of the grid.
    """
    matrix = (np.linalg.inv(grid.affine) @ affine)[:3]
    corners = np.array([[c, r, 1] for c in (0, size[0] - 1) for r in (0, size[1] - 1)]).T
    whole = np.rint(matrix)
    off = float(np.abs((matrix - whole) @ corners).max())
    steps = np.abs(whole[:, :2]).sum(axis=0).tolist()
    if not off <= LATTICE_TOLERANCE_VOX or steps != [1, 1]:
        raise ScanError(
            f"{path}: its frames do not lie on the voxels of the series (spacing, orientation or position "
            "differ); give the series that it was drawn on, or resample it"
        )
    at = whole @ corners
    if at.min() < 0 or (at.max(axis=1) >= grid.shape).any():
        raise ScanError(f"{path}: reaches beyond the series; give the series that it was drawn on")
    return whole.astype(np.int64)


def _segments_of(frame: AnyArray, segment: int | None) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    if segment is not None:
        if frame.any():
            yield segment, frame > 0
        return
    for value in np.unique(frame[frame > 0]).tolist():
        yield value, frame == value


def _frames(path: Path, dataset: Dataset) -> Iterator[AnyArray]:
    """Frames ``[row, column]``: 0 and 1, or segment numbers of a label map."""
    count = len(dataset.get("PerFrameFunctionalGroupsSequence", []))
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    promised = int(dataset.get("NumberOfFrames") or 0)
    if not 1 <= count <= MAX_FRAMES or promised != count:
        raise ScanError(
            f"{path}: promises {promised} frames and describes {count}; 1 to {MAX_FRAMES} are read"
        )
    if not 0 < count * rows * columns <= MAX_VOXELS:
        raise ScanError(f"{path}: promises {count} frames of {columns}x{rows}; that is not credible")
    kind, bits = str(dataset.SegmentationType), int(dataset.BitsAllocated)
    if (kind, bits) not in (("BINARY", 1), ("FRACTIONAL", 8), ("LABELMAP", 8), ("LABELMAP", 16)):
        raise ScanError(
            f"{path}: segmentation of type {kind} with {bits} bits; BINARY, FRACTIONAL and LABELMAP are read"
        )
    frames = _packed(path, dataset, count, rows * columns * bits)
    half = int(dataset.MaximumFractionalValue) / 2 if kind == "FRACTIONAL" else None
    for frame in frames:
        values = frame.reshape(rows, columns)
        yield values if half is None else values >= half


def _packed(path: Path, dataset: Dataset, count: int, bits: int) -> Iterator[AnyArray]:
    """The values of each frame; native data is cut here, as frames of single bits do not end with a byte."""
    if dataset.file_meta.TransferSyntaxUID not in _NATIVE:
        yield from _decoded(path, dataset)
        return
    data = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    if data.size * 8 < count * bits:
        raise ScanError(f"{path}: truncated; promises {count * bits // 8} bytes of voxels, has {data.size}")
    allocated = int(dataset.BitsAllocated)
    for first in range(0, count * bits, bits):
        part = data[first // 8 : math.ceil((first + bits) / 8)]
        if allocated == 1:
            yield np.unpackbits(part, bitorder="little")[first % 8 :][:bits]
        else:
            yield part.view("<u2") if allocated == 16 else part


_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)


def _decoded(path: Path, dataset: Dataset) -> Iterator[AnyArray]:
    """Frames that are stored in another way, by pydicom's decoders.

    Raises:
        ScanError: there is none for that way, or it fails; the way is named.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    way = short_text(syntax) if syntax.name == syntax else f"{syntax.name} ({syntax})"
    todo = "convert it to an uncompressed file (gdcmconv --raw, dcmconv +te)"
    try:  # old files in big endian have single bits in either order
        readable = syntax.is_encapsulated and get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        readable = False
    if not readable:
        install = f"{how_to_install('gdcm')}, or " if lacks_gdcm(syntax) else ""
        raise ScanError(f"{path}: its frames are stored as {way}, which is not read; {install}{todo}")
    try:
        yield from iter_pixels(dataset, raw=True)
    except Exception as error:  # decoders of hostile bytes fail in any way they like
        raise ScanError(
            f"{path}: its frames, stored as {way}, cannot be decoded ({reason_of(error)}); {todo}, unless it "
            "is damaged"
        ) from error
