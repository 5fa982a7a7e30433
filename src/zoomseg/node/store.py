"""Received objects on the disk: a folder for each series, a file for each object.

```
received/<series>/<object>.dcm
```

A file is on the disk, including its name, before its sender is notified: objects confirmed as stored
survive a power failure. Names are digests of UIDs: senders cannot choose paths, and names reveal
nothing about a patient.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from zoomseg.core.errors import OutputError, ScanError
from zoomseg.io.dicom.read.codestream import contradiction
from zoomseg.io.dicom.read.parse_limits import ANY_BYTES, limited
from zoomseg.io.dicom.read.transfer_syntax import read_transfer_syntax
from zoomseg.io.dicom.series import Identity
from zoomseg.io.dicom.tags import text, value_of
from zoomseg.io.dicom.uids import valid_uid
from zoomseg.io.files import flush_folder, link_or_copy, reason_of, writing

MAX_COMPRESSION = 20
"""Objects that are larger by this factor when decoded are not decoded for a comparison; lossless compression
of CT and MR is about 3."""

SMALL_BYTES = 64 * 1024**2
"""Objects whose pixels take no more than this are decoded anyway: images of one value compress to nothing."""

MEANING = (
    *Identity.KEYWORDS,
    *("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PhotometricInterpretation", "PixelRepresentation"),
    *("BitsStored", "HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
"""Attributes that say whose pixels they are, where they lie and what they mean. Two objects of one SOP
Instance UID must agree in them; results computed with others are other results."""


class Arrival(Enum):
    """The result of storing an object."""

    NEW = "new"
    KNOWN = "known"
    """It is already stored, with the same pixels of the same meaning."""


class ConflictError(ScanError):
    """An object of this SOP Instance UID is stored, with other pixels, or pixels of another meaning."""


@dataclass(frozen=True)
class Instance:
    """The attributes read from an object's header."""

    sop_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    modality: str
    body_part: str
    description: str
    number: int | None
    frames: int

    @property
    def series(self) -> str:
        """The key of its series."""
        return digest(self.study_uid, self.series_uid)


def digest(*parts: str) -> str:
    """16 hexadecimal digits that identify these texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress pydicom's warnings: they contain values, which may be a patient's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_instance(content: bytes) -> Instance:
    """The header of an object, in the form of DICOM files.

    Raises:
        ScanError: it is damaged, deflated as a whole, or lacks a UID; the message contains nothing from it.
        OutputError: it does not fit in memory.
    """
    with quiet():
        try:
            stream = limited("the object", io.BytesIO(content), ANY_BYTES)
            read_transfer_syntax("the object", stream)
            header = pydicom.dcmread(stream)
            pixels = len(header.PixelData)
            found = Instance(
                sop_uid=valid_uid(text(header, "SOPInstanceUID")),
                sop_class_uid=valid_uid(text(header, "SOPClassUID")),
                study_uid=valid_uid(text(header, "StudyInstanceUID")),
                series_uid=valid_uid(text(header, "SeriesInstanceUID")),
                modality=text(header, "Modality"),
                body_part=text(header, "BodyPartExamined"),
                description=text(header, "SeriesDescription"),
                number=_number(header, "SeriesNumber"),
                frames=_number(header, "NumberOfFrames") or 1,
            )
            expected = _native_bytes(header)
        except ScanError:
            raise
        except MemoryError as error:
            raise OutputError("too little memory for an object") from error
        except Exception as error:  # on hostile bytes, parsers may raise any exception
            raise ScanError(f"not a whole image ({type(error).__name__})") from error
    if expected is not None and pixels < expected:
        raise ScanError("its pixel data are cut off")
    lacking = [
        name for name in ("sop_uid", "sop_class_uid", "study_uid", "series_uid") if not getattr(found, name)
    ]
    if lacking:
        raise ScanError(f"it has no valid {' and '.join(lacking)}")
    return found


def _number(header: Dataset, keyword: str) -> int | None:
    value = value_of(header, keyword)
    return None if value is None or value == "" else int(value)


def _native_bytes(header: Dataset) -> int | None:
    """Number of pixel bytes declared by a header; None if they are compressed."""
    return None if header.file_meta.TransferSyntaxUID.is_compressed else _pixel_bytes(header)


def _pixel_bytes(header: Dataset) -> int:
    """Number of bytes of all pixels, not compressed."""
    rows, columns, bits = (int(value_of(header, name)) for name in ("Rows", "Columns", "BitsAllocated"))
    samples = _number(header, "SamplesPerPixel") or 1
    return rows * columns * bits * (_number(header, "NumberOfFrames") or 1) * samples // 8


class Store:
    """The received objects of a node. Any thread may use this, but no two at once for the same series."""

    def __init__(self, folder: Path, free_bytes: int) -> None:
        """
        Args:
            free_bytes: room that must be left on the disk.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._folder = folder
        self._free_bytes = free_bytes
        with writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for partial in folder.glob("*/.*.partial"):  # of a killed process: no sender was notified
                partial.unlink()

    def series(self) -> list[str]:
        """All series of which objects are stored."""
        return sorted(place.name for place in self._folder.iterdir() if self.files(place.name))

    def files(self, series: str) -> list[Path]:
        """The objects of a series, in an order independent of their arrival."""
        return sorted((self._folder / series).glob("*.dcm"))

    def contents(self, series: str) -> list[str]:
        """Digests of the objects of a series by their UIDs and ``MEANING``, in the order of ``files``.

        Raises:
            OutputError: a file cannot be read, which may be temporary.
        """
        return [digest(file.stem, _meaning_of(file)) for file in self.files(series)]

    def room(self) -> int:
        """Free bytes beyond the reserve."""
        return shutil.disk_usage(self._folder).free - self._free_bytes

    def put(self, instance: Instance, content: bytes) -> Arrival:
        """Store an object; when this returns, it is on the disk.

        Raises:
            OutputError: there is no space, or the disk refuses it.
            ConflictError: another object has its UID.
        """
        place = self._folder / instance.series / f"{digest(instance.sop_uid)}.dcm"
        with writing(place):
            if place.exists():
                return _compared(place, content)
            if self.room() < len(content):
                raise OutputError("the disk is full, or nearly so")
            if not place.parent.exists():
                place.parent.mkdir(mode=0o700)
                flush_folder(self._folder)
            partial = place.with_name(f".{place.name}.partial")
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(place)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
            flush_folder(place.parent)
            return Arrival.NEW

    def link(self, series: str, to: Path) -> None:
        """Link the objects of a series in another folder, which later arrivals do not change, or copy them if
        the file system has no links. The folder exists only when it is complete and, with its parents, on the
        disk.

        Raises:
            OutputError: the disk refuses it.
        """
        partial = to.with_name(f".{to.name}.partial")
        with writing(to):
            for stale in (partial, to):
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir(mode=0o700, parents=True)
            for file in self.files(series):
                link_or_copy(file, partial / file.name)
            flush_folder(partial)
            partial.rename(to)
            for parent in to.parents[:3]:  # the job's, that of all jobs, the node's
                flush_folder(parent)

    def remove(self, series: str) -> None:
        """Delete a series."""
        shutil.rmtree(self._folder / series, ignore_errors=True)


