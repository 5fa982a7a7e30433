"""A training run on the terminal: one screen that is updated, or plain lines if output is not a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zoomseg.training.log import Row

PLAIN_EVERY_SECONDS = 30.0
"""Pause between lines where output is not a terminal."""


class TrainingDisplay:
    """Implements ``training.log.Observer``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._rows: dict[tuple[str, str], Row] = {}
        self._remaining: float | None = None
        self._last_line = 0.0

    def __enter__(self) -> TrainingDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def preparing(self, stage: str, done: int, total: int) -> None:
        text = f"Preparing {done} of {total} cases for stage '{stage}'"
        if self._console.is_terminal:
            self._live.update(Group(Text(text), ProgressBar(total=total, completed=done, width=50)))
        elif done == total:
            self._console.print(text, highlight=False)

    def row(self, row: Row, remaining_seconds: float | None) -> None:
        self._rows[(row.stage, row.split)] = row
        self._remaining = remaining_seconds
        if self._console.is_terminal:
            self._live.update(self._screen(row))
        elif row.split == "validation" or time.monotonic() - self._last_line > PLAIN_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(
                f"step {row.step}  {row.stage} {row.split}  loss {row.loss:.3f}  Dice {row.dice:.3f}  "
                f"{_clock(remaining_seconds)} left",
                highlight=False,
            )

    def message(self, text: str) -> None:
        self._console.print(Text(text, style="yellow"))

    def _screen(self, newest: Row) -> Group:
        head = Text(
            f"step {newest.step}   learning rate {newest.learning_rate:.2g}   "
            f"{_clock(newest.seconds)} done   {_clock(self._remaining)} left"
        )
        bar = ProgressBar(total=1.0, completed=newest.progress, width=60)
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for stage, split in self._rows:
            table.add_column(f"{stage}\n{split}", justify="right")
        rows = list(self._rows.values())
        table.add_row("loss", *(f"{r.loss:.3f}" for r in rows))
        table.add_row("mean Dice", *(f"{r.dice:.3f}" for r in rows), style="bold")
        for name in dict.fromkeys(n for r in rows for n in r.label_dice):
            dice = (f"{r.label_dice[name]:.3f}" if name in r.label_dice else "" for r in rows)
            table.add_row(Text(name), *dice)  # Text: brackets in a label's name are no markup
        return Group(head, bar, table)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
