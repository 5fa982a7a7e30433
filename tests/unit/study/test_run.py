"""A study of two rows actually trains, predicts, scores and tabulates, and repeats nothing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, SCHEMA, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.core.errors import ScanError
from zoomseg.datasets.layouts import Dataset
from zoomseg.evaluation.tolerances import FLARE22_TOLERANCES
from zoomseg.inference.predictor import Predictor
from zoomseg.io.scans import read_label_values
from zoomseg.pipeline.cascade import Prediction
from zoomseg.recipe.load import dump
from zoomseg.study import efficiency, run
from zoomseg.study.ablations import Ablation, Published, StudyTraining, TableRow
from zoomseg.study.recipe_edits import only, trained_apart, unchanged
from zoomseg.study.run import StudyOutcome, run_ablation, slug, with_changed_prediction
from zoomseg.study.steps import paper_steps
from zoomseg.study.trainings import StudyObserver, StudySettings, open_trainings
from zoomseg.training import training_run

BOTH = StudyTraining("both")
COARSE = TableRow("coarse (first)", BOTH, only("coarse"), Published({"left kidney": 0.5}, 0.5))
FINE = TableRow("fine", BOTH, unchanged, Published({"left kidney": 0.75}, 0.7))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("study"), cases=3)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=4)))
    return Ablation("tiny", str(path), "Table 0", (COARSE, FINE), baseline=COARSE.name, folds=2, pooled=True)


@pytest.fixture(scope="module")
def done(study: Ablation, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    carried_out(study, data, out)
    return out


def carried_out(study: Ablation, data: Dataset, out: Path, said: list[str] | None = None) -> StudyOutcome:
    said = [] if said is None else said
    return run_ablation(
        study, open_trainings(study, data, out, StudySettings(), CPU, StudyObserver(said.append))
    )


def table(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    rows = csv.DictReader((out / "table.csv").read_text().splitlines())
    return {(row["row"], row["organ"]): row for row in rows}


def test_the_table_has_what_evaluate_gives(done: Path) -> None:
    found = table(done)
    assert list(found) == [
        (row, organ) for row in (COARSE.name, FINE.name) for organ in ("mean", *SCHEMA.names)
    ]
    for row in (COARSE, FINE):
        folders = [done / "rows" / slug(row.name) / f"fold-{fold}" for fold in (0, 1)]
        parts = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        assert [part["cases"] for part in parts] == [2, 1]
        means = []
        for organ in SCHEMA.names:
            line = found[row.name, organ]
            assert line["cases"] == "3"
            for metric in ("dice", "nsd"):
                first, second = (part["organs"][organ][metric] for part in parts)
                assert float(line[metric]) == pytest.approx((2 * first + second) / 3, abs=1e-5)
            means.append(float(line["dice"]))
        assert float(found[row.name, "mean"]["dice"]) == pytest.approx(sum(means) / 2, abs=1e-5)


def test_the_papers_numbers_stand_beside(done: Path) -> None:
    found = table(done)
    assert found["fine", "left kidney"]["paper_dice"] == "0.75"
    assert found["fine", "right kidney"]["paper_dice"] == ""
    assert found["fine", "mean"]["paper_dice"] == "0.7"
    assert found["fine", "left kidney"]["p_row_above"] == ""  # three cases
    assert {line["steps"] for line in found.values()} == {"4"}
    text = (done / "table.md").read_text()
    steps = (
        "Training 'both' (rows coarse (first); fine): 4 optimiser steps (coarse + fine 4), mean over 2 folds."
    )
    assert f"- {steps}\n" in text
    assert steps.replace("'", "&#39;") in (done / "report.html").read_text()
    assert "Dice rises from 0.500 to 0.750 in the paper" in text
    assert "all 2 folds" in text


def test_rows_share_their_training_and_differ_in_how_they_predict(done: Path) -> None:
    assert [p.name for p in (done / "runs").iterdir()] == ["both"]
    values = table(done)
    assert values[COARSE.name, "mean"]["dice"] != values["fine", "mean"]["dice"]
    assert (done / "report.html").read_text().count("data:image/png;base64,") == 3


def test_all_labelled_cases_are_predicted_once_by_the_model_that_did_not_see_them(
    done: Path, data: Dataset
) -> None:
    for row in (COARSE, FINE):
        seen = []
        for fold in (0, 1):
            held_out = json.loads((done / "runs/both" / f"fold-{fold}" / "training/job.json").read_text())
            files = (done / "rows" / slug(row.name) / f"fold-{fold}" / "predictions").glob("*.nii.gz")
            predicted = sorted(f.name.removesuffix(".nii.gz") for f in files)
            assert predicted == held_out["validation"]
            seen += predicted
        assert sorted(seen) == list(data.ids)


def test_nothing_is_done_twice(
    done: Path, study: Ablation, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("done again")

    for name in ("start", "resume"):
        monkeypatch.setattr(training_run, name, never)
    monkeypatch.setattr(Predictor, "predict", never)
    monkeypatch.setattr(run, "evaluate", never)
    before = (done / "table.csv").read_text()
    carried_out(study, data, done)
    assert (done / "table.csv").read_text() == before


def test_only_what_is_missing_is_predicted_again(
    done: Path, study: Ablation, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = done / "rows" / "fine" / "fold-1"
    lost = min((folder / "predictions").glob("*.nii.gz"))
    before = (done / "table.csv").read_text(), lost.read_bytes()
    lost.unlink()
    (folder / "summary.json").unlink()
    monkeypatch.setattr(training_run, "start", None)
    said: list[str] = []
    carried_out(study, data, done, said)
    assert [text for text in said if text.startswith("predicted")] == [
        f"predicted 1 of 1: {lost.name.removesuffix('.nii.gz')}"
    ]
    assert (done / "table.csv").read_text() == before[0]


def test_a_case_that_fails_is_named_and_tried_again(
    done: Path, study: Ablation, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = done / "rows" / "fine" / "fold-0"
    lost = min((folder / "predictions").glob("*.nii.gz"))
    case = lost.name.removesuffix(".nii.gz")
    before = (done / "table.csv").read_text()
    lost.unlink()
    (folder / "summary.json").unlink()

    def broken(*arguments: object, **named: object) -> Prediction:
        raise ScanError("cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", broken)
        assert carried_out(study, data, done).failed == (f"fine, fold 0: {case}: cannot be read",)
        assert table(done)["fine", "left kidney"]["cases"] == "2"
    assert carried_out(study, data, done).failed == ()
    assert (done / "table.csv").read_text() == before


def test_if_no_case_can_be_predicted_it_stops(
    done: Path, study: Ablation, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_row = TableRow("other", BOTH)

    def broken(*arguments: object, **named: object) -> Prediction:
        raise ScanError("cannot be read")

    monkeypatch.setattr(Predictor, "predict", broken)
    other = Ablation("tiny", study.recipe, "", (other_row,), baseline="other", folds=2, pooled=True)
    with pytest.raises(ScanError, match="row 'other', fold 0: no case could be predicted; case_"):
        carried_out(other, data, done)


def test_rows_are_scored_on_an_unseen_set_too(study: Ablation, data: Dataset, tmp_path: Path) -> None:
    """Its labels have another spelling and other values, and there is an additional one."""
    root = tiny_dataset(tmp_path / "other", cases=2).root
    described = json.loads((root / "dataset.json").read_text())
    described["labels"] = {"background": 0, "RK": 7, "LK": 3, "spleen": 9}
    (root / "dataset.json").write_text(json.dumps(described | {"name": "other"}))
    trainings = open_trainings(study, data, tmp_path / "out", StudySettings(test=root), CPU)
    outcome = run_ablation(study, trainings)
    assert outcome.failed == ()
    held_out, unseen = table(tmp_path / "out"), table(tmp_path / "out" / "test")
    assert {line["cases"] for line in held_out.values()} == {"3"}
    assert list(unseen) == [
        (row, organ) for row in (COARSE.name, FINE.name) for organ in ("mean", *SCHEMA.names)
    ]
    scores = json.loads((tmp_path / "out/rows/fine/test/summary.json").read_text())
    assert scores["cases"] == 2
    for organ in SCHEMA.names:
        assert float(unseen["fine", organ]["dice"]) == pytest.approx(
            scores["organs"][organ]["dice"], abs=1e-5
        )
    # Cases 0 and 1 of both are the same scans: the first fold's model gives the same prediction for both.
    both = sorted({"case_0", "case_1"} & set(trainings.split(0).validation))
    assert both
    for case in both:
        ours, theirs = (
            read_label_values(tmp_path / "out/rows/fine" / part / "predictions" / f"{case}.nii.gz")[0]
            for part in ("fold-0", "test")
        )
        assert np.array_equal(ours, theirs)
    text = (tmp_path / "out/test/table.md").read_text()
    assert (
        "Scored here: 2 cases of 'other', used neither for training nor for validation, by the models of "
        "fold 0." in text
    )
    assert (tmp_path / "out/test/report.html").is_file()


def test_every_fold_s_models_have_their_own_scores_of_the_test_cases(
    study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    """One fold is trained elsewhere first; then all folds, and the test cases are scored by the first one's
    models, of which the table speaks."""
    root, out = tiny_dataset(tmp_path / "other", cases=3).root, tmp_path / "out"
    for settings, folder, fold in (
        (StudySettings(test=root, fold=1), "test-fold-1", 1),
        (StudySettings(test=root), "test", 0),
    ):
        trainings = open_trainings(study, data, out, settings, CPU)
        assert run_ablation(study, trainings).failed == ()
        assert f", by the models of fold {fold}." in (out / "test/table.md").read_text()
        for row in (COARSE, FINE):
            scores = json.loads((out / "rows" / slug(row.name) / folder / "summary.json").read_text())
            for organ in SCHEMA.names:
                own = scores["organs"][organ]["dice"]
                assert float(table(out / "test")[row.name, organ]["dice"]) == pytest.approx(own, abs=1e-5)
        case = trainings.split(fold).validation[0]
        ours, theirs = (
            read_label_values(out / "rows/fine" / part / "predictions" / f"{case}.nii.gz")[0]
            for part in (f"fold-{fold}", folder)
        )
        assert np.array_equal(ours, theirs)  # the same scan, by the same model


def test_test_cases_that_fail_leave_the_held_out_results(
    study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    root, out = tiny_dataset(tmp_path / "other", cases=2).root, tmp_path / "out"
    trainings = open_trainings(study, data, out, StudySettings(test=root, fold=0), CPU)
    for image in (root / "imagesTr").iterdir():
        image.write_bytes(b"damaged")
    outcome = run_ablation(study, trainings)
    assert [row.name for row in outcome.rows] == [COARSE.name, FINE.name]
    rows = [line for line in outcome.failed if line.startswith("row ")]
    assert [line.partition(": ")[0] for line in rows] == [
        f"row '{row.name}', test cases" for row in (COARSE, FINE)
    ]
    assert all("test: no case could be predicted" in line for line in rows)
    assert len(table(out)) == 6
    assert "is left out" not in (out / "table.md").read_text()


def test_the_steps_of_the_recipe_as_it_is_shipped(
    done: Path, study: Ablation, data: Dataset, tmp_path: Path
) -> None:
    opened = open_trainings(study, data, done, StudySettings(), CPU)
    assert paper_steps(opened, BOTH) == 4  # both stages at once
    assert paper_steps(opened, StudyTraining("apart", trained_apart)) == 8
    assert paper_steps(opened, None) is None
    shorter = tmp_path / "short.yaml"
    shorter.write_text(dump(tiny_recipe(together=True, iterations=2)))
    others = open_trainings(study, data, tmp_path / "out", StudySettings(recipe=str(shorter)), CPU)
    assert paper_steps(others, BOTH) == 4


def test_a_row_may_start_from_another_recipe(study: Ablation, data: Dataset, tmp_path: Path) -> None:
    """The coarse stage alone, trained separately, compared with the cascade; each has its own steps."""
    path = tmp_path / "alone.yaml"
    path.write_text(dump(only("coarse")(tiny_recipe(together=False, iterations=3))))
    alone = TableRow(
        "alone", StudyTraining("alone", recipe=str(path)), published=Published({"left kidney": 0.6})
    )
    of_two = replace(study, rows=(alone, FINE), baseline="alone", pooled=False)
    trainings = open_trainings(of_two, data, tmp_path / "out", StudySettings(), CPU)
    assert [r.paper_steps for r in run_ablation(of_two, trainings).rows] == [3, 4]
    found = table(tmp_path / "out")
    assert (found["alone", "mean"]["steps"], found["fine", "mean"]["steps"]) == ("3", "4")
    assert found["alone", "left kidney"]["paper_dice"] == "0.6"
    model = json.loads((tmp_path / "out/runs/alone/fold-0/model.json").read_text())
    assert [stage["name"] for stage in model["recipe"]["stages"]] == ["coarse"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "- Training 'alone' starts from recipe '" in text
    assert "'both' starts from" not in text


def test_only_the_small_organs_are_tabulated(done: Path, study: Ablation, data: Dataset) -> None:
    opened = open_trainings(study, data, done, StudySettings(), CPU)
    run_ablation(study, replace(opened, small=("right kidney",)))
    assert {organ for _, organ in table(done)} == {"mean", "right kidney"}
    assert "Tabulated: right kidney." in (done / "table.md").read_text()
    run_ablation(study, opened)


def test_a_row_that_cannot_be_carried_out_is_left_out_and_named(
    done: Path, study: Ablation, data: Dataset
) -> None:
    with_lost = replace(study, rows=(TableRow("lost", StudyTraining("lost", only("nowhere"))), *study.rows))
    outcome = carried_out(with_lost, data, done)
    (reason,) = outcome.failed
    assert reason.startswith("row 'lost': ")
    assert "no stage 'nowhere'" in reason
    assert [r.name for r in outcome.rows] == [COARSE.name, FINE.name]
    assert "is left out" in (done / "table.md").read_text()


def test_rows_are_scored_as_the_paper_scores(done: Path, study: Ablation, data: Dataset) -> None:
    """And scored again if another rule was used before, without repeating predictions."""
    flare = replace(study, rows=tuple(replace(row, tolerances=FLARE22_TOLERANCES) for row in study.rows))
    summary = done / "rows" / "fine" / "fold-0" / "summary.json"
    carried_out(flare, data, done)
    assert json.loads(summary.read_text())["rule"] == "flare22"
    assert "NSD at flare22." in (done / "table.md").read_text()
    took = summary.with_name("Efficiency.csv").read_text().splitlines()[1:]
    measured = efficiency.read(summary.parent)
    assert {line.split(",")[0]: float(line.split(",")[1]) for line in took} == {
        f"{case}.nii.gz": round(own["seconds"], 2) for case, own in measured.items()
    }
    assert took
    carried_out(study, data, done)
    assert json.loads(summary.read_text())["rule"] == "1 mm"


def test_what_the_predictions_took_is_in_the_table(done: Path) -> None:
    text = (done / "table.md").read_text()
    assert f"## {efficiency.TITLE}" in text
    after = text.partition(efficiency.TITLE)[2]
    assert [
        line.split("|")[1:3] for line in after.splitlines() if line.startswith(("| coarse", "| fine"))
    ] == [
        [" coarse (first) ", " 3 "],
        [" fine ", " 3 "],
    ]


def test_answering_keeps_the_weights_of_the_stages_left() -> None:
    model = with_changed_prediction(untrained_bundle(), only("coarse"))
    assert list(model.weights) == ["coarse"]
    assert [s.name for s in model.recipe.stages] == ["coarse"]


def test_slugs() -> None:
    assert slug("W + AC + 2SN") == "w-ac-2sn"
    assert slug("level 2, no auto-context") == "level-2-no-auto-context"
