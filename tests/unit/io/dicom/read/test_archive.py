"""Zips are read in place, and refused for contents that no valid one has."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from helpers.dicom_series import ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.series_discovery import find_series, the_series
from zoomseg.io.zips import ZipLimits


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


def test_zips_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.dcm", b"x")
        archive.writestr("b.dcm", b"x")
    monkeypatch.setattr("zoomseg.io.dicom.read.archive._LIMITS", ZipLimits("scans", 1, 10, 10))
    with pytest.raises(ScanError, match=r"a\.zip: 2 files in the zip; at most 1 are read"):
        find_series(packed)


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
