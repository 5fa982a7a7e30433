from __future__ import annotations

import io

import pytest
from rich.console import Console

from zoomseg.cli import training_display
from zoomseg.cli.training_display import TrainingDisplay
from zoomseg.training.log import LogRow


def row(step: int = 120, split: str = "train", **dice: float) -> LogRow:
    return LogRow(0, step, 75.0, 0.25, 1e-3, split, "coarse", 0.4321, dice)


def shown(terminal: bool, *acts: tuple) -> str:
    """The output after calls ``(method, arguments ...)``."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with TrainingDisplay(console) as display:
        for method, *arguments in acts:
            getattr(display, method)(*arguments)
    return out.getvalue()


def test_a_terminal_shows_loss_dice_by_label_and_time_left() -> None:
    text = shown(True, ("row", row(liver=0.5, spleen=0.25), 3725.0))
    for part in ("step 120", "0.432", "liver", "0.500", "spleen", "0.250", "1:15 done", "1:02:0"):
        assert part in text


def test_training_and_validation_stand_side_by_side() -> None:
    text = shown(True, ("row", row(liver=0.5), None), ("row", row(split="validation", liver=0.75), None))
    (line,) = {line for line in text.splitlines() if line.startswith("liver") and "0.750" in line}
    assert line.split() == ["liver", "0.500", "0.750"]


def test_names_with_brackets_are_shown_as_they_are() -> None:
    text = shown(True, ("row", row(**{"vessel [/]": 0.5, "[red]node": 0.25}), None))
    assert "vessel [/]" in text
    assert "[red]node" in text


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 110.0, 131.0, 131.0])
    monkeypatch.setattr(training_display.time, "monotonic", lambda: next(clock))
    text = shown(False, *(("row", row(step, liver=0.5), 60.0) for step in (10, 20, 30)))
    assert [line.split()[1] for line in text.splitlines()] == ["10", "30"]
    assert "loss 0.432  Dice 0.500  1:00 left in this stage" in text


def test_validation_always_gets_a_line() -> None:
    text = shown(False, *(("row", row(n, "validation", liver=0.5), None) for n in (1, 2, 3)))
    assert len(text.splitlines()) == 3
    assert "? left" in text


def test_preparing_counts_cases() -> None:
    acts = [("preparing", "coarse", n, 3) for n in (1, 2, 3)]
    assert shown(False, *acts) == "Preparing 3 of 3 cases for stage 'coarse'\n"
    assert "Preparing 3 of 3 cases" in shown(True, *acts)


def test_a_long_preparation_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(training_display.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    display = TrainingDisplay(Console(file=out, force_terminal=False, width=100))
    for done in range(6):
        display.preparing("fine", done, 5)
        now[0] += 16
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["2", "4", "5"]


def test_messages_are_shown_as_they_are() -> None:
    assert "case [7] has NaN" in shown(False, ("message", "case [7] has NaN"))


def test_training_stands_before_validation_whichever_was_told_first() -> None:
    """As in a training resumed right after its validation."""
    text = shown(True, ("row", row(split="validation", liver=0.75), None), ("row", row(liver=0.5), None))
    assert [line.split() for line in text.splitlines() if line.startswith("liver")][-1] == [
        "liver", "0.500", "0.750",
    ]  # fmt: skip


def test_clocks_go_on_between_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """During the last steps, and while the model is written after them."""
    now = [100.0]
    monkeypatch.setattr(training_display.time, "monotonic", lambda: now[0])
    display = TrainingDisplay(Console(file=io.StringIO(), force_terminal=True, width=100))
    display.row(row(liver=0.5), 10.0)

    def head() -> str:
        return display._screen(row(liver=0.5)).renderables[0].plain

    assert head().endswith("1:15 done   0:10 left in this stage")
    now[0] += 4
    assert head().endswith("1:19 done   0:06 left in this stage")
    now[0] += 10
    assert head().endswith("1:29 done   the model is being written")


def test_a_training_that_is_done_says_so_and_one_that_failed_does_not() -> None:
    text = shown(True, ("row", row(liver=0.5), 10.0))
    assert "1:15 done   finished" in text
    out = io.StringIO()
    with pytest.raises(KeyError):
        fail(TrainingDisplay(Console(file=out, force_terminal=True, width=100)))
    assert "finished" not in out.getvalue()


def fail(display: TrainingDisplay) -> None:
    with display:
        display.row(row(liver=0.5), 10.0)
        raise KeyError