def _compared(place: Path, content: bytes) -> Arrival:
    stored = place.read_bytes()
    if stored == content or _same(stored, content):
        return Arrival.KNOWN
    raise ConflictError(f"another object of its UID is there, series {place.parent.name}")


def _meaning_of(file: Path) -> str:
    """As ``_meaning``; of a file that is no whole object, a digest of its content."""
    try:
        with file.open("rb") as stream, quiet():
            try:
                return _meaning(stream)
            except MemoryError:
                raise
            except Exception:  # on hostile bytes, parsers may raise any exception, also OSError
                stream.seek(0)
                return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, MemoryError) as error:
        raise OutputError(f"a stored file cannot be read ({reason_of(error)})") from error


def _meaning(stream: BinaryIO) -> str:
    """A digest of the attributes of ``MEANING``, independent of how they are encoded.

    Raises:
        Exception: any, as parsers may raise on hostile bytes.
    """
    tags = [Tag(keyword) for keyword in MEANING]
    header = pydicom.dcmread(limited("the object", stream), stop_before_pixels=True, specific_tags=tags)
    return digest(*(_plain(header, keyword) for keyword in MEANING))


def _plain(header: Dataset, keyword: str) -> str:
    """The text of an attribute, in which equal numbers are equal; of a sequence, its standard attributes."""
    value = value_of(header, keyword)
    if isinstance(value, Sequence):
        return str([{name: _plain(one, name) for name in one.dir()} for one in value])
    if isinstance(value, (float, MultiValue)):
        several = value if isinstance(value, MultiValue) else [value]
        return str([float(one) if isinstance(one, (int, float)) else str(one) for one in several])
    return text(header, keyword)


def _same(stored: bytes, content: bytes) -> bool:
    """Whether two objects have the same pixels, however compressed, of the same meaning."""
    with quiet():
        try:
            if _meaning(io.BytesIO(stored)) != _meaning(io.BytesIO(content)):
                return False
            streams = (limited("the object", io.BytesIO(each), ANY_BYTES) for each in (stored, content))
            one, other = (pydicom.dcmread(stream) for stream in streams)
            if one.file_meta.TransferSyntaxUID == other.file_meta.TransferSyntaxUID:
                return bool(one.PixelData == other.PixelData)
            if not (_can_be_decoded(one, stored) and _can_be_decoded(other, content)):
                return False
            return np.array_equal(one.pixel_array, other.pixel_array)
        except MemoryError as error:
            raise OutputError("too little memory to compare two objects of one UID") from error
        except Exception:  # pixels that cannot be decoded cannot be compared
            return False


def _can_be_decoded(image: Dataset, content: bytes) -> bool:
    """Whether decoding an object takes an amount of memory that is plausible for its size: decoders trust the
    sizes stored in compressed frames, and a few bytes can declare gigabytes."""
    if _pixel_bytes(image) > max(SMALL_BYTES, MAX_COMPRESSION * len(content)):
        return False
    syntax = image.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return True
    frames = generate_frames(image.PixelData, number_of_frames=_number(image, "NumberOfFrames") or 1)
    size = image.Rows, image.Columns
    return not any(contradiction(frame, syntax, *size, image.BitsAllocated) for frame in frames)
