"""What compressed frames state of themselves: decoders trust their sizes, so that a few bytes could request
all memory, and drop the upper bits of values that do not fit."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pydicom.uid import RLELossless

_J2K_START = b"\xff\x4f\xff\x51"
"""Start of codestream, then the SIZ marker (ISO/IEC 15444-1 A.5.1), also in high-throughput JPEG 2000."""

_NO_FRAME = {0xC4, 0xC8, 0xCC}
"""Of the markers 0xC0 to 0xCF, those that do not begin a frame (ISO/IEC 10918-1 B.1.1.3)."""

_JPEG_LS = 0xF7


class Stated(NamedTuple):
    """The size of a compressed frame, and the number of bits of its values."""

    rows: int
    columns: int
    bits: int


def contradiction(frame: bytes, syntax: str, rows: int, columns: int, allocated: int) -> str:
    """What a compressed frame states otherwise than the header of its object, for an error message; empty if
    nothing.

    Args:
        allocated: bits of a value after decoding. A frame of fewer is valid, as values are then smaller.

    Raises:
        ValueError: no JPEG or JPEG 2000 codestream.
    """
    found = stated(frame, syntax)
    if found is None:
        return ""
    if found[:2] != (rows, columns):
        return f"compressed frame of {found.rows}x{found.columns}, but its header says {rows}x{columns}"
    if found.bits > allocated:
        return f"compressed frame of {found.bits} bits, but its header says {allocated}"
    return ""


def stated(frame: bytes, syntax: str) -> Stated | None:
    """What is stored in a compressed frame; None if it does not contain it (RLE).

    Raises:
        ValueError: no JPEG or JPEG 2000 codestream.
    """
    if syntax == RLELossless:
        return None
    start = frame.find(_J2K_START, 0, 512) if frame[:2] != b"\xff\xd8" else -1
    if start >= 0:
        return _stated_by_j2k(frame, start)
    if frame[:2] == b"\xff\xd8":
        return _stated_by_jpeg(frame)
    raise ValueError("neither JPEG nor JPEG 2000")


def _stated_by_j2k(frame: bytes, start: int) -> Stated:
    if len(frame) < start + 43:
        raise ValueError("truncated JPEG 2000")
    width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
    return Stated(height - top, width - left, (frame[start + 42] & 0x7F) + 1)


def _stated_by_jpeg(frame: bytes) -> Stated:
    """From the frame header, which follows some tables."""
    at = 2
    while at + 9 <= len(frame):
        if frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == _JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
            bits, rows, columns = struct.unpack_from(">B2H", frame, at + 4)
            return Stated(rows, columns, bits)
        else:
            at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    raise ValueError("JPEG without a frame header")
