"""Sizes and precisions stored in compressed frames, compared with the true ones."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from helpers.dicom_series import image
from zoomseg.io.dicom.read.codestream import contradiction, stated

BASELINE = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    b"\xff\xff\xc0\x00\x0b\x08\x00\x25\x00\x31\x01\x01\x11\x00"
)
"""Start, application data, a fill byte, and the header of a frame of 37 rows and 49 columns."""


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_sizes_of_what_was_compressed(syntax: str) -> None:
    dataset = image(np.arange(37 * 49, dtype=np.uint16).reshape(37, 49), (0, 0, 0))
    dataset.compress(syntax)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    assert stated(frame, syntax) == (37, 49, 16)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_what_contradicts_the_header_is_told(syntax: str) -> None:
    values = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40)
    dataset = image(values, (0, 0, 0), BitsStored=12, HighBit=11)
    dataset.compress(syntax)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    assert contradiction(frame, syntax, 32, 40, 16) == ""
    assert contradiction(frame, syntax, 32, 40, 12) == ""
    turned = "compressed frame of 32x40, but its header says 40x32"
    assert contradiction(frame, syntax, 40, 32, 16) == turned
    wide = "compressed frame of 12 bits, but its header says 8"
    assert contradiction(frame, syntax, 32, 40, 8) == wide


def test_tables_and_fill_bytes_before_a_jpeg_frame_are_passed_over() -> None:
    assert stated(BASELINE, JPEGBaseline8Bit) == (37, 49, 8)


def test_rle_does_not_say() -> None:
    assert stated(bytes(64), RLELossless) is None
    assert contradiction(bytes(64), RLELossless, 1, 2, 8) == ""


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "neither JPEG nor JPEG 2000"),
        (bytes(100), "neither JPEG nor JPEG 2000"),
        (BASELINE[:24], "JPEG without a frame header"),
        (b"\xff\xd8\xff\xc4\x00\x02" * 3, "JPEG without a frame header"),
        (b"\xff\x4f\xff\x51" + bytes(10), "truncated JPEG 2000"),
    ],
)
def test_no_codestreams(frame: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        stated(frame, JPEGBaseline8Bit)
