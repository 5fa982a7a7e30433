"""Display of a batch of predictions: progress bars, or plain lines if output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.markup import escape
from rich.progress import MofNCompleteColumn, ProgressColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from zoomseg.core.errors import quoted
from zoomseg.core.memory import format_bytes
from zoomseg.inference.batch import Failed, Segmented
from zoomseg.pipeline.sliding_window import TileProgress

PLAIN_INTERVAL_SECONDS = 10.0
"""Interval between lines within a stage if output is not a terminal."""

SHOWN = 1000
"""Maximum number of characters of a line; names in it come from files."""


class ScanDisplay:
    """A line for every scan, and a bar that counts them, wherever they are predicted."""

    def __init__(self, console: Console, scans: int, *columns: ProgressColumn) -> None:
        """
        Args:
            columns: of the bar, between the count and the time left.
        """
        shown = (*Bars.get_default_columns()[:2], MofNCompleteColumn(), *columns, TimeRemainingColumn())
        self._console = console
        self._bars = Bars(*shown, console=console, transient=True, disable=not console.is_terminal)
        self._scans = self._bars.add_task("Predicting", total=scans)
        self._last_line = time.monotonic()
        self.finished = 0
        """Number of processed scans."""
        self.left_out = 0
        """Number of scans that were complete before."""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def warn(self, message: str) -> None:
        """Something is omitted, but the scan is segmented."""
        self._line(Text(quoted(message, SHOWN), style="yellow"))

    def leave_out(self, cases: Sequence[str]) -> None:
        """The results of these scans already exist."""
        self.left_out += len(cases)
        self.finished += len(cases)
        self._bars.advance(self._scans, len(cases))
        if cases:
            self._line(Text(f"{len(cases)} scans skipped, as their results are complete"))

    def _fail(self, case: str, reason: str) -> None:
        why = quoted(f"{case}: {reason}", SHOWN)
        self._show_finished(case, Text.assemble(("failed:", "red"), f" {why}"))

    def _show_finished(self, case: str, line: Text | Group, notes: Iterable[str] = ()) -> None:
        self._line(line)
        for note in notes:
            self.warn(f"{case}: {note}")
        self.finished += 1
        self._bars.advance(self._scans)

    def _line(self, what: Text | Group) -> None:
        self._console.print(what, highlight=False, soft_wrap=True)


def done_line(case: str, seconds: float) -> Text:
    """The line for a segmented scan."""
    return Text(f"{quoted(case)}  {seconds:.1f} s")


class PredictionDisplay(ScanDisplay):
    """Display of scans that this process predicts; ``verbose``: also the tiles of the current scan, followed
    by a table of its resource usage. ``show_progress`` and ``show_result`` may be called from different
    threads."""

    def __init__(self, console: Console, scans: int, verbose: bool) -> None:
        super().__init__(console, scans)
        self._verbose = verbose
        self._tiles = self._bars.add_task("", total=None, visible=False)
        self._stage = ("", "")

    def show_progress(self, case: str, progress: TileProgress) -> None:
        """The number of finished tiles of a stage."""
        if self._verbose:
            self._show(case, progress, "tiles")

    def register(self, case: str, done: int, total: int) -> None:
        """Progress of a scan's atlases; always shown, as they take minutes."""
        self._show(case, TileProgress("registering atlases", done, total), "steps")

    def _show(self, case: str, progress: TileProgress, unit: str) -> None:
        if self._console.is_terminal:
            self._move(case, progress)
        elif progress.done == progress.tiles or time.monotonic() - self._last_line > PLAIN_INTERVAL_SECONDS:
            self._last_line = time.monotonic()
            name = quoted(case)
            self._line(Text(f"{name}  {progress.stage}  {progress.done} of {progress.tiles} {unit}"))

    def _move(self, case: str, progress: TileProgress) -> None:
        if self._stage != (case, progress.stage):
            self._stage = (case, progress.stage)
            title = escape(f"{quoted(case)}  {progress.stage}")
            self._bars.reset(self._tiles, description=title, total=progress.tiles, visible=True)
        self._bars.update(self._tiles, completed=progress.done, visible=progress.done < progress.tiles)

    def show_result(self, outcome: Segmented | Failed) -> None:
        """A scan was processed."""
        if isinstance(outcome, Failed):
            self._fail(outcome.case, outcome.reason)
            return
        line = done_line(outcome.case, outcome.seconds["total"])
        shown = Group(line, *costs(outcome)) if self._verbose else line
        self._show_finished(outcome.case, shown, outcome.result.notes)


def costs(done: Segmented) -> tuple[Table, Text]:
    """Time and memory of a scan, by step."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("step")
    for title in ("seconds", "in networks", "tiles", "skipped", "GFLOPs"):
        table.add_column(title, justify="right")
    records = {record.stage: record for record in done.result.records}
    for step, seconds in done.seconds.items():
        found = records.values() if step == "total" else [r for r in (records.get(step),) if r is not None]
        cells = (
            f"{sum(r.network_seconds for r in found):.2f}",
            f"{sum(r.tiles for r in found)}",
            f"{sum(r.tiles_skipped for r in found)}",
            f"{sum(r.flops for r in found) / 1e9:,.1f}",
        )
        # Text: brackets in a stage's name are not markup.
        table.add_row(Text(step), f"{seconds:.2f}", *(cells if found else ()))
    usage = done.usage
    memory = f"peak RAM {format_bytes(usage.peak_ram_mb * 2**20)}"
    if usage.peak_vram_mb:
        memory += f", VRAM {format_bytes(usage.peak_vram_mb * 2**20)} ({usage.vram_area_mb_s:,.0f} MB x s)"
    return table, Text(memory)
