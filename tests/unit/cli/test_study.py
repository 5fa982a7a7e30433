"""``zoomseg study``: from a folder to a table; wrong use in one line; resumed after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_dataset, tiny_recipe
from zoomseg.cli.main import main
from zoomseg.cli.study import ABLATIONS
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.recipe.load import dump
from zoomseg.study import ablations
from zoomseg.study.ablations import STUDIES, Ablation, StudyTraining, TableRow
from zoomseg.study.recipe_edits import only
from zoomseg.training import requested_recipe, training_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("study") / "data").root


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``roth2018-cascade`` on the tiny recipe."""
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=4)))
    both = StudyTraining("both")
    rows = (TableRow("coarse", both, only("coarse")), TableRow("fine", both))
    study = Ablation("roth2018-cascade", str(path), "nowhere", rows, baseline="coarse", folds=4)
    monkeypatch.setattr(ablations, "STUDIES", {study.name: study})


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["study", *(str(a) for a in arguments)])
    return int(stop.value.code or 0)


def test_the_names_are_those_of_the_studies() -> None:
    assert tuple(STUDIES) == ABLATIONS


@pytest.mark.usefixtures("tiny")
def test_from_a_folder_to_a_table(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = (data, "--ablation", "roth2018-cascade", "-o", out, "--device", "cpu")
    assert run(*arguments) == 0
    shown = capfd.readouterr()
    assert "row 1 of 2: coarse" in shown.err
    assert "training 'both', fold 0 of 4" in shown.err
    assert str(out / "table.md") in shown.out
    for name in ("table.csv", "table.md", "report.html"):
        assert (out / name).is_file()
    assert "Each training: the recipe's own number of iterations, on" in (out / "table.md").read_text()
    assert run(*arguments, "--seed", "1") == 2
    assert "holds a study with seed 0, this one has 1" in capfd.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_a_table_of_test_cases_is_named_if_there_is_one(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Test cases that cannot be read are reported, and the held-out cases' table is."""
    test, out = tiny_dataset(tmp_path / "test", cases=1).root, tmp_path / "out"
    (image,) = (test / "imagesTr").iterdir()
    whole = image.read_bytes()
    image.write_bytes(b"damaged")
    arguments = (data, "--ablation", "roth2018-cascade", "-o", out, "--test", test, "--device", "cpu")
    assert run(*arguments) == 1
    shown = capfd.readouterr()
    assert "failed: row 'coarse', test cases: " in shown.err
    assert str(out / "table.md") in shown.out
    assert "Test cases" not in shown.out
    image.write_bytes(whole)
    assert run(*arguments) == 0
    assert f"Test cases: {out / 'test' / 'table.md'}" in capfd.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_stopped_it_says_how_to_go_on(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[requested_recipe.TrainingRequest] = []

    def stopped(
        data: object, out: object, request: requested_recipe.TrainingRequest, *arguments: object
    ) -> None:
        requests.append(request)
        raise InterruptedTrainingError("stopped at step 3; continue with --resume")

    monkeypatch.setattr(training_run, "start", stopped)
    arguments = ("--time-budget", "1m30s", "--folds", "2", "--fold", "1", "--seed", "4", "--device", "cpu")
    assert run(data, "--ablation", "roth2018-cascade", "-o", tmp_path / "out", *arguments) == 130
    assert [(w.seconds, w.folds, w.fold, w.seed, w.init) for w in requests] == [(90, 2, 1, 4, None)]
    assert capfd.readouterr().err.splitlines()[-1] == "zoomseg: stopped; the same command resumes from here"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ablation", "roth2019"], "roth2018-cascade"),
        (["--ablation", "roth2018-finetune"], "give it with --init MODEL"),
        (["--ablation", "flare22", "--init", "x"], "does not start from a model; omit --init"),
        (["--ablation", "roth2018-pyramid", "--small", "left kidney"], "has no stage per label"),
        (["--ablation", "valindria2018", "--small", "liver, spleen"], "has no liver, spleen; it has left"),
        (["--ablation", "roth2018-candidate-region", "--test", "x"], "omit --test"),
        (["--ablation", "flare22", "--test", "nowhere"], "no such data set folder"),
        (["--ablation", "flare22", "--split", "nowhere"], "cannot be read"),
        (["--ablation", "flare22", "--unlabelled", "x"], "labelled scans only; omit --unlabelled"),
        (["--ablation", "flare22-unlabelled"], "give them with --unlabelled FOLDER"),
        (["--ablation", "flare22-unlabelled", "--unlabelled", "nowhere"], "no such file or folder"),
        (["--ablation", "flare22", "--recipe", "default"], "has no numbers of its own"),
        (["--ablation", "flare22", "--atlases", "3"], "has no atlas prior"),
        (["--ablation", "flare22", "--fold", "5"], "fold must be 0 to 4, got 5"),
        (["--ablation", "flare22", "--coarser", "0.5"], "0.5 is not in the range"),
        (["--ablation", "flare22", "--time-budget", "soon"], "expected a time such as"),
    ],
)
def test_wrong_use(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(data, "-o", tmp_path / "out", *arguments) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
