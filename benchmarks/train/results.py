"""The benchmark's results as JSON, Markdown and a plot, which combine the rows of several runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from sides import Row

FILE = "results.json"
MEAN = "mean"
COLOURS = ("#4477aa", "#ee6677", "#ccbb44")
"""Distinguishable by colour-blind readers (Paul Tol's bright scheme)."""


@dataclass(frozen=True)
class Setting:
    """Conditions shared by all rows."""

    data_set: str
    training: int
    """Number of training cases."""
    held_back: tuple[str, ...]
    minutes: float
    machine: str
    device: str
    threads: int
    command: str = ""

    def agrees(self, other: Setting) -> bool:
        """Whether rows of both can be combined in one table; the commands may differ, as they name rows."""
        return replace(self, command="") == replace(other, command="")


def write_results(setting: Setting, rows: Sequence[Row], out: Path) -> None:
    """Write ``results.json``, ``table.md`` and ``plot.png`` to ``out``."""
    everything = {"setting": asdict(setting), "rows": [asdict(row) for row in rows]}
    (out / FILE).write_text(json.dumps(everything, indent=1), encoding="utf-8")
    (out / "table.md").write_text(markdown(setting, rows), encoding="utf-8")
    draw(setting, rows, out / "plot.png")


def read_results(out: Path) -> tuple[Setting, list[Row]] | None:
    """The results of an earlier run; None if there are none.

    Raises:
        ValueError: the file was not written by this benchmark.
    """
    if not (out / FILE).exists():
        return None
    try:
        found = json.loads((out / FILE).read_text(encoding="utf-8"))
        setting = found["setting"] | {"held_back": tuple(found["setting"]["held_back"])}
        return Setting(**setting), [Row(**row) for row in found["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out / FILE}: not results of this benchmark; take another folder") from error


def organs_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The organs of the first row with scores; all rows are scored against the same labels."""
    return next((tuple(row.dice) for row in rows if row.dice), ())


def markdown(setting: Setting, rows: Sequence[Row]) -> str:
    columns = [row for row in rows if row.failure is None]
    lines = [
        f"    {setting.command}",
        "",
        f"{setting.data_set}: {setting.training} cases to train, {len(setting.held_back)} kept back "
        f"({', '.join(setting.held_back)}). {setting.minutes:g} minutes each, planning and preprocessing "
        f"included. {setting.machine}; {setting.device}, {setting.threads} threads.",
        "",
        f"| Dice | {' | '.join(row.title for row in columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    lines += [
        *(_line(organ, columns, partial(_dice_of, organ)) for organ in organs_of(columns)),
        _line("**mean**", columns, lambda row: f"**{_dice(row.mean_dice)}**"),
        _line("minutes to the trained network", columns, lambda row: _number(row.minutes, 1)),
        _line("optimiser steps", columns, lambda row: _number(row.steps)),
        _line("parameters", columns, lambda row: _number(row.parameters)),
        _line("seconds a scan (median)", columns, lambda row: _number(row.scan_seconds, 1)),
        _line("peak memory, GB", columns, lambda row: _number(_gb(row.peak_ram_mb), 2)),
        "",
        *(f"- {_about(row)}" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    return f"| {name} | {' | '.join(cell(row) for row in rows)} |"


def _about(row: Row) -> str:
    if row.failure is not None:
        return f"**{row.title}** ({row.date}) came to no result: {row.failure}."
    notes = f"; {row.notes}" if row.notes else ""
    return f"**{row.title}** ({row.date}): {row.program}, on {row.device}; {row.plan}{notes}."


def _dice_of(organ: str, row: Row) -> str:
    return _dice((row.dice or {}).get(organ))


def _dice(value: float | None) -> str:
    return _number(value, 3)


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _gb(mb: float | None) -> float | None:
    return None if mb is None else mb / 1024


def draw(setting: Setting, rows: Sequence[Row], path: Path) -> None:
    """Plot Dice as bars: a group for every organ, and one for the mean. Failed rows have no bars."""
    # Imported late: the process that starts the rows must be small (see watch).
    from matplotlib.figure import Figure

    columns = [row for row in rows if row.failure is None]
    groups = (*organs_of(columns), MEAN)
    figure = Figure(figsize=(3 + 0.6 * len(groups), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(columns))
    for n, (row, colour) in enumerate(zip(columns, COLOURS, strict=False)):
        values = {**(row.dice or {}), MEAN: row.mean_dice}
        heights = [values.get(group) or 0.0 for group in groups]
        places = [g + (n - (len(columns) - 1) / 2) * width for g in range(len(groups))]
        axes.bar(places, heights, width, color=colour, label=f"{row.title}: {_dice(row.mean_dice)}")
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    axes.set(ylim=(0, 1), ylabel="Dice", title=f"{setting.data_set}, {setting.minutes:g} minutes each")
    axes.spines[["top", "right"]].set_visible(False)
    if columns:
        figure.legend(loc="outside lower center", ncols=len(columns), frameon=False)
    figure.savefig(path, dpi=150)
