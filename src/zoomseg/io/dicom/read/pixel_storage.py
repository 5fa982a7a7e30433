"""Storage of the voxels of one DICOM object, and their position in its file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.decoders.gdcm import DECODER_DEPENDENCIES as GDCM_SYNTAXES
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from zoomseg.core.errors import ScanError
from zoomseg.core.extras import how_to_install
from zoomseg.io.dicom.read.archive import Source
from zoomseg.io.dicom.tags import number, text

_PIXEL_DATA = (0x7FE0, 0x0010)
_FLOAT_PIXEL_DATA = ((0x7FE0, 0x0008), (0x7FE0, 0x0009))
_NATIVE = ("", ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes of uncompressed values; '' is that of files without their own header."""

MAX_COMPRESSION = 2000
"""Maximum ratio of declared bytes of voxels to those of a file: including its header, even a slice of air
compresses less."""

MAX_ENCODING_BYTES, MAX_FRAME_ENCODING_BYTES = 64 * 1024**2, 64 * 1024
"""Maximum by which an object, and each of its frames, may be larger compressed than not: for tables, and for
attributes after the voxels. No compression enlarges voxels by more than some percent."""


@dataclass(frozen=True)
class Coding:
    """Storage of the values of a frame, by the header of its object."""

    rows: int
    columns: int
    allocated: int
    """Bits of a stored value: 8, 16 or 32, in segmentations also 1. Of these, ``stored`` are used."""
    stored: int
    signed: bool
    syntax: str
    """Transfer syntax if it is a compressed one; '' if values are not compressed."""


@dataclass(frozen=True)
class Pixels(Coding):
    """Storage of the voxels of one object."""

    frames: int
    high_bit: int
    """The highest of the ``stored`` bits."""
    order: Literal["<", ">"]
    """Of the bytes of uncompressed values."""
    offset: int
    """Byte of the file at which the pixel data begin."""
    compressed_bytes: int
    """Bytes from there to the end of the file; 0 if values are not compressed."""
    inverted: bool
    """MONOCHROME1 of a scan without a physical unit: high values are dark."""
    padding: tuple[int, int] | None
    """Range of stored values that mean "nothing was scanned here"."""

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.allocated // 8


def read_pixels(
    source: Source, header: Dataset, stream: BinaryIO, size: int, frames: int, ct: bool
) -> Pixels:
    """From a header that was read from ``stream``, up to the start of the pixel data.

    Args:
        size: bytes of the whole object.
        frames: number declared by the object.
        ct: Hounsfield units are the same whether air is displayed black or white.

    Raises:
        ScanError: an invalid value, colours, or fewer bytes than declared.
    """
    allocated = number(source, header, "BitsAllocated", 1, 64)
    if allocated not in (8, 16, 32):
        raise ScanError(f"{source}: BitsAllocated is {allocated}; 8, 16 and 32 are read")
    stored = number(source, header, "BitsStored", 1, allocated)
    high_bit = stored - 1
    if header.get("HighBit") is not None:
        high_bit = number(source, header, "HighBit", stored - 1, allocated - 1)
    signed = number(source, header, "PixelRepresentation", 0, 1) == 1
    rows, columns = (number(source, header, keyword, 1, 65535) for keyword in ("Rows", "Columns"))
    photometric = text(header, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ScanError(f"{source}: PhotometricInterpretation is {photometric or 'missing'}, not grey values")
    uid = UID(text(getattr(header, "file_meta", Dataset()), "TransferSyntaxUID"))
    native = uid in _NATIVE
    if not (native or _has_decoder(uid)):
        raise ScanError(f"{source}: {unread_syntax(uid)}")
    implicit, little = header.original_encoding
    order: Literal["<", ">"] = ">" if little is False else "<"
    needed = frames * rows * columns * allocated // 8
    if not native and needed > size * MAX_COMPRESSION:
        raise ScanError(f"{source}: header promises {needed} bytes of voxels from a file of {size}")
    offset = _offset(source, stream, size, order, bool(implicit), allocated, needed if native else 0)
    compressed_bytes = 0 if native else size - offset
    if compressed_bytes > needed + MAX_ENCODING_BYTES + frames * MAX_FRAME_ENCODING_BYTES:
        raise ScanError(
            f"{source}: header promises {needed} bytes of voxels, but {compressed_bytes} follow compressed"
        )
    return Pixels(
        rows,
        columns,
        allocated,
        stored,
        signed,
        "" if native else str(uid),
        frames=frames,
        high_bit=high_bit,
        order=order,
        offset=offset,
        compressed_bytes=compressed_bytes,
        inverted=photometric == "MONOCHROME1" and not ct,
        padding=_padding(header, allocated, signed),
    )


def unread_syntax(uid: UID) -> str:
    """The reason why voxels of a transfer syntax are not read, and the remedy."""
    name, todo = uid.name[:64], "convert it to an uncompressed DICOM file"
    if lacks_gdcm(uid):
        install = how_to_install("gdcm")
        return f"its transfer syntax {name} is read by GDCM, which is not installed: {install}, or {todo}"
    return f"its transfer syntax {name} is not read; {todo}"


def lacks_gdcm(uid: UID) -> bool:
    """Whether GDCM would read a transfer syntax, but is not installed."""
    return uid in GDCM_SYNTAXES and "gdcm" not in get_decoder(uid).available_plugins


def _has_decoder(uid: UID) -> bool:
    try:
        return bool(get_decoder(uid).is_available)
    except NotImplementedError:
        return False


def _offset(
    source: Source, stream: BinaryIO, size: int, order: str, implicit: bool, allocated: int, needed: int
) -> int:
    """Start of the values of the pixel data element; the reader has stopped before it."""
    offset = stream.tell() + (8 if implicit else 12)
    element = stream.read(offset - stream.tell())
    tag = struct.unpack_from(order + "HH", element) if stream.tell() == offset else ()
    if tag in _FLOAT_PIXEL_DATA:
        raise ScanError(f"{source}: holds floating point pixel data; only whole numbers are read")
    if tag != _PIXEL_DATA:
        raise ScanError(f"{source}: holds no pixel data; the file is truncated, or was written without it")
    if order == ">" and allocated == 8 and element[4:6] == b"OW":  # pairs of values are swapped (PS3.5 A.3)
        raise ScanError(
            f"{source}: holds values of 8 bits as big-endian words, which are not read; convert it to little "
            "endian (dcmconv +te)"
        )
    length = int(struct.unpack_from(order + "I", element, len(element) - 4)[0])
    there = min(length, size - offset)
    if there < needed:
        raise ScanError(
            f"{source}: truncated; header promises {needed} bytes of voxels, the file has {there}"
        )
    return offset


def _padding(header: Dataset, allocated: int, signed: bool) -> tuple[int, int] | None:
    first = header.get("PixelPaddingValue")
    if not isinstance(first, int):
        return None
    last = header.get("PixelPaddingRangeLimit")
    ends = [_as_stored(v, allocated, signed) for v in (first, last if isinstance(last, int) else first)]
    return min(ends), max(ends)


def _as_stored(value: int, bits: int, signed: bool) -> int:
    """Convert a value to its stored form: files give negative values as large ones and vice versa; the bits
    are correct."""
    value %= 1 << bits
    return value - (1 << bits) if signed and value >> (bits - 1) else value
