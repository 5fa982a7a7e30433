"""Resource usage of the predictions of a study's rows: stored beside them, and shown as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zoomseg.inference.batch import Segmented
from zoomseg.inference.efficiency import MEASURES, Measures, measures, summarise
from zoomseg.inference.html_page import number
from zoomseg.io.files import parse_json, read_file, write_json_atomic
from zoomseg.study.report_page import Sheet

FILE = "efficiency.json"

TITLE = "Efficiency by row: mean over cases (max; total)"

COLUMNS = {
    "seconds": "seconds",
    "peak_ram_mb": "RAM, MB",
    "peak_vram_mb": "GPU memory, MB",
    "vram_area_mb_s": "GPU memory area, MB s",
    "cpu_area_percent_s": "CPU area of the process, % s",
    "machine_cpu_area_percent_s": "CPU area of the machine (FLARE's), % s",
}
"""Measures shown, and their names."""


def record(folder: Path, done: Segmented) -> None:
    """Add a scan to the measures of a row's fold, which are kept after an interruption.

    Raises:
        OutputError: no permission, full disk.
    """
    write_json_atomic(folder / FILE, {**read(folder), done.case: measures(done)})


def read(folder: Path) -> dict[str, Measures]:
    """By case; empty if there are none, or the file is damaged."""
    try:
        found = parse_json(read_file(folder / FILE))
        return {str(case): {name: float(own[name]) for name in MEASURES} for case, own in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def sheet(rows: Mapping[str, Sequence[Path]]) -> Sheet | None:
    """For each row, given by its folds' folders; None if nothing was measured."""
    found = {
        name: [own for folder in folders for own in read(folder).values()] for name, folders in rows.items()
    }
    lines = tuple((name, str(len(cases)), *_cells(cases)) for name, cases in found.items() if cases)
    return Sheet(TITLE, ("row", "cases", *COLUMNS.values()), lines) if lines else None


def _cells(cases: Sequence[Measures]) -> list[str]:
    summary = summarise(cases)
    return [_cell(summary[name]) for name in COLUMNS]


def _cell(values: Mapping[str, float]) -> str:
    beside = "; ".join(number(values[name], 0) for name in ("max", "total") if name in values)
    return f"{number(values['mean'], 1)} ({beside})"
