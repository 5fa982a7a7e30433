"""Names of the volumes in a folder or zip."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from helpers.dicom_series import numbered_series, ramp, stack, write
from zoomseg.io.dicom.read.series_discovery import Found, Refused, find_series
from zoomseg.io.dicom.read.series_names import case_names


def names(path: Path) -> tuple[str, ...]:
    return case_names(path, find_series(path))


def test_names(tmp_path: Path) -> None:
    numbered_series(tmp_path / "one", 3)
    assert names(tmp_path / "one") == ("one",)
    numbered_series(tmp_path / "study" / "b", 7)
    numbered_series(tmp_path / "study" / "a", 12)
    assert names(tmp_path / "study") == ("study_7", "study_12")
    numbered_series(tmp_path / "all" / "anna", 2, "1.7")
    numbered_series(tmp_path / "all" / "bert" / "x", 5, "1.8")
    numbered_series(tmp_path / "all" / "bert" / "y", 6, "1.8")
    assert names(tmp_path / "all") == ("anna", "bert_5", "bert_6")
    shutil.make_archive(str(tmp_path / "all" / "carl"), "zip", tmp_path / "one")
    assert names(tmp_path / "all") == ("carl", "anna", "bert_5", "bert_6")
    assert names(tmp_path / "all" / "carl.zip") == ("carl",)


def test_series_of_one_number_differ_in_name(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write(tmp_path / place, stack(ramp(), SeriesInstanceUID=f"1.{ord(place)}"))
    assert names(tmp_path) == (f"{tmp_path.name}_4_1", f"{tmp_path.name}_4_2")


def test_names_differ_on_disks_that_ignore_case(tmp_path: Path) -> None:
    numbered_series(tmp_path / "Knee", 2, "1.7")
    numbered_series(tmp_path / "knee", 5, "1.8")
    assert sorted(names(tmp_path)) == ["Knee_1", "knee_2"]


def test_names_of_many_series_take_no_long_time(tmp_path: Path) -> None:
    refused = tuple(Refused("1.2", 3, (), "") for _ in range(20_000))
    began = time.monotonic()
    found = case_names(tmp_path, Found((), refused, ()))
    assert time.monotonic() - began < 5
    assert found == tuple(f"{tmp_path.name}_3_{n}" for n in range(1, 20_001))
