"""A training run on the terminal: one screen that is updated, or plain lines if output is not a terminal."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zoomseg.training.log import LogRow

PLAIN_INTERVAL_SECONDS = 30.0
"""Interval between lines if output is not a terminal."""


class TrainingDisplay:
    """Implements ``training.log.Observer``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._preparing: Group | None = None
        self._rows: dict[tuple[str, str], LogRow] = {}
        self._newest: LogRow | None = None
        self._remaining: float | None = None
        self._last_shown = 0.0
        """Time of the newest row."""
        self._finished = False
        self._last_line = 0.0
        self._last_prepared = math.inf
        # Last, as it immediately asks what to show.
        self._live = Live(console=console, get_renderable=self._shown, refresh_per_second=4)

    def __enter__(self) -> TrainingDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished = kind is None
        self._live.stop()

    def preparing(self, stage: str, done: int, total: int) -> None:
        text = f"Preparing {done} of {total} cases for stage '{stage}'"
        if self._console.is_terminal:
            self._preparing = Group(Text(text), ProgressBar(total=total, completed=done, width=50))
            self._live.refresh()
        elif done == total or time.monotonic() - self._last_prepared > PLAIN_INTERVAL_SECONDS:
            self._last_prepared = time.monotonic()
            self._console.print(text, highlight=False)
        elif done == 0:
            self._last_prepared = time.monotonic()

    def row(self, row: LogRow, remaining_seconds: float | None) -> None:
        self._rows[(row.stage, row.split)] = row
        self._newest, self._remaining = row, remaining_seconds
        if self._console.is_terminal:
            self._preparing, self._last_shown = None, time.monotonic()
            self._live.refresh()
        elif row.split == "validation" or time.monotonic() - self._last_line > PLAIN_INTERVAL_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(
                f"step {row.step}  {row.stage} {row.split}  loss {row.loss:.3f}  Dice {row.dice:.3f}  "
                f"{_clock(remaining_seconds)} left in this stage",
                highlight=False,
            )

    def message(self, text: str) -> None:
        self._console.print(Text(text, style="yellow"))

    def _shown(self) -> Group:
        """The current content of the screen: clocks continue between rows."""
        if self._preparing is not None:
            return self._preparing
        return Group() if self._newest is None else self._screen(self._newest)

    def _screen(self, newest: LogRow) -> Group:
        since = 0.0 if self._finished else time.monotonic() - self._last_shown
        head = Text(
            f"step {newest.step}   learning rate {newest.learning_rate:.2g}   "
            f"{_clock(newest.seconds + since)} done   {self._left(since)}"
        )
        bar = ProgressBar(total=1.0, completed=1.0 if self._finished else newest.progress, width=60)
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        rows = self._in_order()
        for row in rows:
            table.add_column(f"{row.stage}\n{row.split}", justify="right")
        table.add_row("loss", *(f"{r.loss:.3f}" for r in rows))
        table.add_row("mean Dice", *(f"{r.dice:.3f}" for r in rows), style="bold")
        for name in dict.fromkeys(n for r in rows for n in r.label_dice):
            dice = (f"{r.label_dice[name]:.3f}" if name in r.label_dice else "" for r in rows)
            table.add_row(Text(name), *dice)  # Text: brackets in a label's name are not markup
        return Group(head, bar, table)

    def _left(self, since: float) -> str:
        if self._finished:
            return "finished"
        if self._remaining is not None and since > self._remaining:
            return "the model is being written"
        return f"{_clock(None if self._remaining is None else self._remaining - since)} left in this stage"

    def _in_order(self) -> list[LogRow]:
        """By stage, training before validation, regardless of their order: a resumed training may begin with
        its validation."""
        stages = list(dict.fromkeys(stage for stage, _ in self._rows))
        return sorted(
            self._rows.values(), key=lambda row: (stages.index(row.stage), row.split == "validation")
        )


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
