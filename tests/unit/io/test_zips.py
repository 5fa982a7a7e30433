"""Implausible zips are refused before anything is inflated."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zoomseg.core.errors import ModelError, ScanError
from zoomseg.io.zips import ZipLimits, checked_zip

LIMITS = ZipLimits("scans", files=10, file_bytes=10**9, total_bytes=10**9)


def test_zip_bombs_are_refused_unopened(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(3):
            packed.writestr(f"{number}.dcm", bytes(100 * 1024**2))
    with pytest.raises(
        ScanError, match=r"bomb\.zip: inflates to \d+ times its size, which is not plausible for scans"
    ):
        checked_zip(bomb, LIMITS, ScanError)
    fewer = replace(LIMITS, total_bytes=10**8)
    with pytest.raises(ScanError, match="inflates to 314572800 bytes; at most 100000000 are read"):
        checked_zip(bomb, fewer, ScanError)
    fewer = replace(LIMITS, files=2)
    with pytest.raises(ScanError, match="3 files in the zip; at most 2 are read"):
        checked_zip(bomb, fewer, ScanError)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Many entries for one piece of compressed data (the simplest form of Fifield's bomb)."""
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
        checked_zip(packed_once, LIMITS, ScanError)


def test_damaged_encrypted_and_odd_zips(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ScanError, match="damaged, truncated or not a zip"):
        checked_zip(archive, LIMITS, ScanError)
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.dcm", b"x")
        packed.filelist[0].flag_bits |= 1
    with pytest.raises(ScanError, match=r"'a\.dcm' is encrypted"):
        checked_zip(archive, LIMITS, ScanError)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("a.dcm", b"x")
    with pytest.raises(ScanError, match="only deflate is read"):
        checked_zip(archive, LIMITS, ScanError)


def test_two_files_of_one_name_and_a_large_one_are_refused(tmp_path: Path) -> None:
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a", b"1234")
    with pytest.raises(ModelError, match="inflates to 4 bytes"):
        checked_zip(packed, replace(LIMITS, file_bytes=3), ModelError)
    with checked_zip(packed, replace(LIMITS, file_bytes=4), ModelError) as archive:
        assert archive.read("a") == b"1234"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("a", b"5678")
    with pytest.raises(ModelError, match="several files of the zip have one name"):
        checked_zip(packed, LIMITS, ModelError)
