"""``zoomseg gather``: the results of parts in one summary; missing ones are reported."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.cli.main import main
from zoomseg.io import bundle
from zoomseg.io.scans import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle.save(untrained_bundle(), tmp_path / "model")
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("abc"):
        write_image(tmp_path / "in" / f"{name}.nii.gz", tiny_case(seed)[0])
    return tmp_path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def predict(folder: Path, *more: str) -> int:
    return run("predict", folder / "in", "-o", folder / "out", "-m", folder / "model", *more)


@pytest.mark.slow
def test_parts_are_gathered(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    assert predict(folder, "--part", "1/2") == 0
    said = capfd.readouterr().out.splitlines()
    assert said == [f"2 of 2 scans written to {out}", f"once all parts are done: zoomseg gather {out}"]
    assert not (out / "summary.csv").exists()
    assert run("gather", out) == 1
    said_by_gather = capfd.readouterr()
    assert said_by_gather.out.splitlines()[0] == f"2 scans in {out}, 0 failed, 1 missing"
    assert "--resume processes the missing scans" in said_by_gather.err
    assert predict(folder, "--resume") == 0
    whole = capfd.readouterr()
    assert whole.out.splitlines()[0] == f"3 of 3 scans written to {out}, 2 of them by earlier runs"
    assert "2 scans skipped, as their results are complete" in whole.err
    (out / "summary.csv").unlink()
    assert run("gather", out) == 0
    with (out / "summary.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == [case for case in "abc" for _ in range(2)]


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "1/0", "a/b", "-1/2"])
def test_a_part_that_cannot_be(folder: Path, capfd: pytest.CaptureFixture[str], part: str) -> None:
    assert predict(folder, "--part", part) == 2
    assert "expected a part such as 3/8" in capfd.readouterr().err


def test_a_folder_without_a_journal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("gather", tmp_path) == 2
    assert "there is nothing to gather" in capfd.readouterr().err
