"""What one DICOM object says about its planes: where they lie, how their voxels are stored.

Single-frame CT and MR objects and enhanced multi-frame ones (PS3.3 A.3, A.4, A.36, A.38, functional groups in
C.7.6.16) give the same ``StoredSlice``; everything else is left out by name. A header is hostile until
checked.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Vector3
from zoomseg.io.dicom import patient
from zoomseg.io.dicom.archive import Opener, Source
from zoomseg.io.dicom.pixels import Pixels, read_pixels
from zoomseg.io.dicom.series import Identity, Slice
from zoomseg.io.dicom.tags import number, orientation, rescale, spacing, text, vector

SINGLE_FRAME = {"1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.4": "MR"}
MULTI_FRAME = {
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
}
"""SOP classes that hold scans: the classical ones, and the enhanced and the converted ones."""

DIRECTORY = "1.2.840.10008.1.3.10"

MAX_FRAMES = 100_000

PATIENT = patient.KEYWORDS
PHASES = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID"),
    *("EchoNumbers", "EchoTime", "EffectiveEchoTime", "ImageType", "FrameType", "InversionTime"),
    *("DiffusionBValue", "DiffusionGradientOrientation", "NominalPercentageOfCardiacPhase", "TriggerTime"),
    *("ConvolutionKernel", "AcquisitionTime", "ContentTime"),
)
"""What may tell slices at one place apart, most telling first."""

_WANTED = [
    Tag(keyword)
    for keyword in (
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
        *("Modality", "SeriesNumber", "SeriesDescription", "NumberOfFrames", "SpecificCharacterSet"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
        *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
        *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope"),
        *("RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *(*PATIENT, *PHASES),
    )
]
_GROUPS = {
    "FrameContentSequence": ("TemporalPositionIndex", "StackID", "FrameAcquisitionNumber"),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRDiffusionSequence": ("DiffusionBValue",),
    "MRImageFrameTypeSequence": ("FrameType",),
    "CTImageFrameTypeSequence": ("FrameType",),
    "CardiacSynchronizationSequence": ("NominalPercentageOfCardiacPhase",),
    "CTReconstructionSequence": ("ConvolutionKernel",),
}
"""Functional groups that may tell frames apart, and by what."""


@dataclass(frozen=True)
class StoredSlice(Slice):
    """A plane with all that is needed to place and to decode it."""

    along_row: Vector3
    """Direction, in LPS, in which column numbers grow."""
    along_column: Vector3
    spacing_mm: tuple[float, float]
    """From column to column, from row to row: the order of i and j, not that of the file."""
    slope: float
    intercept: float
    pixels: Pixels
    phase: tuple[tuple[str, str], ...]
    """What may tell it apart from others at its place: keyword and value."""


@dataclass(frozen=True)
class Image:
    """An object that holds slices of a scan."""

    sop_class_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    number: int | None
    description: str
    patient: tuple[tuple[str, str], ...]
    slices: tuple[StoredSlice, ...]


@dataclass(frozen=True)
class Other:
    """A DICOM object that is no scan: what it is."""

    kind: str
    sop_class_uid: str
    source: Source


@dataclass(frozen=True)
class Damaged:
    """An object that seems to belong to a scan, and cannot be used."""

    source: Source
    reason: str
    study_uid: str = ""
    series_uid: str = ""
    number: int | None = None


def read_object(source: Source, opener: Opener) -> Image | Other | Damaged | None:
    """What a file holds; None if it is not DICOM. Only its header is read."""
    header, magic = Dataset(), False
    try:
        with opener.open(source) as stream:
            start = stream.read(_MAGIC_AT + len(_MAGIC))
            magic = start[_MAGIC_AT:] == _MAGIC
            if not (magic or _may_begin_bare(start)):
                return None
            if magic and _transfer_syntax(stream) == DeflatedExplicitVRLittleEndian:
                raise ScanError(f"{source}: is deflated as a whole; convert it to an uncompressed DICOM file")
            stream.seek(0)
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_WANTED)
            if not magic and not _sop_class(header):
                return None
            kind = _kind(header)
            if kind and not text(header, "SeriesInstanceUID"):
                raise ScanError(f"{source}: DICOM object of no kind or no series; is it truncated?")
            if kind is not None:
                return Other(kind, _sop_class(header), source) if kind else None
            return _image(source, header, stream, opener.size(source))
    except ScanError as error:
        return _damaged(source, str(error), header)
    except Exception as error:  # parsers of hostile bytes fail in any way they like
        reason = f"{source}: damaged or truncated DICOM header ({_reason(error)})"
        return _damaged(source, reason, header) if magic else None


def _damaged(source: Source, reason: str, header: Dataset) -> Damaged:
    """What else is wrong with the header must not hide the reason."""
    try:
        uids = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
        return Damaged(source, reason, *uids, _series_number(header))
    except Exception:  # as above
        return Damaged(source, reason)


def _series_number(header: Dataset) -> int | None:
    value = header.get("SeriesNumber")
    return None if value is None else int(value)


_MAGIC_AT, _MAGIC = 128, b"DICM"


def _may_begin_bare(start: bytes) -> bool:
    """Old files lack the magic word: a first element of group 8 in little endian, its number small, as
    elements are in order."""
    return start[:2] == b"\x08\x00" and start[3:4] == b"\x00"


def _transfer_syntax(stream: BinaryIO) -> str:
    """Looked for before anything else is: a deflated file could inflate to more than there is memory.

    Explicit little endian, as PS3.10 has it for the file's own header; '' if it is not there.
    """
    for _ in range(_META_ELEMENTS):
        element = stream.read(8)
        if len(element) < 8 or element[:2] != b"\x02\x00":
            return ""
        length = int.from_bytes(element[6:8], "little")
        if element[4:6] in (b"OB", b"UN"):
            length = int.from_bytes(stream.read(4), "little")
        if element[2:4] == b"\x10\x00":
            return stream.read(min(length, 64)).rstrip(b"\0 ").decode("ascii", errors="replace")
        stream.seek(length, io.SEEK_CUR)
    return ""


_META_ELEMENTS = 32


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


def _sop_class(header: Dataset) -> str:
    """Badly anonymised files have it in the file's own header only."""
    meta = getattr(header, "file_meta", None) or Dataset()
    return text(header, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")


def _kind(header: Dataset) -> str | None:
    """What an object is that holds no scan; '' for what nobody needs to hear of; None for scans."""
    sop_class = _sop_class(header)
    if sop_class == DIRECTORY:
        return ""
    if sop_class not in SINGLE_FRAME and sop_class not in MULTI_FRAME:
        name = UID(sop_class).name.removesuffix(" Storage")
        return name if name != sop_class else f"object of unknown kind {sop_class[:64]}"
    if "LOCALIZER" in str(header.get("ImageType", "")).upper():
        return "localizer"
    samples = header.get("SamplesPerPixel")
    if isinstance(samples, int) and samples != 1:
        return "colour image"
    placed = header.get("ImagePositionPatient") and header.get("ImageOrientationPatient")
    # Sizes come later in a file: without them, too, it is truncated, which is told elsewhere.
    if sop_class in SINGLE_FRAME and not placed and header.get("Rows") is not None:
        return "image without a place in the patient"
    return None


def _image(source: Source, header: Dataset, stream: BinaryIO, size: int) -> Image:
    sop_class = _sop_class(header)
    modality = SINGLE_FRAME.get(sop_class) or MULTI_FRAME[sop_class]
    frames = 1
    if sop_class in MULTI_FRAME:
        frames = number(source, header, "NumberOfFrames", 1, MAX_FRAMES)
    pixels = read_pixels(source, header, stream, size, frames, modality == "CT")
    identity = Identity(*(text(header, keyword) for keyword in Identity.KEYWORDS))
    return Image(
        sop_class,
        text(header, "StudyInstanceUID"),
        text(header, "SeriesInstanceUID"),
        text(header, "FrameOfReferenceUID"),
        modality,
        _series_number(header),
        text(header, "SeriesDescription"),
        patient.texts(header),
        tuple(
            replace(one, identity=identity)
            for one in _slices(source, header, pixels, frames if sop_class in MULTI_FRAME else None)
        ),
    )


def _slices(source: Source, header: Dataset, pixels: Pixels, frames: int | None) -> Iterator[StoredSlice]:
    meta = getattr(header, "file_meta", Dataset())
    sop_uid = text(header, "SOPInstanceUID") or text(meta, "MediaStorageSOPInstanceUID")
    if frames is None:
        phase = tuple((k, text(header, k)) for k in PHASES if header.get(k) is not None)
        yield _slice(source, sop_uid, None, pixels, phase, lambda group: header)
        return
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or ())
    if len(groups) != frames:
        raise ScanError(f"{source}: {frames} frames, but functional groups for {len(groups)}")
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    for frame, own in enumerate(groups, start=1):
        group = _finder(own, shared)
        phase = tuple(_frame_phase(group))
        yield _slice(source, sop_uid, frame, pixels, phase, group)


