"""Resource usage of predictions in the format of FLARE 2022's ``load_json.py`` (github.com/JunMa11/FLARE):
a row per case, by file name. Times are seconds, memory is in MB; areas are of 0.1 s steps there and exact
here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from zoomseg.inference.efficiency import Measures
from zoomseg.io.files import write_text_atomic
from zoomseg.io.tables import csv_text

EFFICIENCY = "Efficiency.csv"

COLUMNS: Mapping[str, tuple[str, int | None]] = {
    "Time": ("seconds", 2),
    "GPU_Mem": ("peak_vram_mb", None),
    "AUC_GPU_Time": ("vram_area_mb_s", None),
    "CPU_Utilization": ("", None),
    "AUC_CPU_Time": ("machine_cpu_area_percent_s", 2),
    "RAM": ("peak_ram_mb", 2),
    "AUC_RAM_Time": ("ram_area_mb_s", None),
}
"""The script's columns: the measure, and its number of digits (None: rounded to a whole number). The maximum
utilisation is not measured here; its column is empty."""


def write_efficiency(folder: Path, measured: Mapping[str, Measures], cases: Iterable[str]) -> None:
    """Write ``Efficiency.csv``: a row for each of ``cases`` with known measures; no file if there are none.

    Raises:
        OutputError: no permission, full disk.
    """
    known = [case for case in cases if case in measured]
    if not known:
        return
    rows = [
        [f"{case}.nii.gz", *(_cell(measured[case].get(name), digits) for name, digits in COLUMNS.values())]
        for case in known
    ]
    write_text_atomic(folder / EFFICIENCY, csv_text(["Name", *COLUMNS], rows))


def _cell(value: float | None, digits: int | None) -> str:
    return "" if value is None else str(round(value, digits))
