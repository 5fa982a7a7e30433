"""The training benchmark: the format of its table, and the conditions under which rows can be compared.

Its rows train for minutes, and nnU-Net's need a separate environment: they are not run here.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "train"
sys.path.insert(0, str(BENCHMARK))


import results  # noqa: E402
import sides  # noqa: E402
import utilisation  # noqa: E402

SETTING = results.Setting("tiny", 3, ("case_3",), 1.5, "a machine", "cpu", 1, "run.py tiny --only zoomseg")
FAILED = sides.failed("nnunet", "nnU-Net", "ended by signal 9")


def test_columns_are_rows_with_their_dice(tmp_path: Path) -> None:
    ours, theirs = (
        replace(FAILED, name=name, title=name, failure=None, dice=dict(dice), mean_dice=mean, steps=2500)
        for name, dice, mean in (
            ("zoomseg", {"liver": 0.95, "spleen": 0.9}, 0.925),
            ("nnunet", {"liver": 0.5, "spleen": None}, 0.5),
        )
    )
    results.write_results(SETTING, [ours, theirs], tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert "tiny: 3 cases to train, 1 kept back (case_3). 1.5 minutes each" in lines[2]
    assert {"| liver | 0.950 | 0.500 |", "| spleen | 0.900 |  |", "| **mean** | **0.925** | **0.500** |"} <= {
        *lines
    }
    assert "| optimiser steps | 2,500 | 2,500 |" in lines
    assert results.read_results(tmp_path) == (SETTING, [ours, theirs])


def test_a_row_that_failed_has_no_column_but_its_reason() -> None:
    text = results.markdown(SETTING, [FAILED])
    assert "- **nnU-Net**" in text
    assert "came to no result: ended by signal 9." in text
    assert "| **mean** |  |" in text


def test_rows_come_together_only_under_the_same_conditions(tmp_path: Path) -> None:
    results.write_results(SETTING, [FAILED], tmp_path)
    assert results.read_results(tmp_path) == (SETTING, [FAILED])
    assert SETTING.agrees(replace(SETTING, command="run.py tiny --only nnunet"))
    assert not SETTING.agrees(replace(SETTING, minutes=2))
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="not results of this benchmark"):
        results.read_results(tmp_path)


def test_a_plan_asks_for_what_it_names_and_says_so() -> None:
    asked = sides.Plan(1.0, 2)
    assert asked.arguments == ["--memory", "1.0", "--batch", "2"]
    assert asked.title == "nnU-Net, 1 GB plan, batch 2"
    assert asked.note == "planned for 1 GB, a batch of 2 asked for"
    own = sides.Plan()
    assert (own.arguments, own.title, own.note) == ([], "nnU-Net", "planned for its default")


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (4, 3), (64, sides.MAX_WORKERS)])
def test_nnunet_gets_a_worker_for_every_core_but_that_of_the_training(threads: int, workers: int) -> None:
    assert sides.data_workers(threads) == workers


def test_a_gpu_is_watched_from_its_first_steps_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for nvidia-smi and for a training of a second before its first step and one after it."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '87, 1234, NVIDIA H200'\necho '3, 5, NVIDIA H200'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(utilisation, "PERIOD_SECONDS", 0.1)
    log = tmp_path / "metrics.csv"
    training = f"sleep 1; printf 'group,step\\n0,1\\n' > {log}; sleep 1"
    samples = utilisation.watched(["sh", "-c", training], log)
    assert set(samples) == {utilisation.Sample(87.0, 1234.0, "NVIDIA H200")}
    assert 2 <= len(samples) <= 11


def test_utilisation_is_told_by_mean_and_lowest_tenth() -> None:
    samples = [utilisation.Sample(percent, 100.0 * percent, "a GPU") for percent in (50.0, *[90.0] * 19)]
    lines = utilisation.table(samples, {"steps": 1500, "plan": "fine: a network"}, 5.0).splitlines()
    assert {"| GPU | a GPU |", "| steps | 1,500 |", "| utilisation, mean of samples | 88 % |"} <= {*lines}
    assert "| utilisation, lowest tenth | 90 % |" in lines
    assert "| memory, MiB | 9,000 |" in lines


def test_a_training_that_fails_ends_the_watching(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        utilisation.watched(["sh", "-c", "exit 3"], tmp_path / "metrics.csv")
    assert ended.value.code == 3
