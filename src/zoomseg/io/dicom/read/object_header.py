"""The header of one DICOM object: positions of its planes, and storage of their voxels.

Single-frame CT and MR objects and enhanced multi-frame ones (PS3.3 A.3, A.4, A.36, A.38, functional groups in
C.7.6.16) give the same ``StoredSlice``; all other objects are excluded by name. A header is hostile until
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Vector3
from zoomseg.io.dicom import patient
from zoomseg.io.dicom.read.archive import Opener, Source
from zoomseg.io.dicom.read.parse_limits import limited
from zoomseg.io.dicom.read.pixel_storage import Pixels, read_pixels, unread_syntax
from zoomseg.io.dicom.read.transfer_syntax import read_transfer_syntax
from zoomseg.io.dicom.series import Identity, Slice
from zoomseg.io.dicom.tags import (
    number,
    orientation,
    require_short,
    rescale,
    spacing,
    text,
    value_of,
    vector,
)
from zoomseg.io.files import reason_of

SINGLE_FRAME = {"1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.4": "MR"}
MULTI_FRAME = {
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
}
"""SOP classes of scans: the classical ones, and the enhanced and the converted ones."""

DIRECTORY = "1.2.840.10008.1.3.10"

MAX_FRAMES = 100_000

PATIENT = patient.KEYWORDS

REQUIRED: Mapping[str, str] = {
    "PatientID": "images of several patients could not be distinguished",
    "StudyInstanceUID": "images of several studies could not be distinguished",
    "SeriesInstanceUID": "images of several series could not be distinguished",
    "SOPInstanceUID": "copies of one image could not be distinguished from others",
    "FrameOfReferenceUID": "whether the patient was moved between its images is not known",
    "Modality": "it was derived from the SOP class",
}
"""Attributes that identify the patient and the context of an image, and the consequence of their absence; an
object without one of them is read with a note."""

PHASES = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID"),
    *("EchoNumbers", "EchoTime", "EffectiveEchoTime", "ImageType", "FrameType", "InversionTime"),
    *("DiffusionBValue", "DiffusionGradientOrientation", "NominalPercentageOfCardiacPhase", "TriggerTime"),
    *("ConvolutionKernel", "KVP", "SliceThickness", "ScanOptions", "AcquisitionTime"),
    *("AcquisitionDateTime", "IrradiationEventUID", "ContentTime"),
)
"""Attributes that may distinguish slices at the same position, the most informative first."""

_WANTED = [
    Tag(keyword)
    for keyword in (
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
        *("Modality", "SeriesNumber", "SeriesDescription", "NumberOfFrames", "SpecificCharacterSet"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
        *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
        *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope"),
        *("RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *(*PATIENT, *PHASES),
    )
]
_OPTIONAL = frozenset(Tag(keyword) for keyword in PATIENT)
"""Attributes without which a scan is read if they are too long (see ``patient.texts``)."""

_GROUPS = {
    "FrameContentSequence": ("TemporalPositionIndex", "StackID", "FrameAcquisitionNumber"),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRDiffusionSequence": ("DiffusionBValue",),
    "MRImageFrameTypeSequence": ("FrameType",),
    "CTImageFrameTypeSequence": ("FrameType",),
    "CardiacSynchronizationSequence": ("NominalPercentageOfCardiacPhase",),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "PixelMeasuresSequence": ("SliceThickness",),
}
"""Functional groups that may distinguish frames, and their attributes."""


@dataclass(frozen=True)
class StoredSlice(Slice):
    """A plane with everything needed to place and decode it."""

    along_row: Vector3
    """Direction, in LPS, of increasing column numbers."""
    along_column: Vector3
    spacing_mm: tuple[float, float]
    """Between columns, between rows: the order of i and j, not that of the file."""
    slope: float
    intercept: float
    rescale_type: str | None
    """Unit of the rescaled values by the header, '' if it is not stated; None if there was no rescale."""
    pixels: Pixels
    padding_may_be_scanned: bool
    """Whether scanned voxels may also have the value of pixel padding, as soft tissue has 0 HU."""
    phase: tuple[tuple[str, str], ...]
    """Attributes that may distinguish it from others at its position: keyword and value."""


@dataclass(frozen=True)
class Image:
    """An object with slices of a scan."""

    sop_class_uid: str
    identity: Identity
    modality: str
    """From its SOP class."""
    number: int | None
    description: str
    patient: tuple[tuple[str, str], ...]
    lacking: tuple[str, ...]
    """Missing attributes of ``REQUIRED``."""
    slices: tuple[StoredSlice, ...]


@dataclass(frozen=True)
class Other:
    """A DICOM object that is not a scan: its kind."""

    kind: str
    sop_class_uid: str
    source: Source
    scan: Damaged | None = None
    """Set for an object that would be a slice of a scan if its header stated a position: the message for that
    case."""


@dataclass(frozen=True)
class Damaged:
    """An object that seems to belong to a scan, but cannot be used."""

    source: Source
    reason: str
    study_uid: str = ""
    series_uid: str = ""
    number: int | None = None
    whole: bool = False
    """Whether it is a scan by itself: several frames, or a mosaic."""


def read_image_object(source: Source, opener: Opener) -> Image | Other | Damaged | None:
    """The content of a file; None if it is not DICOM. Only its header is read."""
    header, begin, syntax = Dataset(), _Begin.NO_DICOM, UID("")
    try:
        with opener.open(source) as stream:
            start = stream.read(_MAGIC_AT + len(_MAGIC))
            if start.startswith(_MAGIC + _META_START):
                raise ScanError(f"{source}: DICOM without its preamble; put 128 zero bytes before it")
            begin = _begin(start)
            if begin is _Begin.NO_DICOM:
                return None
            stream.seek(0)
            parsed = limited(source, stream)
            syntax = read_transfer_syntax(source, parsed)
            header = pydicom.dcmread(parsed, stop_before_pixels=True, force=True, specific_tags=_WANTED)
            for element in header.elements():
                if element.tag not in _OPTIONAL:
                    require_short(element)
            if begin is _Begin.BARE and not _sop_class(header):
                return None
            kind = _kind(header)
            if kind and not text(header, "SeriesInstanceUID"):
                raise ScanError(f"{source}: DICOM object of no kind or no series; is it truncated?")
            if kind is not None:
                return _other(source, kind, header) if kind else None
            return _image(source, header, stream, opener.size(source))
    except Exception as error:  # on hostile bytes, parsers may raise any exception
        if begin is _Begin.BARE and not isinstance(error, ScanError):
            return None
        return _damaged(source, _reason(source, error, syntax), header)


def _other(source: Source, kind: str, header: Dataset) -> Other:
    unplaced = kind == _UNPLACED and "SECONDARY" not in text(header, "ImageType").upper()
    reason = f"{source}: is an {kind}, but belongs to a series of slices"
    return Other(kind, _sop_class(header), source, _damaged(source, reason, header) if unplaced else None)


def _damaged(source: Source, reason: str, header: Dataset) -> Damaged:
    """A damaged object; other problems of the header must not hide the reason."""
    try:
        uids = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
        whole = _sop_class(header) in MULTI_FRAME or int(header.get("NumberOfFrames") or 1) > 1
        return Damaged(source, reason, *uids, _series_number(header), whole or _is_mosaic(header))
    except Exception:  # as above
        return Damaged(source, reason)


def _series_number(header: Dataset) -> int | None:
    value = header.get("SeriesNumber")
    return None if value is None else int(value)


_MAGIC_AT, _MAGIC = 128, b"DICM"
_META_START = b"\x02\x00"


class _Begin(Enum):
    """The kind of a file's first bytes."""

    NO_DICOM = "no DICOM"
    MAGIC = "preamble and magic word (PS3.10 7.1)"
    META = "the file's own header, without a preamble"
    BARE = "the object itself, without a header of the file"


