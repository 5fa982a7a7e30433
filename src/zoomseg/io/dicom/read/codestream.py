"""Sizes stored in compressed frames: decoders trust them, so that a few bytes could request all memory."""

from __future__ import annotations

import struct

from pydicom.uid import RLELossless

_J2K_START = b"\xff\x4f\xff\x51"
"""Start of codestream, then the SIZ marker (ISO/IEC 15444-1 A.5.1), also in high-throughput JPEG 2000."""

_NO_FRAME = {0xC4, 0xC8, 0xCC}
"""Of the markers 0xC0 to 0xCF, those that do not begin a frame (ISO/IEC 10918-1 B.1.1.3)."""

_JPEG_LS = 0xF7


def frame_size(frame: bytes, syntax: str) -> tuple[int, int] | None:
    """Rows and columns stored in a compressed frame; None if it does not contain them (RLE), or not at the
    expected position.

    Raises:
        ValueError: no JPEG or JPEG 2000 codestream.
    """
    if syntax == RLELossless:
        return None
    start = frame.find(_J2K_START, 0, 512) if frame[:2] != b"\xff\xd8" else -1
    if start >= 0:
        return _j2k_size(frame, start)
    if frame[:2] == b"\xff\xd8":
        return _jpeg_size(frame)
    raise ValueError("neither JPEG nor JPEG 2000")


def _j2k_size(frame: bytes, start: int) -> tuple[int, int]:
    if len(frame) < start + 24:
        raise ValueError("truncated JPEG 2000")
    width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
    return height - top, width - left


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    """The size in the frame header, which follows some tables."""
    at = 2
    while at + 9 <= len(frame):
        if frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == _JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
            rows, columns = struct.unpack_from(">2H", frame, at + 5)
            return rows, columns
        else:
            at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    raise ValueError("JPEG without a frame header")
