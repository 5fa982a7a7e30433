"""Efficiency measures of scans and their summary: those of the FLARE challenge, and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from zoomseg.inference.batch import Segmented
from zoomseg.inference.resource_usage import ResourceUsage

PEAKS = ("peak_ram_mb", "peak_vram_mb")
"""Measures whose sum over cases is meaningless."""

MEASURES = ("seconds", *(field.name for field in fields(ResourceUsage)))

Measures = Mapping[str, float]
"""Measure -> value."""


def measures(done: Segmented) -> dict[str, float]:
    """Of a scan; seconds do not include waiting for other scans."""
    usage = {name: round(value, 1) for name, value in asdict(done.usage).items()}
    return {"seconds": round(done.seconds["total"], 3), **usage}


def measures_of_entry(account: Mapping[str, Any]) -> Measures:
    """From a case's entry in ``run.json``."""
    seconds = {"seconds": float(account["seconds"]["total"])}
    return seconds | {measure: float(account[measure]) for measure in MEASURES if measure not in seconds}


def summarise(cases: Sequence[Measures]) -> dict[str, dict[str, float]]:
    """By measure, ``total`` (of seconds and areas), ``mean`` and ``max`` over cases; empty if there are
    none."""
    found: dict[str, dict[str, float]] = {}
    for measure in cases[0] if cases else ():
        values = [case[measure] for case in cases]
        total = math.fsum(values)
        found[measure] = {} if measure in PEAKS else {"total": round(total, 3)}
        found[measure] |= {"mean": round(total / len(values), 3), "max": max(values)}
    return found