def _begin(start: bytes) -> _Begin:
    """The kind of a file by its first bytes. Old and careless writers omit the preamble, or also the file's
    own header. Elements are in order, so that the first one is of group 2, which is in explicit little
    endian, or of group 8, with a small number."""
    if start[_MAGIC_AT:] == _MAGIC:
        return _Begin.MAGIC
    long = len(start) == _MAGIC_AT + len(_MAGIC)
    if long and start[:2] == _META_START and start[3:4] == b"\x00" and start[4:6] in (b"UL", b"OB", b"UI"):
        return _Begin.META
    little = start[:2] == b"\x08\x00" and start[3:4] == b"\x00"
    big = start[:3] == b"\x00\x08\x00" and start[4:6].isalpha() and start[4:6].isupper()
    return _Begin.BARE if little or big else _Begin.NO_DICOM


def _reason(source: Source, error: Exception, syntax: UID) -> str:
    if syntax and not syntax.is_transfer_syntax:  # the syntax is unknown, so that anything may fail
        return f"{source}: {unread_syntax(syntax)}"
    if isinstance(error, ScanError):
        return str(error)
    return f"{source}: damaged or truncated DICOM header ({reason_of(error)})"


def _sop_class(header: Dataset) -> str:
    """The SOP class; badly anonymised files have it in the file's own header only."""
    meta = getattr(header, "file_meta", None) or Dataset()
    return text(header, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")


def _kind(header: Dataset) -> str | None:
    """The kind of an object that contains no scan; '' if it need not be reported; None for scans."""
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
    # Sizes come later in a file: if they are missing, too, it is truncated, which is reported elsewhere.
    if not placed and not _by_frame(header) and header.get("Rows") is not None:
        return _UNPLACED
    return None


_UNPLACED = "image without a place in the patient"


def _by_frame(header: Dataset) -> bool:
    """Whether each frame has a position, as in enhanced objects; some writers do this in a single-frame
    class."""
    return _sop_class(header) in MULTI_FRAME or "PerFrameFunctionalGroupsSequence" in header


def _is_mosaic(header: Dataset) -> bool:
    return "MOSAIC" in text(header, "ImageType").upper()


def _image(source: Source, header: Dataset, stream: BinaryIO, size: int) -> Image:
    sop_class = _sop_class(header)
    modality = SINGLE_FRAME.get(sop_class) or MULTI_FRAME[sop_class]
    _require_readable(source, header, modality)
    frames = 1
    if _by_frame(header):
        frames = number(source, header, "NumberOfFrames", 1, MAX_FRAMES)
    pixels = read_pixels(source, header, stream, size, frames, modality == "CT")
    identity = Identity(*(text(header, keyword) for keyword in Identity.KEYWORDS))
    return Image(
        sop_class,
        identity,
        modality,
        _series_number(header),
        text(header, "SeriesDescription"),
        patient.texts(header),
        tuple(k for k in REQUIRED if not (text(header, k) or (k == "SOPInstanceUID" and _sop_uid(header)))),
        tuple(
            replace(one, identity=identity)
            for one in _slices(source, header, pixels, modality, frames if _by_frame(header) else None)
        ),
    )


def _require_readable(source: Source, header: Dataset, modality: str) -> None:
    """Refuse by name objects that would be misread."""
    stated = text(header, "Modality")
    if stated not in ("", modality):
        name = UID(_sop_class(header)).name
        raise ScanError(f"{source}: Modality is {stated[:16]}, but it is {name}; one of them is wrong")
    if _is_mosaic(header):
        raise ScanError(
            f"{source}: is a mosaic, all slices of one time in one image; convert the series (dcm2niix)"
        )
    frames = header.get("NumberOfFrames")
    if not _by_frame(header) and int(frames or 1) > 1:
        raise ScanError(
            f"{source}: {frames} frames in an object of a single-frame class, of which one place is known; "
            "export single images, or an enhanced multi-frame object"
        )
    if header.get("ModalityLUTSequence"):
        raise ScanError(f"{source}: its values need a Modality LUT, which is not read; export it without one")


def _sop_uid(header: Dataset) -> str:
    meta = getattr(header, "file_meta", Dataset())
    return text(header, "SOPInstanceUID") or text(meta, "MediaStorageSOPInstanceUID")


def _slices(
    source: Source, header: Dataset, pixels: Pixels, modality: str, frames: int | None
) -> Iterator[StoredSlice]:
    sop_uid = _sop_uid(header)
    if frames is None:
        phase = tuple((k, text(header, k)) for k in PHASES if header.get(k) is not None)
        yield _slice(source, sop_uid, None, pixels, modality, phase, lambda group: header)
        return
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or ())
    if len(groups) != frames:
        raise ScanError(f"{source}: {frames} frames, but functional groups for {len(groups)}")
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    rest = header if _sop_class(header) in SINGLE_FRAME else Dataset()
    texts: dict[tuple[int, str], str] = {}
    for frame, own in enumerate(groups, start=1):
        group = _finder(own, shared, rest)
        phase = tuple(_frame_phase(group, texts))
        yield _slice(source, sop_uid, frame, pixels, modality, phase, group)


