"""``zoomseg train``: from a folder to a model, stopped and resumed, and every wrong use in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pytest

from helpers.tiny_dataset import tiny_case, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.cli.main import main
from zoomseg.cli.train import parse_duration
from zoomseg.core.case import Case
from zoomseg.core.errors import GeometryError
from zoomseg.core.volume import Volume
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.scans import read_label_values, write_image, write_labels
from zoomseg.pipeline.cascade import Prediction
from zoomseg.recipe.load import dump
from zoomseg.training import distributed, loop, self_training
from zoomseg.training.distributed import Processes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    return tiny_dataset(root / "data").root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=4)))
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def refused(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must end with exit 2 and a short explanation; returns its last line."""
    assert run("train", *arguments) == 2
    err = capfd.readouterr().err.strip()
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_trains_and_scores_the_fold_kept_back(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my model"
    assert run("train", data, "-o", out, "-r", recipe, "--folds", "4", "--fold", "1", "--device", "cpu") == 0
    assert f"Next: zoomseg predict SCANS -o RESULTS -m '{out}'\n" in capfd.readouterr().out
    model = bundle.load(out)
    assert len(model.provenance["training_cases"]) == 3  # type: ignore[arg-type]
    (kept_back,) = model.provenance["validation_cases"]  # type: ignore[misc]
    assert (out / "validation" / "predictions" / f"{kept_back}.nii.gz").is_file()
    assert json.loads((out / "validation" / "summary.json").read_text())["cases"] == 1
    assert set(model.graphs) == {"coarse", "fine"}
    assert model.calibration is not None
    assert model.calibration.cases == 1
    assert set(model.calibration.organs) <= set(model.schema.names)
    page = (out / "validation" / "report.html").read_text()
    assert "no prediction for" not in page
    assert "Where Dice is lost" in page


def test_default_recipe_is_planned_and_kept_with_its_numbers(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert run("train", data, "-o", out, "--time-budget", "6s", "--device", "cpu") == 0
    (stage,) = bundle.load(out).recipe.stages
    assert stage.name == "whole"
    assert stage.grid.mm == (2.0, 2.0, 3.0)  # type: ignore[union-attr]


def test_a_stopped_training_goes_on(data: Path, recipe: Path, tmp_path: Path) -> None:
    """SIGINT to the real process, as Ctrl-C does; the folder is a model and can be resumed."""
    recipe.write_text(dump(tiny_recipe(together=True, iterations=100_000)))
    out = tmp_path / "model"
    command = [
        sys.executable,
        "-m",
        "zoomseg",
        "train",
        str(data),
        "-o",
        str(out),
        "-r",
        str(recipe),
    ]
    process = subprocess.Popen(
        [*command, "--device", "cpu"], stderr=subprocess.PIPE, env=os.environ, text=True
    )
    log = out / "training" / "metrics.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and len(log.read_text().splitlines()) > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "continue with --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert bundle.load(out).provenance["complete"] is False
    done = json.loads((out / "training" / "job.json").read_text())
    assert done["seconds"] is None
    assert run("train", data, "-o", out, "--resume", "--epochs", "20", "--device", "cpu") == 0
    assert bundle.load(out).provenance["complete"] is True


def test_a_resumed_training_refuses_other_settings(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before, they were ignored without a word; equal ones may be repeated, as by torchrun."""
    out, asked = tmp_path / "model", ("-r", recipe, "--folds", "2", "--fold", "1", "--seed", "3")
    resumed = (data, "-o", out, "--resume", "--device", "cpu")
    assert run("train", data, "-o", out, "--device", "cpu", *asked) == 0
    assert run("train", *resumed, *asked) == 0
    for other, then in (
        (("--seed", "4"), "seed 4 cannot be given to resume the training in {}: it was started with seed 3"),
        (
            ("--folds", "3"),
            "folds 3 cannot be given to resume the training in {}: it was started with folds 2",
        ),
        (("--folds", "2", "--fold", "0"), "fold 0 cannot be given"),
        (("-r", "default"), "recipe 'default' cannot be given"),
        (("--init", out), f"init {out.resolve()} cannot be given to resume"),
        (("--init", out), "it was started with no init; omit it, or choose another folder"),
        (("--teacher", out), f"teachers {out.resolve()} cannot be given"),
    ):
        assert then.format(out) in refused(capfd, *resumed, *other)
    recipe.write_text(dump(tiny_recipe(together=True, iterations=7)))
    changed = refused(capfd, *resumed, "-r", recipe)
    assert "recipe 'tiny' has changed since then; omit it, or choose another folder" in changed


def test_cases_are_taken_from_nnunet_s_split_file(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(dump(tiny_recipe(together=True, iterations=1)))
    file, other = tmp_path / "splits_final.json", tmp_path / "other.json"
    folds = [
        {"train": ["case_0", "case_1"], "val": ["case_2"]},
        {"train": ["case_3", "case_2"], "val": ["case_1"], "test": ["case_0"]},
    ]
    file.write_text(json.dumps(folds))
    train, split = ("train", data, "--device", "cpu", "-o"), ("--split", file, "--fold", "1")
    out = tmp_path / "m"
    assert run(*train, out, "-r", recipe, *split) == 0
    told = json.loads((out / "model.json").read_text())["provenance"]
    assert told["training_cases"] == ["case_3", "case_2"]
    assert told["validation_cases"] == ["case_1"]
    assert {line.split(",")[0] for line in pooled(out)} == {"case_1"}
    assert run(*train, out, "--resume", *split) == 0
    resumed = (data, "--device", "cpu", "-o", out, "--resume")
    assert "fold 0 cannot be given" in refused(capfd, *resumed, "--split", file, "--fold", "0")
    one = {"train": ["case_3", "case_0"], "val": ["case_1"]}
    other.write_text(json.dumps([folds[0], one]))
    changed = "a split into 2 training and 1 held-out cases has changed since then"
    assert changed in refused(capfd, *resumed, "--split", other, "--fold", "1")
    begun = (data, "--device", "cpu", "-o", tmp_path / "n", "-r", recipe)
    assert "2 split(s), from 0; got fold 2" in refused(capfd, *begun, "--split", file, "--fold", "2")
    assert "exclude each other" in refused(capfd, *begun, "--split", file, "--folds", "2")
    other.write_text(json.dumps(one))
    assert "at least 2 folds, got 1" in refused(capfd, *begun, "--split", other, "--fold", "all")
    both = tmp_path / "both"
    assert run(*train, both, "-r", recipe, "--split", file, "--fold", "all") == 0
    assert {line.split(",")[0] for line in pooled(both)} == {"case_1", "case_2"}
    assert run(*train, both, "--resume", "--split", file) == 0
    other.write_text(json.dumps([folds[0], folds[1] | {"train": ["case_2"]}]))
    again = refused(capfd, data, "--device", "cpu", "-o", both, "--resume", "--split", other)
    assert "a split into 2 folds has changed since then" in again


def test_a_resumed_cross_validation_refuses_other_settings(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cv"
    (tmp_path / "blocked").write_text("")
    out.mkdir()
    (out / "fold-0").symlink_to(tmp_path / "blocked")
    resumed = (data, "-o", out, "--resume", "--device", "cpu")
    assert (
        run("train", data, "-o", out, "-r", recipe, "--folds", "2", "--fold", "all", "--device", "cpu") == 2
    )
    assert "it was started with folds 2" in refused(capfd, *resumed, "--fold", "all", "--folds", "3")
    assert "fold 1 cannot be given" in refused(capfd, *resumed, "--fold", "1")
    assert "seed 1 cannot be given" in refused(capfd, *resumed, "--seed", "1")


def test_fine_tuning_says_what_it_takes_over(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(together=True, iterations=1)
    bundle.save(dataclasses.replace(untrained_bundle(), recipe=recipe), tmp_path / "old")
    out = tmp_path / "model"
    assert run("train", data, "-o", out, "--init", tmp_path / "old", "--device", "cpu") == 0
    assert "stage 'coarse': 25 of 25 tensors are taken over" in " ".join(capfd.readouterr().err.split())
    assert bundle.load(out).recipe.stages[1].training.optimiser.lr == pytest.approx(3e-4)


def test_an_existing_model_is_not_overwritten(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert run("train", data, "-o", out, "-r", recipe, "--device", "cpu") == 0
    before = (out / "model.json").read_bytes()
    assert "already holds a training (model.json); give --resume" in refused(
        capfd, data, "-o", out, "-r", recipe
    )
    assert (out / "model.json").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--time-budget", "0"), "expected a time such as 90s, 15m or 1h30m"),
        (("--time-budget", "soon"), "expected a time such as 90s, 15m or 1h30m"),
        (("--time-budget", "5m", "--epochs", "3"), "not both"),
        (("--folds", "3", "--fold", "7"), "fold must be 0 to 2, got 7"),
        (("--folds", "9"), "4 labelled cases can be split into 2 to 4 folds, got 9"),
        (("--fold", "1"), "--fold 1 needs the number of folds, for example --folds 5, or a --split"),
        (("--split", "nowhere.json"), "split file nowhere.json cannot be read"),
        (("--fold", "all"), "--fold all needs the number of folds"),
        (("--resume",), "there is no training to resume"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("-r", "defualt"), "default"),
        (("--init", "nowhere"), "no model folder at nowhere"),
    ],
)
def test_wrong_use(
    more: tuple[str, ...], says: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capfd, data, "-o", tmp_path / "m", *more)


def test_unknown_recipe_key_is_named(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text().replace("on_missing:", "on_mising:"))
    assert "on_mising" in refused(capfd, data, "-o", tmp_path / "m", "-r", recipe)


def test_no_such_data_and_nowhere_to_write(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "nothing-here" in refused(capfd, tmp_path / "nothing-here", "-o", tmp_path / "m")
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refused(capfd, data, "-o", tmp_path / "file" / "m", "-r", recipe)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("0.5h", 1800), (" 2H ", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    context = click.Context(click.Command("x"))
    assert parse_duration(context, click.Option(["--t"]), text) == seconds


def test_time_without_end_is_refused(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "expected a time" in refused(capfd, data, "-o", tmp_path / "m", "--time-budget", "9" * 400 + "h")


def test_a_data_set_without_labels(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(data, bare)
    shutil.rmtree(bare / "labelsTr")
    said = refused(capfd, bare, "-o", tmp_path / "m")
    assert said == "zoomseg: data set 'tiny' has no labelled case; see zoomseg check"
    assert not (tmp_path / "m").exists()


def test_an_empty_folder_is_no_data_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "not a data set; expected imagesTr/" in refused(capfd, tmp_path / "empty", "-o", tmp_path / "m")
    (tmp_path / "empty" / "imagesTr").mkdir()
    (tmp_path / "empty" / "dataset.json").write_text("{")
    assert "dataset.json: not valid JSON" in refused(capfd, tmp_path / "empty", "-o", tmp_path / "m")


def test_a_bad_scan_among_the_training_cases_is_named(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    bad = copy / "imagesTr" / "case_2_0000.nii.gz"
    bad.write_bytes(bad.read_bytes()[:3000])
    assert str(bad) in refused(capfd, copy, "-o", tmp_path / "m", "-r", recipe, "--device", "cpu")


def test_a_damaged_checkpoint_is_named(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert run("train", data, "-o", out, "-r", recipe, "--device", "cpu") == 0
    file = out / "training" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    said = refused(capfd, data, "-o", out, "--resume", "--epochs", "9", "--device", "cpu")
    assert "checkpoint.safetensors" in said
    assert bundle.load(out).provenance["complete"] is True  # the model is unchanged


def test_a_case_kept_back_that_fails_is_named_and_the_others_are_scored(
    data: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    predict, failing = Predictor.predict, []

    def first_fails(
        self: Predictor, case: Case, organs: tuple[str, ...] | None = None, **others: Any
    ) -> Prediction:
        if not failing:
            failing.append(case.id)
            raise GeometryError("cannot be brought onto a grid")
        return predict(self, case, organs, **others)

    monkeypatch.setattr(Predictor, "predict", first_fails)
    out = tmp_path / "model"
    assert run("train", data, "-o", out, "-r", recipe, "--folds", "2", "--device", "cpu") == 1
    assert f"failed: {failing[0]}: cannot be brought onto a grid\n" in capfd.readouterr().err
    assert json.loads((out / "validation" / "summary.json").read_text())["cases"] == 1


def test_scans_with_all_channels_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the Medical Segmentation Decathlon: trained on, predicted when held out, scored."""
    monkeypatch.setattr(loop, "convert", lambda *_: None)
    root = tmp_path / "data"
    for seed in range(3):
        image, labels = tiny_case(seed)
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        write_image(
            root / "imagesTr" / f"c{seed}.nii.gz",
            Volume(np.concatenate([image.data, image.data[:, ::-1]]), image.grid),
        )
        write_labels(root / "labelsTr" / f"c{seed}.nii.gz", labels)
    pairs = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(3)]
    description = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "3": "left kidney", "7": "right kidney"},
        "training": pairs,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=1)))
    out = tmp_path / "model"
    assert run("train", root, "-o", out, "-r", path, "--folds", "3", "--device", "cpu") == 0
    (case,) = bundle.load(out).provenance["validation_cases"]  # type: ignore[misc]
    _, grid = read_label_values(out / "validation" / "predictions" / f"{case}.nii.gz")
    assert grid.same_as(tiny_case(0)[0].grid)
    assert json.loads((out / "validation" / "summary.json").read_text())["cases"] == 1


