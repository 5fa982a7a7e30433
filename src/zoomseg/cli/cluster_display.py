"""Predictions on a cluster on the terminal: scans, workers, pace and time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from zoomseg.core.errors import quoted

if TYPE_CHECKING:
    from zoomseg.cluster.worker import Reply

PLAIN_EVERY_SECONDS = 60.0
"""Pause between lines on workers and pace where output is not a terminal."""

SHOWN = 1000
"""Characters of a line; names in it come from files."""


class ClusterDisplay:
    """One line for every scan, and a bar that moves; it is told all by one thread."""

    def __init__(self, console: Console, scans: int) -> None:
        columns = (*Bars.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
        self._console = console
        self._bars = Bars(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._bars.add_task("Predicting", total=scans, pace="")
        self._scans = scans
        self._began = self._last_line = time.monotonic()
        self._computed = 0
        self._workers: int | None = None
        self.settled = 0
        """So many scans are done with."""

    def __enter__(self) -> ClusterDisplay:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def warn(self, message: str) -> None:
        """Something is left out."""
        self._line(Text(quoted(message, SHOWN), style="yellow"))

    def leave_out(self, cases: Sequence[str]) -> None:
        """Scans whose results are there already."""
        self.settled += len(cases)
        self._bars.advance(self._task, len(cases))
        if cases:
            self._line(Text(f"results of {len(cases)} scans are whole, and left as they are"))

    def settle(self, reply: Reply) -> None:
        """A scan is done with."""
        if reply.error is not None:
            self._line(Text.assemble(("failed:", "red"), f" {quoted(f'{reply.case}: {reply.error}', SHOWN)}"))
        else:
            self._line(Text(f"{quoted(reply.case)}  {reply.seconds:.1f} s"))
            for note in reply.notes:
                self.warn(f"{reply.case}: {note}")
        self.settled += 1
        self._computed += 1
        self._bars.advance(self._task)

    def count(self, workers: int) -> None:
        """So many workers there are now."""
        if self._workers is None or (workers == 0) != (self._workers == 0):
            self._line(Text("waiting for workers" if workers == 0 else f"{workers} workers"))
            self._last_line = time.monotonic()
        self._workers = workers
        pace = self._pace()
        self._bars.update(self._task, pace=pace)
        if not self._console.is_terminal and time.monotonic() - self._last_line > PLAIN_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._line(Text(f"{self.settled} of {self._scans} scans, {pace}{self._left()}"))

    def _pace(self) -> str:
        per_minute = 60 * self._per_second()
        return f"{self._workers} workers, {per_minute:.{0 if per_minute >= 10 else 1}f} scans/min"

    def _per_second(self) -> float:
        return self._computed / max(1e-9, time.monotonic() - self._began)

    def _left(self) -> str:
        if not self._computed:
            return ""
        minutes = (self._scans - self.settled) / self._per_second() / 60
        return f", {minutes:.0f} min left"

    def _line(self, what: Text) -> None:
        self._console.print(what, highlight=False, soft_wrap=True)
