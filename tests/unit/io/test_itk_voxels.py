"""Voxels in every storage form of NRRD and MetaImage, and errors for missing ones."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

from zoomseg.core.errors import ScanError
from zoomseg.io.header_limits import MAX_DEFLATION
from zoomseg.io.scans import ScanInput, read_voxels, reading_bytes

VALUES = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
RAW = VALUES.tobytes(order="F")
TEXT = "\n".join(str(value) for value in VALUES.ravel(order="F")).encode()


def nrrd(path: Path, data: bytes, encoding: str, lines: str = "", sizes: str = "4 5 6") -> Path:
    head = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nendian: little\nencoding: {encoding}\n"
    path.write_bytes(f"{head}{lines}\n".encode() + data)
    return path


def meta(path: Path, data: bytes, lines: str = "", sizes: str = "4 5 6") -> Path:
    head = f"NDims = 3\nDimSize = {sizes}\nElementType = MET_SHORT\n{lines}ElementDataFile = LOCAL\n"
    path.write_bytes(head.encode() + data)
    return path


@pytest.mark.parametrize(
    ("data", "encoding", "lines"),
    [
        (RAW + b"behind", "raw", ""),
        (b"a line\nabcd" + RAW, "raw", "line skip: 1\nbyte skip: 4\n"),
        (b"whatever" + RAW, "raw", "byte skip: -1\n"),
        (gzip.compress(RAW), "gzip", ""),
        (gzip.compress(RAW[:50]) + gzip.compress(RAW[50:]), "GZ", ""),
        (b"a line\n" + gzip.compress(b"abcd" + RAW), "gzip", "line skip: 1\nbyte skip: 4\n"),
        (bz2.compress(b"abcd" + RAW), "bzip2", "byte skip: 4\n"),
        (TEXT + b" behind", "ascii", ""),
        (b"a line\n" + TEXT, "text", "line skip: 1\n"),
        (b"ab" + RAW.hex("\n", 20).upper().encode(), "hex", "byte skip: 2\n"),
    ],
)
def test_every_encoding_of_a_nrrd(tmp_path: Path, data: bytes, encoding: str, lines: str) -> None:
    assert np.array_equal(read_voxels(nrrd(tmp_path / "a.nrrd", data, encoding, lines)).data[0], VALUES)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (RAW + b"behind", ""),
        (b"gap" + RAW, "HeaderSize = -1\n"),
        (zlib.compress(RAW), "CompressedData = True\n"),
        (gzip.compress(RAW), "CompressedData = True\n"),
        (TEXT, "BinaryData = False\n"),
        (VALUES.astype(">i2").tobytes(order="F"), "ElementByteOrderMSB = True\n"),
    ],
)
def test_every_form_of_a_metaimage(tmp_path: Path, data: bytes, lines: str) -> None:
    assert np.array_equal(read_voxels(meta(tmp_path / "a.mha", data, lines)).data[0], VALUES)


def test_a_header_size_in_a_file_of_voxels_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"x" * 100 + RAW)
    path = meta(tmp_path / "a.mhd", b"", "HeaderSize = 100\n")
    path.write_text(path.read_text().replace("LOCAL", "a.raw"))
    assert np.array_equal(read_voxels(path).data[0], VALUES)


@pytest.mark.parametrize(
    ("data", "encoding", "lines", "message"),
    [
        (RAW[:-1], "raw", "", "truncated; header promises 240 bytes of voxels from byte"),
        (RAW, "raw", "byte skip: 1\n", "truncated; 239 of 240 bytes of voxels are there"),
        (RAW, "raw", "line skip: 999999999\n", "truncated; 0 of 240 bytes"),
        (gzip.compress(RAW[:-1]), "gzip", "", "truncated; 239 of 240 bytes"),
        (gzip.compress(RAW)[:-8] + bytes(8), "gzip", "", "does not match its checksum"),
        (gzip.compress(RAW), "gzip", "byte skip: -1\n", "a byte skip of -1 is read with raw voxels alone"),
        (zlib.compress(RAW), "gzip", "", "damaged, truncated or not an image"),
        (bz2.compress(RAW)[:-20], "bz2", "", "damaged, truncated or not an image"),
        (TEXT.replace(b"\n", b",", 20), "text", "", "(truncated; 1 of 120 voxels|damaged)"),
        (TEXT[: TEXT.rindex(b"\n")], "text", "", "truncated; 119 of 120 voxels are there"),
        (TEXT.replace(b"59", b"40000"), "text", "", "numbers that do not fit into int16"),
        (b"xyz" + RAW.hex().encode(), "hex", "", "damaged, truncated or not an image"),
    ],
)
def test_voxels_that_are_not_there_are_one_clear_line(
    tmp_path: Path, data: bytes, encoding: str, lines: str, message: str
) -> None:
    with pytest.raises(ScanError, match=rf"a\.nrrd: .*{message}"):
        read_voxels(nrrd(tmp_path / "a.nrrd", data, encoding, lines))


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    """The data behind the voxels inflate to gigabytes; implausible sizes are refused."""
    path = nrrd(tmp_path / "a.nrrd", bz2.compress(bytes(1000)), "bzip2", sizes="1000 1000 1000")
    with pytest.raises(ScanError, match="header promises 2000000000 bytes"):
        read_voxels(path)
    for packed, write in ((gzip.compress, nrrd), (zlib.compress, meta)):
        kind = ("gzip",) if write is nrrd else ("CompressedData = True\n",)
        path = write(tmp_path / f"a{'.nrrd' if write is nrrd else '.mha'}", packed(bytes(50_000_000)), *kind)
        assert not read_voxels(path).data.any()
        path = write(path, packed(bytes(1000)), *kind, sizes="4000 4000 4000")
        with pytest.raises(ScanError, match="header promises"):
            read_voxels(path)


def test_bzip2_compresses_more_than_deflate(tmp_path: Path) -> None:
    """Zeros with a small organ in them, as label maps are."""
    values = np.zeros((256, 256, 100), np.int16)
    values[100:110, 100:110, 50:55] = 3
    packed = bz2.compress(values.tobytes(order="F"))
    assert values.nbytes > MAX_DEFLATION * (len(packed) + 200)
    path = nrrd(tmp_path / "a.nrrd", packed, "bzip2", sizes="256 256 100")
    assert np.array_equal(read_voxels(path).data[0], values)


def test_text_is_counted_before_it_is_read(tmp_path: Path) -> None:
    packed = nrrd(tmp_path / "a.nrrd", gzip.compress(RAW), "gzip")
    text = nrrd(tmp_path / "b.nrrd", TEXT, "text")
    assert reading_bytes(ScanInput("a", (packed,)))[1] == VALUES.nbytes
    assert reading_bytes(ScanInput("b", (text,)))[1] == VALUES.nbytes + 8 * 120
