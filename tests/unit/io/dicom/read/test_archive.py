"""Zips: read where they lie, and refused for what no honest one holds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from helpers.dicom_series import ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.archive import opening
from zoomseg.io.dicom.read.series_discovery import find_series, the_series


def test_names_in_a_zip_are_never_paths(tmp_path: Path) -> None:
    files = sorted(write(tmp_path / "files", stack(ramp())).iterdir())
    archive = tmp_path / "inner" / "evil.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        for number, file in enumerate(files):
            packed.write(file, f"../../escaped{number}.dcm" if number % 2 else f"/tmp/absolute{number}.dcm")
    before = set(tmp_path.rglob("*"))
    assert the_series(archive).series.grid.shape == (7, 6, 5)
    assert set(tmp_path.rglob("*")) == before


def test_zip_bombs_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(3):
            packed.writestr(f"{number}.dcm", bytes(100 * 1024**2))
    with pytest.raises(
        ScanError, match=r"bomb\.zip: inflates to \d+ times its size, which is not plausible for scans"
    ):
        find_series(bomb)
    monkeypatch.setattr("zoomseg.io.dicom.read.archive.MAX_TOTAL_BYTES", 10**8)
    with pytest.raises(ScanError, match="inflates to 314572800 bytes; at most 100000000 are read"):
        find_series(bomb)
    monkeypatch.setattr("zoomseg.io.dicom.read.archive.MAX_FILES", 2)
    with pytest.raises(ScanError, match="3 files in the zip; at most 2 are read"):
        find_series(bomb)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Many entries of one piece of compressed data (the construction of Fifield's bomb, at its simplest)."""
    packed_once = tmp_path / "once.zip"
    with zipfile.ZipFile(packed_once, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.dcm", np.random.default_rng(0).bytes(5000))
        again = packed.filelist[0]
        for number in range(5):
            copy = zipfile.ZipInfo(f"b{number}.dcm")
            for field in ("compress_size", "file_size", "CRC", "compress_type", "header_offset"):
                setattr(copy, field, getattr(again, field))
            packed.filelist.append(copy)
            packed._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ScanError, match="files in the zip overlap"):
        find_series(packed_once)


def test_damaged_encrypted_and_odd_zips(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ScanError, match="damaged, truncated or not a zip"):
        find_series(archive)
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.dcm", b"x")
        packed.filelist[0].flag_bits |= 1
    with pytest.raises(ScanError, match=r"'a\.dcm' is encrypted"):
        find_series(archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("a.dcm", b"x")
    with pytest.raises(ScanError, match="only deflate is read"), opening(archive):
        pass


def test_a_file_without_a_name_is_passed_over(tmp_path: Path) -> None:
    files = sorted(write(tmp_path / "files", stack(ramp())).iterdir())
    archive = tmp_path / "odd.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number, file in enumerate(files):
            packed.writestr(zipfile.ZipInfo(f"{number}.dcm"), file.read_bytes())
        odd = zipfile.ZipInfo("Y")
        odd.filename = ""
        packed.writestr(odd, b"anything")
    assert the_series(archive).series.grid.shape == (7, 6, 5)