def _finder(own: Dataset, shared: Dataset, rest: Dataset) -> Callable[[str], Dataset]:
    """Finds a frame's functional group by name: its own, otherwise the shared one, otherwise ``rest``."""

    def group(name: str) -> Dataset:
        found = own.get(name) or shared.get(name) or ()
        return next(iter(found), rest)

    return group


def _frame_phase(
    group: Callable[[str], Dataset], texts: dict[tuple[int, str], str]
) -> Iterator[tuple[str, str]]:
    """Attributes that may distinguish a frame. ``texts``, by group and keyword, holds those of groups that
    frames share once for all of them."""
    for name, keywords in _GROUPS.items():
        found = group(name)
        for keyword in keywords:
            if value_of(found, keyword) is not None:
                key = id(found), keyword
                if key not in texts:
                    texts[key] = text(found, keyword)
                yield keyword.removeprefix("Frame") if "Number" in keyword else keyword, texts[key]


def _slice(
    source: Source,
    sop_uid: str,
    frame: int | None,
    pixels: Pixels,
    modality: str,
    phase: tuple[tuple[str, str], ...],
    group: Callable[[str], Dataset],
) -> StoredSlice:
    """A slice; ``group`` finds the content of a functional group, which in single-frame objects is the object
    itself."""
    x, y, z = vector(source, group("PlanePositionSequence"), "ImagePositionPatient", 3)
    along_row, along_column = orientation(source, group("PlaneOrientationSequence"))
    distances = spacing(source, group("PixelMeasuresSequence"))
    transformation = group("PixelValueTransformationSequence")
    given = rescale(source, transformation)
    if modality == "CT":
        _require_hounsfield(source, transformation, given)
    slope, intercept = given or (1.0, 0.0)  # as PS3.3 C.11.1 defines for values without a transformation
    return StoredSlice(
        source,
        sop_uid,
        frame,
        (x, y, z),
        along_row,
        along_column,
        distances,
        slope,
        intercept,
        None if given is None else text(transformation, "RescaleType").upper(),
        pixels,
        _may_be_scanned(pixels, slope, intercept, modality),
        phase,
    )


SCANNED_HU = (-900.0, 4000.0)
"""From above air to metal."""


def _may_be_scanned(pixels: Pixels, slope: float, intercept: float, modality: str) -> bool:
    if pixels.padding is None:
        return False
    low, high = sorted(value * slope + intercept for value in pixels.padding)
    if modality == "CT":
        return high > SCANNED_HU[0] and low < SCANNED_HU[1]
    return pixels.signed and pixels.padding[1] >= 0


_OTHER_QUANTITIES = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
"""Quantities of PS3.3 C.11.1.1.2 that are not close to Hounsfield units."""


def _require_hounsfield(source: Source, header: Dataset, given: tuple[float, float] | None) -> None:
    """Refuse CT values that are not Hounsfield units, or not known to be (PS3.3 C.8.2.1: slope and intercept
    are required in CT)."""
    if given is None:
        raise ScanError(
            f"{source}: CT without RescaleSlope and RescaleIntercept, so that its values are not known to be "
            "Hounsfield units; export it with them"
        )
    unit = text(header, "RescaleType").upper()
    if unit in _OTHER_QUANTITIES:
        raise ScanError(f"{source}: RescaleType is {unit}; Hounsfield units are needed")
