"""Objects of which the parser would make much more than they hold are refused; large honest ones are not."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

import zoomseg
from helpers.dicom_series import AXIAL, Array, image, item, multi_frame, ramp
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read import derived_objects, parse_limits
from zoomseg.io.dicom.read.archive import Source, opening
from zoomseg.io.dicom.read.object_header import Damaged, Image, Other, read_image_object
from zoomseg.io.dicom.read.parse_limits import ANY_BYTES, limited
from zoomseg.node.store import read_instance

ITEM, END = b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
UNDEFINED = 0xFFFFFFFF
PIXELS = struct.pack("<HH", 0x7FE0, 0x0010)


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def with_sequence(length: int, content: bytes) -> bytes:
    """An image with functional groups, of which the given bytes are the content."""
    whole = encoded(image(ramp(1)[0], (0, 0, 0)))
    at = whole.index(PIXELS)
    return whole[:at] + struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, length) + content + whole[at:]


def read(path: Path, content: bytes) -> Image | Other | Damaged | None:
    path.write_bytes(content)
    with opening() as opener:
        return read_image_object(Source(path), opener)


def reason(path: Path, content: bytes) -> str:
    found = read(path, content)
    assert isinstance(found, Damaged)
    return found.reason.removeprefix(f"{path}: ")


def enhanced(values: Array) -> Dataset:
    """With ten items for each frame."""
    frames = [
        {
            "FrameContentSequence": item(
                StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k]
            ),
            "PlanePositionSequence": item(ImagePositionPatient=[0.0, 0.0, 0.5 * k]),
            "PlaneOrientationSequence": item(ImageOrientationPatient=list(AXIAL)),
            "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.75], SliceThickness=0.5),
            "PixelValueTransformationSequence": item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US"),
            "MREchoSequence": item(EffectiveEchoTime=20.0),
            "MRImageFrameTypeSequence": item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"]),
            "FrameVOILUTSequence": item(WindowCenter=40, WindowWidth=400),
            "MRAveragesSequence": item(NumberOfAverages=1),
        }
        for k in range(len(values))
    ]
    return multi_frame(values, frames, {})


def undefined(dataset: Dataset) -> None:
    """Write all sequences and items without their lengths, as many programs do."""
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for one in element.value:
                one.is_undefined_length_sequence_item = True
                undefined(one)


def test_an_enhanced_object_of_many_frames_is_read(tmp_path: Path) -> None:
    dataset = enhanced(np.arange(5000 * 4, dtype=np.uint16).reshape(5000, 2, 2))
    for change in (lambda dataset: None, undefined):
        change(dataset)
        content = encoded(dataset)
        found = read(tmp_path / "a.dcm", content)
        assert isinstance(found, Image)
        assert found.slices[-1].position_lps_mm == (0, 0, 2499.5)
        assert len(found.slices) == read_instance(content).frames == 5000


def test_millions_of_items_are_refused_before_they_are_made(tmp_path: Path) -> None:
    content = with_sequence(len(ITEM) * 2_000_000, ITEM * 2_000_000)
    said = "DICOM header with more than 1500000 items of sequences"
    tracemalloc.start()
    assert reason(tmp_path / "a.dcm", content).startswith(said)
    with pytest.raises(ScanError, match=said):
        read_instance(content)
    with pytest.raises(ScanError, match=said):
        derived_objects.read_label_object(tmp_path / "a.dcm", {})
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


@pytest.mark.parametrize("limit", ["MAX_ITEMS", "MAX_READS"])
def test_sequences_without_a_length_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """pydicom replaces any exception at the start of an item by its own."""
    whole = with_sequence(UNDEFINED, ITEM * 200 + END)
    assert reason(tmp_path / "a.dcm", whole).startswith("NumberOfFrames is None")  # it is parsed
    monkeypatch.setattr(parse_limits, limit, 100)
    said = ("DICOM header with too many attributes", "damaged or truncated DICOM header (No tag to read")
    assert reason(tmp_path / "a.dcm", whole).startswith(said)
    with pytest.raises(ScanError):
        read_instance(whole)


OWN_FILES = {"io/dicom/write/report.py", "node/sending.py"}
"""Modules that parse results written here."""


def test_whatever_is_parsed_is_limited() -> None:
    package = Path(zoomseg.__file__).parent
    sources = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    parsing = {name for name, text in sources.items() if "dcmread(" in text}
    limiting = ("import limited", "import ANY_BYTES, limited", "derived_objects.opened(")
    unlimited = {name for name in parsing if not any(way in sources[name] for way in limiting)}
    assert unlimited == OWN_FILES


def test_bytes_are_limited() -> None:
    stream = limited("x", io.BytesIO(bytes(100)), 60)
    assert stream.read(50) == bytes(50)
    assert (stream.seek(20, 1), stream.tell()) == (70, 70)  # what is skipped does not count
    assert stream.read(10) == bytes(10)
    with pytest.raises(ScanError, match=r"^x: DICOM header of more than 60 bytes; export it"):
        stream.read(10**12)
    assert limited("x", io.BytesIO(bytes(100)), ANY_BYTES).read() == bytes(100)


def test_a_long_value_is_refused_before_it_becomes_a_list(tmp_path: Path) -> None:
    dataset = image(ramp(1)[0], (0, 0, 0))
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    whole = encoded(dataset)
    tag = struct.pack("<HH", 0x0020, 0x0032)
    at = whole.index(tag) + len(tag)
    (length,) = struct.unpack_from("<I", whole, at)
    content = whole[:at] + struct.pack("<I", 100_000) + b"1\\" * 50_000 + whole[at + 4 + length :]
    assert "(ImagePositionPatient takes 100000 bytes)" in reason(tmp_path / "a.dcm", content)


def test_an_image_with_a_long_comment_is_read_without_it(tmp_path: Path) -> None:
    dataset = image(ramp(1)[0], (0, 0, 0))
    dataset.add_new("PatientComments", "UT", "x" * 100_000)
    dataset.add_new("Occupation", "UT", "y" * 20_000)
    found = read(tmp_path / "a.dcm", encoded(dataset))
    assert isinstance(found, Image)
    patient = dict(found.patient)
    assert "PatientComments" not in patient
    assert patient["Occupation"] == "y" * 16_384
