"""Read DICOM SEG: binary, fractional and label map segmentations on the voxels of a series.

Frames may have any order and orientation. All values are checked, as the file may come from anywhere.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SegmentationStorage,
)

from zoomseg.anatomy.codes import short_text
from zoomseg.core.errors import ScanError
from zoomseg.core.extras import how_to_install
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.io.dicom import coordinates
from zoomseg.io.dicom.read import derived_objects
from zoomseg.io.dicom.read.decoding import decoded
from zoomseg.io.dicom.read.pixel_storage import Coding, lacks_gdcm
from zoomseg.io.dicom.read.references import require_same_images
from zoomseg.io.dicom.read.structures import Indices, Structures, require_room, unused_name
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.files import reading, reason_of

AnyArray = npt.NDArray[Any]

KINDS = {str(SegmentationStorage): "DICOM SEG", "1.2.840.10008.5.1.4.1.1.66.7": "label map SEG"}
"""SOP classes that are read."""

LATTICE_TOLERANCE_VOX = 0.05
"""Maximum distance of a frame's voxels from the series' voxels."""

MAX_FRAMES = 200_000
MAX_SEGMENTS = 2_000
MAX_VOXELS = 2**36
"""Maximum number of declared voxels in all frames of a SEG."""


def read_seg(path: Path, series: DicomSeries) -> Structures:
    """The segments of a SEG of ``series``. A fractional segment consists of voxels with at least half.

    Raises:
        ScanError: unreadable, no SEG, for another patient or series, or on other voxels than these.
    """
    path = Path(path)
    dataset = derived_objects.read_label_object(path, KINDS)
    with reading(path, "DICOM"):
        derived_objects.require_frame(path, str(dataset.get("FrameOfReferenceUID", "")), series)
        notes = require_same_images(path, dataset, series)
        names = _names(path, dataset)
        found: dict[int, list[Indices]] = {number: [] for number in names}
        count = 0
        # A frame is decoded only when its place is known to be inside the series.
        for place, frame in zip(_places(path, dataset, series.grid), _frames(path, dataset), strict=True):
            for number, mask in _segments_of(frame, place.segment):
                if number not in found:
                    raise ScanError(f"{path}: a frame is of segment {number}, which is not described")
                count += int(np.count_nonzero(mask))
                require_room(path, count)
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
                f"{path}: describes several segments of number {number}; which one is meant is ambiguous"
            )
        names[number] = name
    return names


@dataclass(frozen=True, eq=False)
class _Place:
    """The segment of a frame (None: its values state it), and (column, row, 1) to the series' indices."""

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
        affine = coordinates.slice_affine(orientation, spacing, position)
        segment = None
        if numbered:
            segment = int(macro(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        yield _Place(segment, _on_lattice(path, affine, size, grid))


def _on_lattice(path: Path, affine: FloatArray, size: tuple[int, int], grid: Grid) -> npt.NDArray[np.int64]:
    """The integer map from (column, row, 1) to the grid's indices.

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
            "differ); give the series that it annotates, or resample it"
        )
    at = whole @ corners
    if at.min() < 0 or (at.max(axis=1) >= grid.shape).any():
        raise ScanError(f"{path}: reaches beyond the series; give the series that it annotates")
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
    declared = int(dataset.get("NumberOfFrames") or 0)
    if not 1 <= count <= MAX_FRAMES or declared != count:
        raise ScanError(
            f"{path}: promises {declared} frames and describes {count}; 1 to {MAX_FRAMES} are read"
        )
    if not 0 < count * rows * columns <= MAX_VOXELS:
        raise ScanError(f"{path}: promises {count} frames of {columns}x{rows}; this is implausible")
    kind, bits = str(dataset.SegmentationType), int(dataset.BitsAllocated)
    if (kind, bits) not in (("BINARY", 1), ("FRACTIONAL", 8), ("LABELMAP", 8), ("LABELMAP", 16)):
        raise ScanError(
            f"{path}: segmentation of type {kind} with {bits} bits; BINARY, FRACTIONAL and LABELMAP are read"
        )
    frames = _packed(path, dataset, count, rows * columns * bits)
    half = _most(path, dataset) / 2 if kind == "FRACTIONAL" else None
    for frame in frames:
        values = frame.reshape(rows, columns)
        yield values if half is None else values >= half


def _most(path: Path, dataset: Dataset) -> int:
    """The value of voxels that are entirely in a fractional segment."""
    most = int(dataset.MaximumFractionalValue)
    if not 1 <= most <= 255:
        raise ScanError(f"{path}: MaximumFractionalValue is {most}; a number from 1 to 255 is needed")
    return most


def _packed(path: Path, dataset: Dataset, count: int, bits: int) -> Iterator[AnyArray]:
    """The values of each frame; native data are split here, as frames of single bits do not end with a
    byte."""
    if dataset.file_meta.TransferSyntaxUID not in _NATIVE:
        yield from _decoded(path, dataset, count)
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


def _decoded(path: Path, dataset: Dataset, count: int) -> Iterator[AnyArray]:
    """Frames in other encodings, by pydicom's decoders.

    Raises:
        ScanError: there is no decoder, it fails, or a frame contradicts the header; the encoding is named.
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
        coding = Coding(
            rows=int(dataset.Rows),
            columns=int(dataset.Columns),
            allocated=int(dataset.BitsAllocated),
            stored=int(dataset.BitsStored),
            signed=int(dataset.PixelRepresentation) == 1,
            syntax=str(syntax),
        )
        for data in islice(_compressed(dataset, count), count):
            yield decoded(path, data, coding)
    except ScanError:
        raise
    except Exception as error:  # on hostile bytes, decoders may raise any exception
        raise ScanError(
            f"{path}: its frames, stored as {way}, cannot be decoded ({reason_of(error)}); {todo}, unless it "
            "is damaged"
        ) from error


def _compressed(dataset: Dataset, count: int) -> Iterator[bytes]:
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    return generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets)