def _finder(own: Dataset, shared: Dataset) -> Callable[[str], Dataset]:
    """A frame's functional group by name: its own, else the one shared by all, else nothing."""

    def group(name: str) -> Dataset:
        found = own.get(name) or shared.get(name) or ()
        return next(iter(found), Dataset())

    return group


def _frame_phase(group: Callable[[str], Dataset]) -> Iterator[tuple[str, str]]:
    for name, keywords in _GROUPS.items():
        found = group(name)
        for keyword in keywords:
            if found.get(keyword) is not None:
                yield keyword.removeprefix("Frame") if "Number" in keyword else keyword, text(found, keyword)


def _slice(
    source: Source,
    sop_uid: str,
    frame: int | None,
    pixels: Pixels,
    phase: tuple[tuple[str, str], ...],
    group: Callable[[str], Dataset],
) -> StoredSlice:
    """``group`` finds what a functional group holds; of single-frame objects all is in one place."""
    x, y, z = vector(source, group("PlanePositionSequence"), "ImagePositionPatient", 3)
    along_row, along_column = orientation(source, group("PlaneOrientationSequence"))
    distances = spacing(source, group("PixelMeasuresSequence"))
    slope, intercept = rescale(source, group("PixelValueTransformationSequence"))
    return StoredSlice(
        source, sop_uid, frame, (x, y, z), along_row, along_column, distances, slope, intercept, pixels, phase
    )
