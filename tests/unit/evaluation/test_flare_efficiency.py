"""The challenge's table of resource usage."""

from __future__ import annotations

from pathlib import Path

from zoomseg.evaluation.flare_efficiency import write_efficiency

MEASURED = {
    "seconds": 19.5678,
    "peak_ram_mb": 2345.678,
    "peak_vram_mb": 2656.6,
    "ram_area_mb_s": 40000.4,
    "vram_area_mb_s": 31953.5,
    "cpu_area_percent_s": 1500.0,
    "machine_cpu_area_percent_s": 364.308,
}


def test_the_columns_and_digits_of_the_challenge(tmp_path: Path) -> None:
    """In the order of the cases; unknown values are empty."""
    write_efficiency(tmp_path, {"b": MEASURED, "a": {"seconds": 3.0}}, ["a", "b", "never measured"])
    assert (tmp_path / "Efficiency.csv").read_text().splitlines() == [
        "Name,Time,GPU_Mem,AUC_GPU_Time,CPU_Utilization,AUC_CPU_Time,RAM,AUC_RAM_Time",
        "a.nii.gz,3.0,,,,,,",
        "b.nii.gz,19.57,2657,31954,,364.31,2345.68,40000",
    ]


def test_no_file_of_nothing(tmp_path: Path) -> None:
    write_efficiency(tmp_path, {"b": MEASURED}, ["a"])
    assert not list(tmp_path.iterdir())
