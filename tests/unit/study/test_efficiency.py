"""Resource usage of rows: stored by case, shown by row."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from zoomseg.inference.batch import Segmented
from zoomseg.inference.resource_usage import ResourceUsage
from zoomseg.study.efficiency import FILE, read, record, sheet


def done(case: str, seconds: float, machine: float) -> Segmented:
    usage = ResourceUsage(1000.0, 0.0, 5.0, 0.0, 40.0, machine)
    return cast(Segmented, cast(Any, SimpleNamespace(case=case, seconds={"total": seconds}, usage=usage)))


def test_rows_over_all_their_folds(tmp_path: Path) -> None:
    folds = [tmp_path / "fold-0", tmp_path / "fold-1"]
    for folder in folds:
        folder.mkdir()
    record(folds[0], done("a", 2.0, 100.0))
    record(folds[0], done("b", 4.0, 300.0))
    record(folds[1], done("c", 6.0, 200.0))
    assert list(read(folds[0])) == ["a", "b"]
    shown = sheet({"fine": folds, "never measured": [tmp_path]})
    assert shown is not None
    (row,) = shown.rows
    assert row[:2] == ("fine", "3")
    assert dict(zip(shown.head, row, strict=True)) == {
        "row": "fine",
        "cases": "3",
        "seconds": "4.0 (6; 12)",
        "RAM, MB": "1,000.0 (1,000)",
        "GPU memory, MB": "0.0 (0)",
        "GPU memory area, MB s": "0.0 (0; 0)",
        "CPU area of the process, % s": "40.0 (40; 120)",
        "CPU area of the machine (FLARE's), % s": "200.0 (300; 600)",
    }


def test_what_is_kept_is_what_was_measured(tmp_path: Path) -> None:
    record(tmp_path, done("a", 2.0, 100.0))
    assert read(tmp_path) == {
        "a": {
            "seconds": 2.0,
            "peak_ram_mb": 1000.0,
            "peak_vram_mb": 0.0,
            "ram_area_mb_s": 5.0,
            "vram_area_mb_s": 0.0,
            "cpu_area_percent_s": 40.0,
            "machine_cpu_area_percent_s": 100.0,
        }
    }


def test_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"a": {"seconds": 1}}')
    assert read(tmp_path) == {}
    assert sheet({"fine": [tmp_path]}) is None
