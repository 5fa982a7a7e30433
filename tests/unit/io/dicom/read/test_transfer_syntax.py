"""A deflated file is recognised however its header states that, and before it is inflated."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import RLELossless

from helpers.dicom_series import DEFLATED_HEADERS, PREAMBLE, deflated, image, ramp
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.archive import Source, opening
from zoomseg.io.dicom.read.object_header import Damaged, read_image_object
from zoomseg.io.dicom.read.transfer_syntax import read_transfer_syntax

IMAGE = image(ramp(1, 32, 36)[0], (0, 0, 0))


@pytest.mark.parametrize("header", DEFLATED_HEADERS.values(), ids=DEFLATED_HEADERS)
def test_a_deflated_file_is_refused(header: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = deflated(IMAGE, header)
    assert pydicom.dcmread(BytesIO(content)).PixelData == IMAGE.PixelData, "pydicom inflates it"
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("inflated"))
    with pytest.raises(ScanError, match="x: is deflated as a whole; convert it to an uncompressed"):
        read_transfer_syntax("x", BytesIO(content))
    (tmp_path / "a.dcm").write_bytes(content)
    with opening() as opener:
        found = read_image_object(Source(tmp_path / "a.dcm"), opener)
    assert isinstance(found, Damaged)
    assert found.reason.startswith(f"{tmp_path / 'a.dcm'}: is deflated as a whole; convert it")


def test_the_syntax_is_given_and_the_stream_is_at_its_start() -> None:
    dataset = image(ramp(1, 32, 36)[0], (0, 0, 0))
    dataset.compress(RLELossless)
    whole = BytesIO()
    dataset.save_as(whole, enforce_file_format=True)
    for content in (whole.getvalue(), whole.getvalue().removeprefix(PREAMBLE)):
        stream = BytesIO(content)
        assert read_transfer_syntax("x", stream) == RLELossless
        assert stream.tell() == 0


def test_an_object_without_a_header_of_its_file_states_none() -> None:
    assert read_transfer_syntax("x", BytesIO(b"\x08\0\5\0CS\x0a\0ISO_IR 100")) == ""