def pooled(out: Path) -> dict[str, list[str]]:
    """Lines of ``metrics.csv`` by case and organ."""
    lines = (out / "validation" / "metrics.csv").read_text().splitlines()[1:]
    return {",".join(line.split(",")[:2]): line.split(",")[2:] for line in lines}


@pytest.mark.slow
def test_all_folds_are_trained_gathered_and_answer_together(data: Path, recipe: Path, tmp_path: Path) -> None:
    """Interrupted before the second fold, whose scores are then merged with those of the first."""
    out = tmp_path / "cv"
    recipe.write_text(dump(tiny_recipe(together=True, iterations=1)))
    train = ("train", data, "-o", out, "--device", "cpu")
    (tmp_path / "blocked").write_text("")
    out.mkdir()
    (out / "fold-1").symlink_to(tmp_path / "blocked")
    assert run(*train, "-r", recipe, "--folds", "2", "--fold", "all") == 2
    assert (out / "fold-0" / "validation" / "summary.json").is_file()
    assert not (out / "validation").exists()
    done = (out / "fold-0" / "model.json").stat().st_mtime_ns
    (out / "fold-1").unlink()
    assert run(*train, "--resume") == 0
    assert (out / "fold-0" / "model.json").stat().st_mtime_ns == done
    assert pooled(out) == pooled(out / "fold-0") | pooled(out / "fold-1")
    assert {key.split(",")[0] for key in pooled(out)} == {f"case_{n}" for n in range(4)}
    assert "case_0" in (out / "validation" / "report.html").read_text()
    scan = data / "imagesTr" / "case_0_0000.nii.gz"
    both, each = tmp_path / "both", tmp_path / "each"
    assert run("predict", scan, "-o", both, "-m", out, "--device", "cpu") == 0
    folds = ("-m", out / "fold-0", "-m", out / "fold-1")
    assert run("predict", scan, "-o", each, *folds, "--device", "cpu") == 0
    assert (both / "summary.csv").read_text() == (each / "summary.csv").read_text()


