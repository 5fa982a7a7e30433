"""``zoomseg ceiling``: table on the terminal, files, and every wrong use in one line."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_dataset, tiny_recipe
from zoomseg.cli.main import main
from zoomseg.core.case import Case
from zoomseg.evaluation import upper_bound
from zoomseg.planning import plan
from zoomseg.planning.training_length import TrainingLength
from zoomseg.recipe.load import dump


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("ceiling") / "data", 3).root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny_recipe(together=True)))
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["ceiling", *(str(a) for a in arguments)])
    return int(stop.value.code or 0)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "ceiling.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_table_and_files(data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The fine stage samples the scan's own voxels, in a region that contains both organs."""
    assert run(data, "-r", recipe, "-o", tmp_path / "out", "--cases", "2") == 0
    shown = capfd.readouterr()
    assert "candidate region" in shown.out
    assert f"Table: {tmp_path / 'out' / 'ceiling.md'}" in shown.out
    assert shown.err == ""
    found = rows(tmp_path / "out")
    assert [(r["case"], r["organ"]) for r in found] == [
        (case, organ) for case in ("case_0", "case_1") for organ in ("left kidney", "right kidney")
    ]
    assert {(r["stage"], r["place"], r["dice"]) for r in found} == {("fine", "candidate region", "1.0")}
    assert "# Ceiling of tiny on tiny" in (tmp_path / "out" / "ceiling.md").read_text()


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ((), None),
        (("--time-budget", "90s"), TrainingLength(None, 90.0)),
        (("--epochs", "3"), TrainingLength(300, None)),
    ],
)
def test_a_recipe_is_planned_for_the_training_that_is_meant(
    data: Path, given: tuple[str, ...], length: TrainingLength | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def noted(*arguments: object) -> object:
        asked.append(arguments[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "plan", noted)
    run(data, *given)
    assert asked == [length]


def test_without_a_folder_nothing_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The default recipe is planned as in training: one stage at the scans' own spacing."""
    monkeypatch.chdir(tmp_path)
    assert run(data, "--cases", "1") == 0
    out = capfd.readouterr().out
    assert [line.split()[-5:] for line in out.splitlines() if "kidney" in line] == [
        ["1", "1.000", "0.000", "0.000", "0.00%"]
    ] * 2
    assert "lost:" in out
    assert "box" not in out
    assert list(tmp_path.iterdir()) == []


def test_organs_without_a_stage_are_named(
    data: Path, recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Labels of a recipe that the data lack are dropped; those that only the data have are reported."""
    made = tiny_recipe(together=True)
    stages = [s.model_copy(update={"labels": ("kidney right", "liver")}) for s in made.stages]
    recipe.write_text(dump(made.model_copy(update={"stages": tuple(stages)})))
    assert run(data, "-r", recipe, "--cases", "1") == 0
    told = capfd.readouterr()
    assert "stage 'coarse': the data set has no liver; dropped" in told.err
    assert "no stage predicts left kidney\n" in told.err
    assert [line.split()[0] for line in told.out.splitlines() if "kidney" in line] == ["right"]


def test_a_case_that_fails_is_named_and_the_others_are_done(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "imagesTr" / "case_1_0000.nii.gz").write_bytes(b"no")
    assert run(copy, "-r", recipe, "-o", tmp_path / "out") == 1
    assert "failed: case_1: " in capfd.readouterr().err
    assert sorted({r["case"] for r in rows(tmp_path / "out")}) == ["case_0", "case_2"]
    for n in (0, 2):
        (copy / "imagesTr" / f"case_{n}_0000.nii.gz").write_bytes(b"no")
    assert run(copy, "-r", recipe) == 2
    assert "no case contains an organ" in capfd.readouterr().err


def test_an_error_of_ours_in_one_case_does_not_lose_the_others(
    data: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    measure = upper_bound.measure

    def one_fails(case: Case, *how: object) -> object:
        if case.id == "case_1":
            raise RuntimeError("x")
        return measure(case, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(upper_bound, "measure", one_fails)
    assert run(data, "-r", recipe, "-o", tmp_path / "out") == 1
    assert "failed: case_1: " in (told := capfd.readouterr().err)
    assert "unexpected RuntimeError" in told
    assert sorted({r["case"] for r in rows(tmp_path / "out")}) == ["case_0", "case_2"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("-r", "defualt"), "did you mean 'default'?"),
        (("--cases", "0"), "0 is not in the range x>=1"),
        (("-o", "FILE"), "cannot be written"),
    ],
)
def test_wrong_use(
    more: tuple[str, ...], says: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert run(data, *(str(tmp_path / "file") if word == "FILE" else word for word in more)) == 2
    err = capfd.readouterr().err.strip()
    assert "Traceback" not in err
    assert says in err.splitlines()[-1]


def test_no_labels_no_ceiling(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    shutil.rmtree(copy / "labelsTr")
    assert run(copy, "-r", recipe) == 2
    assert "has no labelled case" in capfd.readouterr().err
