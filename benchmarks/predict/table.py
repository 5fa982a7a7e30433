"""The benchmark's results as Markdown, JSON, CSV and a plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from account import GROUPS
from measure import Measured

_BRIGHT = ("#bbbbbb", "#4477aa", "#66ccee", "#228833", "#ee6677", "#ccbb44", "#aa3377")
COLOURS = dict(zip(GROUPS, _BRIGHT, strict=True))
"""Distinguishable by colour-blind readers (Paul Tol's bright scheme)."""


@dataclass(frozen=True)
class Setting:
    """Conditions shared by all rows."""

    scan: str
    """Name, shape, spacing and size of the scan."""
    machine: str
    device: str
    threads: int
    spacing_mm: float
    date: str


def write_results(setting: Setting, rows: Sequence[Measured], out: Path) -> None:
    """Write ``table.md``, ``results.json``, ``steps.csv`` and ``plot.png`` to ``out``."""
    (out / "table.md").write_text(markdown(setting, rows), encoding="utf-8")
    everything = {"setting": asdict(setting), "rows": [asdict(row) for row in rows]}
    (out / "results.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")
    _write_steps(rows, out / "steps.csv")
    draw(rows, out / "plot.png")


def _write_steps(rows: Sequence[Measured], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("row", "step", "group", "seconds", "peak_ram_mb"))
        for row in rows:
            for step in row.steps:
                peak = "" if step.peak_ram_mb is None else f"{step.peak_ram_mb:.0f}"
                writer.writerow((row.name, step.name, step.group, f"{step.seconds:.3f}", peak))


def markdown(setting: Setting, rows: Sequence[Measured]) -> str:
    lines = [
        f"{setting.date}; {setting.machine}; {setting.device}, {setting.threads} threads; {setting.scan}. "
        f"nnU-Net and MONAI at {setting.spacing_mm:g} mm, windows overlapping by half, no mirroring.",
        "",
        f"| | {' | '.join(GROUPS)} | outside network | total | against ZoomSeg | peak RAM | peak VRAM "
        "| tiles | classes | FLOPs per voxel |",
        "|---|" + "---:|" * (len(GROUPS) + 8),
        *(_overview(row, rows) for row in rows),
        "",
        "Seconds. `start`: imports, weights and what no step claims; `prepare`: from the scan's voxels to",
        "the network's; `merge`: from its answer to the label map; `other`: these two, where they take turns",
        "tile by tile; `outside network`: all but `network` and `start`. Memory is of the process tree.",
        "",
        "| | step | part of | seconds | peak RAM |",
        "|---|---|---|---:|---:|",
    ]
    for row in rows:
        lines += (
            f"| {row.title} | {s.name} | {s.group} | {s.seconds:.2f} | {_memory(s.peak_ram_mb)} |"
            for s in row.steps
        )
    return "\n".join(lines) + "\n"


def _overview(row: Measured, rows: Sequence[Measured]) -> str:
    label = f"{row.title} ({', '.join(filter(None, (row.program, row.network)))})"
    vram = _memory(row.peak_vram_mb) if row.peak_vram_mb else ""
    end = f"{_memory(row.peak_ram_mb)} | {vram} | {row.tiles} | {row.classes} | {row.flops_per_voxel:,.0f} |"
    if row.failure is not None:
        reason = row.failure.replace("|", "/")
        return f"| {label} |{' |' * (len(GROUPS) + 1)} {reason}, after {row.seconds:.0f} s | | {end}"
    groups = [row.group_seconds(group) for group in GROUPS]
    outside = sum(groups) - row.group_seconds("network") - row.group_seconds("start")
    cells = " | ".join(f"{value:.1f}" for value in (*groups, outside, row.seconds))
    return f"| {label} | {cells} | {_ratio(row, rows)} | {end}"


def _ratio(row: Measured, rows: Sequence[Measured]) -> str:
    ours = next((r for r in rows if r.name == "zoomseg" and r.failure is None), None)
    return "" if ours is None else f"{row.seconds / ours.seconds:.1f} x"


def _memory(mb: float | None) -> str:
    return "" if mb is None else f"{mb / 1024:.2f} GB"


def draw(rows: Sequence[Measured], path: Path) -> None:
    """Plot seconds per group as stacked bars, with the peak memory next to them; failed rows are marked."""
    # Imported late: the process that starts the rows must be small (see watch).
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.7 * len(rows)), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = list(range(len(rows)))
    left = [0.0] * len(rows)
    for group in GROUPS:
        seconds = [row.group_seconds(group) for row in rows]
        time.barh(places, seconds, left=left, color=COLOURS[group], label=group)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    longest = max(left)
    for place, row, end in zip(places, rows, left, strict=True):
        text = f"{row.seconds:.1f} s" if row.failure is None else row.failure[:60]
        time.text(end + 0.01 * longest, place, text, va="center")
    time.set(yticks=places, yticklabels=[row.title for row in rows], xlabel="seconds")
    time.set_xlim(0, max(1.15 * longest, 1e-3))
    time.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(GROUPS), frameon=False)
    peaks = [row.peak_ram_mb / 1024 for row in rows]
    memory.bar_label(memory.barh(places, peaks, color="#777777"), fmt=" %.1f GB")
    memory.set(xlabel="peak memory (GB)", xlim=(0, 1.2 * max(peaks)))
    figure.savefig(path, dpi=150)