def test_a_student_says_who_taught_it(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = dataclasses.replace(untrained_bundle(), provenance={"data_set": "tiny"})
    bundle.save(teacher, tmp_path / "teacher")
    out = tmp_path / "student"
    common = (data, "-o", out, "-r", recipe, "--device", "cpu", "--teacher", tmp_path / "teacher")
    assert run("train", *common) == 0
    (taught_by,) = bundle.load(out).provenance["teachers"]  # type: ignore[misc]
    assert taught_by["model"].endswith("/teacher")  # type: ignore[index,union-attr,call-overload]
    record = json.loads((out / "training" / "job.json").read_text())
    assert record["teachers"] == [str((tmp_path / "teacher").resolve())]
    shutil.rmtree(tmp_path / "teacher")
    assert run("train", data, "-o", out, "--resume", "--device", "cpu") == 0  # nothing is left to learn
    longer = (data, "-o", out, "--resume", "--epochs", "1", "--device", "cpu")
    assert "no model folder at" in refused(capfd, *longer)


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    (tmp_path / "unlabelled").mkdir()
    for seed in (10, 11):
        write_image(tmp_path / "unlabelled" / f"new_{seed}.nii.gz", tiny_case(seed)[0])
    return tmp_path / "unlabelled"


@pytest.mark.slow
def test_unlabelled_scans_are_labelled_by_a_first_round_and_learned_from(
    data: Path,
    unlabelled: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After a short training, few predictions are confident; here no confidence is required."""
    monkeypatch.setattr(self_training, "MIN_CONFIDENCE", 0.0)
    out, how = tmp_path / "model", ("--folds", "2", "--device", "cpu")
    recipe.write_text(dump(tiny_recipe(together=True, iterations=40)))
    assert run("train", data, "-o", out, "-r", recipe, "--unlabelled", unlabelled, *how) == 0
    model = bundle.load(out)
    held_out = model.provenance["validation_cases"]
    assert len(held_out) == 2  # type: ignore[arg-type]
    assert set(model.provenance["pseudo_labelled_cases"]) <= {"new_10", "new_11"}  # type: ignore[arg-type]
    assert model.provenance["pseudo_labelled_cases"]
    for fold in range(2):
        teacher = bundle.load(out / "teachers" / f"fold-{fold}")
        assert teacher.calibration is not None
        assert set(held_out).isdisjoint(teacher.provenance["training_cases"])  # type: ignore[arg-type]
    assert json.loads((out / "validation" / "summary.json").read_text())["cases"] == 2
    assert "of 2 unlabelled scans, organs to learn from: " in capfd.readouterr().err
    before = (out / "teachers" / "fold-0" / "model.json").read_bytes()
    assert run("train", data, "-o", out, "--resume", "--device", "cpu") == 0
    assert (out / "teachers" / "fold-0" / "model.json").read_bytes() == before


def test_a_training_with_unlabelled_scans_is_not_overwritten_and_is_of_one_fold(
    data: Path, unlabelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "unlabelled.json").write_text("{}")
    asked = (data, "-o", tmp_path / "m", "--unlabelled", unlabelled)
    assert "already holds a training (unlabelled.json); give --resume" in refused(capfd, *asked)
    assert "is damaged" in refused(capfd, data, "-o", tmp_path / "m", "--resume")
    assert "--unlabelled cannot be combined with --fold all" in refused(
        capfd, *asked, "--folds", "2", "--fold", "all"
    )


@pytest.mark.parametrize("fold_all", [False, True], ids=["unlabelled", "fold all"])
def test_what_one_process_does_alone_is_refused_to_several(
    data: Path,
    unlabelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fold_all: bool,
) -> None:
    """They would write to one folder at the same time."""
    monkeypatch.setattr(distributed, "process_group", lambda: nullcontext(Processes(0, 2)))
    asked = ("--folds", "2", "--fold", "all") if fold_all else ("--unlabelled", unlabelled)
    said = refused(capfd, data, "-o", tmp_path / "m", *asked)
    assert f"{'--fold all' if fold_all else '--unlabelled'} needs a single process, but 2 were" in said
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_by_torchrun(data: Path, tmp_path: Path) -> None:
    """One of two is killed after the first stage is finished: that stage is not trained again."""
    out, recipe = tmp_path / "model", tmp_path / "tiny.yaml"
    made = tiny_recipe(together=False, iterations=60)
    coarse, fine = made.stages
    short = coarse.training.model_copy(update={"iterations": 5})
    stages = (coarse.model_copy(update={"training": short}), fine)
    recipe.write_text(dump(made.model_copy(update={"stages": stages})))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "zoomseg", "train", data, "-o", out, "-r", recipe, "--resume", "--device", "cpu"]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/how-to/several-gpus.md
    with (tmp_path / "said.txt").open("w") as said:
        torchrun = subprocess.Popen(
            [*launcher, "--max-restarts", "1", "--monitor-interval", "0.2", *command],
            stdout=said,
            stderr=said,
            env=environment,
        )
        try:
            finished = out / "training" / "group-0.safetensors"
            _until(finished.is_file, torchrun)
            (second,) = [p for p in psutil.Process(torchrun.pid).children() if p.environ()["RANK"] == "1"]
            second.kill()
            assert torchrun.wait(300) == 0, (tmp_path / "said.txt").read_text()
        finally:
            torchrun.terminate()
    told = (tmp_path / "said.txt").read_text()
    assert "stage 'coarse': resumed at step 5, trained 0 more steps" in told
    assert "continue with --resume" in told  # the first process, of the second stage
    assert f"Model: {out}" in told
    assert set(bundle.load(out).weights) == {"coarse", "fine"}
    assert bundle.load(out).graphs  # written last


def _until(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not there():
        assert process.poll() is None
        time.sleep(0.02)


def test_only_torchrun_begins_with_resume(
    data: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = (data, "-o", tmp_path / "model", "-r", recipe, "--resume", "--device", "cpu")
    assert "there is no training to resume" in refused(capfd, *given)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run("train", *given) == 0
    assert set(bundle.load(tmp_path / "model").weights) == {"coarse", "fine"}
