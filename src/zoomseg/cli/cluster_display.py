"""Display of predictions on a cluster: scans, workers, rate and remaining time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import TextColumn
from rich.text import Text

from zoomseg.cli.prediction_display import ScanDisplay, done_line

if TYPE_CHECKING:
    from zoomseg.cluster.worker import Reply

PLAIN_INTERVAL_SECONDS = 60.0
"""Interval between lines on workers and rate if output is not a terminal."""


class ClusterDisplay(ScanDisplay):
    """Display of scans that workers predict; a single thread calls it."""

    def __init__(self, console: Console, scans: int) -> None:
        super().__init__(console, scans, TextColumn("{task.fields[pace]}"))
        self._bars.update(self._scans, pace="")
        self._total = scans
        self._began = time.monotonic()
        self._computed = 0
        self._workers: int | None = None

    def on_reply(self, reply: Reply) -> None:
        """A scan was processed."""
        self._computed += 1
        if reply.error is not None:
            self._fail(reply.case, reply.error)
        else:
            self._show_finished(reply.case, done_line(reply.case, reply.seconds), reply.notes)

    def count(self, workers: int) -> None:
        """The current number of workers."""
        if self._workers is None or (workers == 0) != (self._workers == 0):
            self._line(Text("waiting for workers" if workers == 0 else f"{workers} workers"))
            self._last_line = time.monotonic()
        self._workers = workers
        pace = self._pace()
        self._bars.update(self._scans, pace=pace)
        if not self._console.is_terminal and time.monotonic() - self._last_line > PLAIN_INTERVAL_SECONDS:
            self._last_line = time.monotonic()
            self._line(Text(f"{self.finished} of {self._total} scans, {pace}{self._left()}"))

    def _pace(self) -> str:
        per_minute = 60 * self._per_second()
        return f"{self._workers} workers, {per_minute:.{0 if per_minute >= 10 else 1}f} scans/min"

    def _per_second(self) -> float:
        return self._computed / max(1e-9, time.monotonic() - self._began)

    def _left(self) -> str:
        if not self._computed:
            return ""
        minutes = (self._total - self.finished) / self._per_second() / 60
        return f", {minutes:.0f} min left"
