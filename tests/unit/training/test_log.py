from __future__ import annotations

import csv
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from zoomseg.core.errors import OutputError
from zoomseg.training.log import Log, LogRow, RunningDice

LABELS = ("liver", "spleen")


def row(group: int, step: int, **dice: float) -> LogRow:
    return LogRow(group, step, 1.5 * step, step / 100, 1e-3, "train", "coarse", 0.5, dice)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_has_the_mean_and_every_label(tmp_path: Path) -> None:
    with Log(tmp_path, LABELS, None) as log:
        log.write(row(0, 10, liver=0.5, spleen=0.25))
        log.write(row(0, 20, spleen=0.75))
    first, second = rows_of(tmp_path)
    assert (first["step"], first["stage"], first["split"]) == ("10", "coarse", "train")
    assert float(first["dice"]) == pytest.approx(0.375)
    assert float(first["dice liver"]) == 0.5
    assert (second["dice liver"], float(second["dice spleen"])) == ("", 0.75)
    assert float(second["dice"]) == 0.75


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    with Log(tmp_path, LABELS, None) as log:
        log.write(row(0, 10, liver=0.5))
        assert len(rows_of(tmp_path)) == 1


def test_a_row_without_labels_has_no_mean() -> None:
    assert math.isnan(row(0, 1).dice)


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    for step in (10, 20):
        with Log(tmp_path, LABELS, None) as log:
            log.write(row(0, step, liver=0.5))
    assert [r["step"] for r in rows_of(tmp_path)] == ["20"]


def test_a_resumed_run_drops_rows_that_will_be_written_again(tmp_path: Path) -> None:
    with Log(tmp_path, LABELS, None) as log:
        for group, step in [(0, 10), (0, 90), (1, 10), (1, 20), (1, 30)]:
            log.write(row(group, step, liver=0.5))
    with Log(tmp_path, LABELS, (1, 20)) as log:
        log.write(row(1, 30, liver=0.9))
    kept = [(r["group"], r["step"], float(r["dice"])) for r in rows_of(tmp_path)]
    assert kept == [("0", "10", 0.5), ("0", "90", 0.5), ("1", "10", 0.5), ("1", "20", 0.5), ("1", "30", 0.9)]


def test_a_half_written_last_row_is_dropped(tmp_path: Path) -> None:
    with Log(tmp_path, LABELS, None) as log:
        log.write(row(0, 10, liver=0.5))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "0,20,30.0", encoding="utf-8")
    with Log(tmp_path, LABELS, (0, 50)):
        pass
    assert [r["step"] for r in rows_of(tmp_path)] == ["10"]


def test_tensorboard_gets_loss_and_dice(tmp_path: Path) -> None:
    with Log(tmp_path, LABELS, None) as log:
        log.write(row(0, 10, liver=0.5))
    (events,) = (tmp_path / "tensorboard").iterdir()
    content, at, scalars = events.read_bytes(), 0, {}
    while at < len(content):  # length (8 bytes), its checksum (4), the event, its checksum (4)
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + size])
        scalars |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        at += 16 + size
    assert scalars["coarse/train/loss"] == (10, 0.5)
    assert scalars["coarse/train/dice/liver"] == (10, 0.5)
    assert scalars["learning_rate"][1] == pytest.approx(1e-3)


@pytest.mark.parametrize("place", ["table", "events"])
def test_a_full_disk_is_one_error_at_the_next_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """This includes TensorBoard's events, which must not remain in a queue that is no longer emptied."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Log(tmp_path, LABELS, None) as log:
        target = log._csv if place == "table" else log._board
        monkeypatch.setattr(log, "_csv" if place == "table" else "_board", Broken(target, full))
        for _ in range(20):
            with pytest.raises(OutputError, match=r"metrics\.csv: cannot be written \(No space left"):
                log.write(row(0, 10, liver=0.5))


class Broken:
    """A writer whose writing fails."""

    def __init__(self, writer: object, fail: Callable[..., None]) -> None:
        self._writer = writer
        self.writerow = self.write_event = fail

    def __getattr__(self, name: str) -> object:
        return getattr(self._writer, name)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(OutputError, match="tensorboard: cannot be written"):
        Log(tmp_path, LABELS, None)


def test_bytes_that_are_no_text_in_an_old_table_are_dropped(tmp_path: Path) -> None:
    with Log(tmp_path, LABELS, None) as log:
        log.write(row(0, 10, liver=0.5))
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"\xff\xfe\x00\x00")
    with Log(tmp_path, LABELS, (0, 50)):
        pass
    assert [r["step"] for r in rows_of(tmp_path)] == ["10"]


class TestRunningDice:
    def test_is_the_dice_of_all_patches_together(self) -> None:
        dice = RunningDice(3, memory=1.0)
        dice.add([0, 3, 0], [0, 8, 0])
        dice.add([0, 1, 0], [0, 2, 4])
        assert dice.by_label(LABELS) == {"liver": pytest.approx(2 * 4 / 10), "spleen": 0}

    def test_labels_not_seen_are_left_out(self) -> None:
        dice = RunningDice(3, memory=1.0)
        dice.add([9, 1, 0], [20, 2, 0])
        assert dice.by_label(LABELS) == {"liver": 1.0}

    def test_older_patches_fade(self) -> None:
        dice = RunningDice(2, memory=0.5)
        dice.add([0, 0], [0, 4])
        dice.add([0, 2], [0, 4])
        assert dice.by_label(("liver",)) == {"liver": pytest.approx(2 * 2 / (0.5 * 4 + 4))}
