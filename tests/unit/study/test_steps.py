"""Steps are those of the log's last rows, once for stages trained together, and means are of whole folds."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoomseg.study.steps import mean_steps, read_steps, steps_note
from zoomseg.training.log import Log, LogRow


def logged(folder: Path, *rows: tuple[int, int, str, str]) -> Path:
    """A log of (group, step, split, stage), as a training writes it."""
    folder.mkdir()
    with Log(folder, ("liver",), None) as log:
        for group, step, split, stage in rows:
            log.write(LogRow(group, step, 1.0, 0.5, 1e-3, split, stage, 0.7, {"liver": 0.5}))
    return folder / "metrics.csv"


def test_units_count_once_and_to_their_last_row(tmp_path: Path) -> None:
    log = logged(
        tmp_path / "run",
        (0, 1, "train", "coarse"),
        (0, 11, "train", "coarse"),
        (0, 14, "validation", "coarse"),
        (1, 1, "train", "coarse-half-1"),
        (2, 1, "train", "low"),
        (2, 1, "train", "high"),
        (2, 9, "validation", "low"),
        (2, 9, "validation", "high"),
    )
    assert read_steps(log) == {"coarse": 14, "coarse-half-1": 1, "low + high": 9}


@pytest.mark.parametrize(
    "text", ["", "group,step\n0,1\n", "group,step,stage\n0,many,a\n", "group,step,stage\n0"]
)
def test_a_log_that_cannot_be_read_knows_no_steps(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    assert read_steps(tmp_path / "metrics.csv") == {}
    assert read_steps(tmp_path / "none.csv") == {}


def test_means_over_folds() -> None:
    assert mean_steps([{"a": 10, "b": 3}, {"a": 20, "b": 4}, {"a": 21, "b": 4}]) == {"a": 17, "b": 4}
    assert mean_steps([{"a": 10}, {}]) == {}
    assert mean_steps([]) == {}


def test_the_sentence() -> None:
    steps = {"coarse": 610, "fine-liver": 240}
    assert steps_note("plain", ["FCN", "2SN"], steps, 2) == (
        "Training 'plain' (rows FCN; 2SN): 850 optimiser steps (coarse 610, fine-liver 240), "
        "mean over 2 folds."
    )
    assert steps_note("stage1", [], {"stage1": 5}, 1) == "Training 'stage1': 5 optimiser steps (stage1 5)."
