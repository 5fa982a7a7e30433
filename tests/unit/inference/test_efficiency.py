"""Totals, means and maxima of known values."""

from __future__ import annotations

from zoomseg.inference.efficiency import summarise


def test_areas_have_a_total_and_peaks_do_not() -> None:
    cases = [
        {"seconds": 2.0, "peak_ram_mb": 300.0, "cpu_area_percent_s": 150.5},
        {"seconds": 4.0, "peak_ram_mb": 500.0, "cpu_area_percent_s": 50.0},
        {"seconds": 3.0, "peak_ram_mb": 100.0, "cpu_area_percent_s": 100.0},
    ]
    assert summarise(cases) == {
        "seconds": {"total": 9.0, "mean": 3.0, "max": 4.0},
        "peak_ram_mb": {"mean": 300.0, "max": 500.0},
        "cpu_area_percent_s": {"total": 300.5, "mean": 100.167, "max": 150.5},
    }


def test_of_nothing_there_is_nothing() -> None:
    assert summarise([]) == {}
