"""Output of a training run: rows for CSV and TensorBoard, and an observer for live displays."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from zoomseg.io.files import atomic_path, writing

_FIXED = ("group", "step", "seconds", "progress", "learning_rate", "split", "stage", "loss", "dice")


@dataclass(frozen=True)
class LogRow:
    """One stage's loss and Dice on patches. ``split`` is ``train`` (running) or ``validation``."""

    group: int
    step: int
    seconds: float
    progress: float
    learning_rate: float
    split: str
    stage: str
    loss: float
    label_dice: Mapping[str, float]
    """Only labels present in the patches."""

    @property
    def dice(self) -> float:
        values = list(self.label_dice.values())
        return sum(values) / len(values) if values else math.nan


class TrainingObserver(Protocol):
    """Observer of a run: a terminal, a notebook, a test."""

    def preparing(self, stage: str, done: int, total: int) -> None: ...

    def row(self, row: LogRow, remaining_seconds: float | None) -> None: ...

    def message(self, text: str) -> None: ...


class NullObserver:
    """An observer that does nothing."""

    def preparing(self, stage: str, done: int, total: int) -> None:
        return

    def row(self, row: LogRow, remaining_seconds: float | None) -> None:
        return

    def message(self, text: str) -> None:
        return


class Log:
    """``metrics.csv`` and TensorBoard events in a folder. A resumed run drops the rows after its checkpoint,
    as those steps are repeated."""

    def __init__(self, folder: Path, labels: Sequence[str], resume_at: tuple[int, int] | None) -> None:
        self.path = folder / "metrics.csv"
        self._labels = tuple(labels)
        kept = self._kept_rows(resume_at) if resume_at is not None else []
        # Replaced as a whole, then appended to: a kill in between loses no earlier row.
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*_FIXED, *(f"dice {name}" for name in self._labels)])
            table.writerows(kept)
        board = folder / "tensorboard"
        with writing(self.path):
            self._file = self.path.open("a", newline="", encoding="utf-8")
        with writing(board):
            board.mkdir(exist_ok=True)
            # Not SummaryWriter: its thread dies if the disk is full, and then blocks all further writes.
            self._board = EventsWriter(str(board / "events"))
        self._csv = csv.writer(self._file, lineterminator="\n")

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self.path):
            self._file.close()
            self._board.close()

    def _kept_rows(self, resume_at: tuple[int, int] | None) -> list[list[str]]:
        if not self.path.is_file() or resume_at is None:
            return []
        width = len(_FIXED) + len(self._labels)
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [r for r in csv.reader(file) if len(r) == width and r[0].isdigit() and r[1].isdigit()]
        return [r for r in rows if (int(r[0]), int(r[1])) <= resume_at]

    def write(self, row: LogRow) -> None:
        """Append a row to both.

        Raises:
            OutputError: full disk.
        """
        values = [
            row.group,
            row.step,
            f"{row.seconds:.2f}",
            f"{row.progress:.5f}",
            f"{row.learning_rate:.6g}",
            row.split,
            row.stage,
            f"{row.loss:.6f}",
            f"{row.dice:.4f}",
        ]
        dice = [f"{row.label_dice[n]:.4f}" if n in row.label_dice else "" for n in self._labels]
        with writing(self.path):
            self._csv.writerow([*values, *dice])
            self._file.flush()
            for tag, value in _scalars(row).items():
                event = Event(wall_time=time.time(), step=row.step, summary=scalar(tag, value))
                self._board.write_event(event)
            self._board.flush()


def _scalars(row: LogRow) -> dict[str, float]:
    tag = f"{row.stage}/{row.split}"
    by_label = {f"{tag}/dice/{name}": value for name, value in row.label_dice.items()}
    mean = {f"{tag}/dice": row.dice} if row.label_dice else {}  # no label in the patches, no mean
    return {f"{tag}/loss": row.loss, "learning_rate": row.learning_rate, **mean, **by_label}


class RunningDice:
    """Hard Dice per class from overlaps and sizes summed over patches, with decreasing weight of older
    ones."""

    def __init__(self, classes: int, memory: float) -> None:
        self._overlap = [0.0] * classes
        self._size = [0.0] * classes
        self._memory = memory

    def add(self, overlap: Sequence[float], size: Sequence[float]) -> None:
        """``overlap[c]`` = voxels of class c in both; ``size[c]`` = voxels of c in each, summed."""
        for c in range(len(self._overlap)):
            self._overlap[c] = self._memory * self._overlap[c] + overlap[c]
            self._size[c] = self._memory * self._size[c] + size[c]

    def by_label(self, labels: Sequence[str]) -> dict[str, float]:
        return {
            name: 2 * self._overlap[c] / self._size[c]
            for c, name in enumerate(labels, start=1)
            if self._size[c] > 0
        }
