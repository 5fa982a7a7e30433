"""Scans are labelled, confident organs are kept, and a model learns from them; it can be interrupted and
resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, ModelError, ScanError, TrainingError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import bundle
from zoomseg.io.calibration import Calibration
from zoomseg.io.scans import read_labels, write_image
from zoomseg.pipeline.cascade import OrganUncertainty, Prediction
from zoomseg.pipeline.uncertainty import Uncertainty
from zoomseg.recipe.load import dump, load
from zoomseg.training import record, self_training
from zoomseg.training.log import NullObserver
from zoomseg.training.loop import Split
from zoomseg.training.requested_recipe import TrainingRequest
from zoomseg.training.self_training import SelfTraining, extended

TEACHER_SCHEMA = LabelSchema(("liver", "Kidney_R", "kidney left"), (1, 2, 5))
"""In another order, with other values and spellings, and one label more."""


Sure = Mapping[str, Mapping[str, float]]
"""The expected Dice by scan and organ; other scans are refused."""


class Notes(NullObserver):
    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)


class Oracle:
    """Replaces a predictor: labels the tiny scans perfectly, with the given confidence."""

    channels = 1

    def __init__(self, sure: Sure, calibration: Calibration | None = None) -> None:
        self.bundle = replace(untrained_bundle(), schema=TEACHER_SCHEMA, calibration=calibration)
        self.sure = sure
        self.seen: list[str] = []

    def predict(self, case: Case, keep: bool = True) -> Prediction:
        self.seen.append(case.id)
        if case.id not in self.sure:
            raise ScanError(f"scan {case.id} is unlike those of the training")
        truth = tiny_case(int(case.id.removeprefix("new_")))[1].data
        classes = np.array([0, 3, 2], dtype=np.uint8)[truth]
        classes[0, 0, 0] = 1
        said = {
            organ: OrganUncertainty(Uncertainty(8, 8.0, dice, 0), False)
            for organ, dice in self.sure[case.id].items()
        }
        return Prediction(case.id, LabelMap(classes, case.image.grid, TEACHER_SCHEMA), said, {}, (), {})


SURE = {
    "new_10": {"liver": 0.95, "Kidney_R": 0.81, "kidney left": 0.79},
    "new_11": {"liver": 0.95, "Kidney_R": 0.5, "kidney left": 0.5},
    "new_12": {"Kidney_R": 0.9, "kidney left": 0.9},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlabelled")
    for seed in (10, 11, 12, 13):
        write_image(folder / f"new_{seed}.nii.gz", tiny_case(seed)[0])
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=2)))
    return str(path)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    bundle.save(untrained_bundle(), tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Oracle]:
    def stand_in(sure: Sure = SURE, calibration: Calibration | None = None) -> Oracle:
        oracle = Oracle(sure, calibration)
        monkeypatch.setattr(self_training, "load_predictor", lambda *models, **how: oracle)
        return oracle

    return stand_in


def begin(data: Dataset, out: Path, unlabelled: Path, *teachers: str, **request: object) -> SelfTraining:
    asked = TrainingRequest(teachers=teachers, **request)  # type: ignore[arg-type]
    return self_training.begin(data, out, unlabelled, asked)


def test_confident_organs_are_kept_and_the_others_are_not_annotated(
    data: Dataset, unlabelled: Path, teacher: str, tmp_path: Path, ask: Callable[..., Oracle]
) -> None:
    ask()
    notes, out = Notes(), tmp_path / "m"
    begin(data, out, unlabelled, teacher).label(CPU, notes)
    both = extended(data, out)
    added = {case.id: case for case in both.cases if case.pseudo}
    assert {id_: case.annotated for id_, case in added.items()} == {
        "new_10": {"right kidney"},
        "new_12": {"left kidney", "right kidney"},
    }
    assert [case.id for case in both.cases if not case.pseudo] == list(data.ids)
    truth = tiny_case(10)[1].data
    kept = read_labels(out / "pseudo-labels" / "new_10.nii.gz", SCHEMA).data
    np.testing.assert_array_equal(kept, np.where(truth == 2, 2, 0))
    loaded = both.load(added["new_12"])
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.labels.data, tiny_case(12)[1].data)
    assert notes.told == [
        "new_13: not used (scan new_13 is unlike those of the training)",
        "of 4 unlabelled scans, organs to learn from: left kidney 1, right kidney 2",
    ]


def test_an_error_of_ours_in_one_scan_does_not_end_the_labelling(
    data: Dataset, unlabelled: Path, teacher: str, tmp_path: Path, ask: Callable[..., Oracle]
) -> None:
    class Broken(Oracle):
        def predict(self, case: Case, keep: bool = True) -> Prediction:
            if case.id == "new_11":
                raise RuntimeError("x")
            return super().predict(case, keep)

    ask().__class__ = Broken
    notes, out = Notes(), tmp_path / "m"
    begin(data, out, unlabelled, teacher).label(CPU, notes)
    added = {case.id: case.annotated for case in extended(data, out).cases if case.pseudo}
    assert added == {"new_10": {"right kidney"}, "new_12": {"left kidney", "right kidney"}}
    assert "new_11: not used (" in notes.told[0]
    assert "unexpected RuntimeError" in notes.told[0]
    known = json.loads((out / "pseudo-labels" / "pseudo-labels.json").read_text())["cases"]
    assert "unexpected RuntimeError" in known["new_11"]["failed"]


def test_the_calibration_says_what_a_promise_is_worth(
    data: Dataset, unlabelled: Path, teacher: str, tmp_path: Path, ask: Callable[..., Oracle]
) -> None:
    """An expected Dice of 0.9 is a logit of 2.2; an offset of -1 reduces it to 0.77, and the offset of
    one organ, +1, cancels this."""
    ask(calibration=Calibration(offset=-1.0, slope=1.0, organs={"Kidney_R": 1.0}, cases=4))
    out = tmp_path / "m"
    begin(data, out, unlabelled, teacher).label(CPU, NullObserver())
    added = {case.id: case.annotated for case in extended(data, out).cases if case.pseudo}
    assert added == {"new_10": {"right kidney"}, "new_12": {"right kidney"}}


def test_what_is_labelled_is_not_labelled_again(
    data: Dataset, unlabelled: Path, teacher: str, tmp_path: Path, ask: Callable[..., Oracle]
) -> None:
    class Stopped(Oracle):
        def predict(self, case: Case, keep: bool = True) -> Prediction:
            if case.id == "new_12":
                raise KeyboardInterrupt
            return super().predict(case, keep)

    oracle = ask()
    oracle.__class__ = Stopped
    out = tmp_path / "m"
    run = begin(data, out, unlabelled, teacher)
    with pytest.raises(KeyboardInterrupt):
        run.label(CPU, NullObserver())
    assert oracle.seen == ["new_10", "new_11"]
    oracle = ask()
    again = self_training.reopen(data, out)
    again.label(CPU, NullObserver())
    assert oracle.seen == ["new_12", "new_13"]
    again.label(
        CPU, NullObserver()
    )  # only the scan that could not be used, which may have been for the moment
    assert oracle.seen == ["new_12", "new_13", "new_13"]
    assert len(extended(data, out).cases) == 6
    ask({**SURE, "new_13": {"Kidney_R": 0.9}})
    again.label(CPU, NullObserver())
    assert len(extended(data, out).cases) == 7


def test_a_teachers_organs_may_have_any_name(
    data: Dataset,
    unlabelled: Path,
    tmp_path: Path,
    ask: Callable[..., Oracle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As everywhere else: RK is the right kidney."""
    schema = LabelSchema(("liver", "RK", "LKI"), (1, 2, 5))
    monkeypatch.setattr(sys.modules[__name__], "TEACHER_SCHEMA", schema)
    bundle.save(replace(untrained_bundle(), schema=schema), tmp_path / "teacher")
    ask({"new_10": {"liver": 0.9, "RK": 0.9, "LKI": 0.5}, "new_11": {"RK": 0.9, "LKI": 0.9}})
    out = tmp_path / "m"
    begin(data, out, unlabelled, str(tmp_path / "teacher")).label(CPU, NullObserver())
    added = {case.id: case.annotated for case in extended(data, out).cases if case.pseudo}
    assert added == {"new_10": {"right kidney"}, "new_11": {"left kidney", "right kidney"}}
    kept = read_labels(out / "pseudo-labels" / "new_11.nii.gz", SCHEMA).data
    np.testing.assert_array_equal(kept, tiny_case(11)[1].data)


def test_the_recipe_and_the_initial_model_are_kept(
    data: Dataset, unlabelled: Path, recipe: str, tmp_path: Path
) -> None:
    """A change of the file, hours later, would otherwise be a change of the student alone."""
    bundle.save(untrained_bundle(), tmp_path / "old")
    run = begin(data, tmp_path / "m", unlabelled, recipe=recipe, init=tmp_path / "old")
    Path(recipe).write_text(dump(tiny_recipe(together=True, iterations=9)))
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    again = self_training.reopen(data, tmp_path / "m")
    assert again.request == run.request
    assert load(str(again.request.recipe)) == tiny_recipe(together=True, iterations=2)
    assert again.request.init is not None
    assert bundle.load(again.request.init).recipe == untrained_bundle().recipe
    named = begin(data, tmp_path / "n", unlabelled, recipe="default")
    assert (named.request.recipe, self_training.reopen(data, tmp_path / "n").request.recipe) == (
        "default",
    ) * 2


def test_teachers_are_not_trained_again_once_the_student_has_begun(
    data: Dataset, unlabelled: Path, tmp_path: Path
) -> None:
    """They may have been removed."""

    def never() -> NullObserver:
        raise AssertionError("trained")

    run = begin(data, tmp_path / "m", unlabelled)
    (tmp_path / "m" / "training").mkdir()
    (tmp_path / "m" / record.FILE).write_text("{}")
    assert run.teach(CPU, never, lambda *found: None) is None  # type: ignore[arg-type,return-value]


def test_a_model_learns_from_both_and_goes_on(
    data: Dataset, unlabelled: Path, teacher: str, recipe: str, tmp_path: Path, ask: Callable[..., Oracle]
) -> None:
    """The held-out fold has only annotated cases, and nothing is planned from the others."""
    ask()
    out = tmp_path / "m"
    run = begin(data, out, unlabelled, teacher, recipe=recipe, folds=2, fold=1, seed=3)
    run.label(CPU, NullObserver())
    model = run.model(CPU, NullObserver())
    assert model.provenance["validation_cases"] == list(run.held_out)
    assert set(run.held_out) < set(data.ids)
    drawn = [i for i in data.ids if i not in run.held_out]
    assert model.provenance["training_cases"] == [*drawn, "new_10", "new_12"]
    assert model.provenance["pseudo_labelled_cases"] == ["new_10", "new_12"]
    assert "teachers" not in model.provenance  # nothing is distilled
    bundle.save(replace(model, provenance={**model.provenance, "complete": False}), out)
    resumed = self_training.reopen(data, out)
    resumed.label(CPU, NullObserver())
    assert resumed.model(CPU, NullObserver()).provenance["complete"] is True
    assert resumed.held_out == run.held_out


def test_what_was_asked_for_is_read_back(
    data: Dataset, unlabelled: Path, teacher: str, recipe: str, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    run = begin(data, out, unlabelled, teacher, recipe=recipe, epochs=3, folds=2, fold=1, seed=3)
    assert self_training.is_begun(out)
    again = self_training.reopen(data, out)
    assert again.request == run.request
    assert again.unlabelled == unlabelled.resolve()
    for length in ({"seconds": 9.0}, {}):  # the last one that was given
        again = self_training.reopen(data, out, **length)
        assert again.request == replace(run.request, epochs=None, seconds=9.0)
    with pytest.raises(ModelError, match=r"already holds a training \(unlabelled\.json\)"):
        begin(data, out, unlabelled, teacher)
    with pytest.raises(TrainingError, match="other cases"):
        self_training.reopen(data.subset(data.ids[1:]), out)


def test_the_first_round_does_not_see_the_cases_kept_back(
    data: Dataset, unlabelled: Path, tmp_path: Path
) -> None:
    run = begin(data, tmp_path / "m", unlabelled, folds=2, fold=1, epochs=3)
    assert set(run.labelled.ids) == set(data.ids) - set(run.held_out)
    assert run.folds == 2
    assert run.teachers_request == TrainingRequest(epochs=3)
    assert run.folder == tmp_path / "m" / "teachers"


def test_named_cases_are_kept_to(
    data: Dataset, unlabelled: Path, teacher: str, recipe: str, tmp_path: Path, ask: Callable[..., Oracle]
) -> None:
    ask()
    split = Split(data.ids[:2], data.ids[3:])
    run = begin(data, tmp_path / "m", unlabelled, teacher, recipe=recipe, split=split)
    assert (run.labelled.ids, run.held_out) == (data.ids[:2], data.ids[3:])
    assert run.teachers_request.split is None
    again = self_training.reopen(data, tmp_path / "m")
    assert again.request == run.request
    again.label(CPU, NullObserver())
    model = again.model(CPU, NullObserver())
    assert model.provenance["training_cases"] == [*data.ids[:2], "new_10", "new_12"]
    assert model.provenance["validation_cases"] == list(data.ids[3:])


def test_teachers_that_know_the_cases_kept_back_are_told_of(
    data: Dataset, unlabelled: Path, tmp_path: Path, ask: Callable[..., Oracle]
) -> None:
    knows = replace(untrained_bundle(), provenance={"data_set": "tiny", "training_cases": list(data.ids)})
    bundle.save(knows, tmp_path / "teacher")
    ask()
    notes = Notes()
    begin(data, tmp_path / "m", unlabelled, str(tmp_path / "teacher"), folds=2).label(CPU, notes)
    assert notes.told[0].startswith("2 of the 2 held-out cases were among the training cases of ")


# --- refused --------------------------------------------------------------------------------------


def test_a_teacher_that_is_sure_of_nothing_teaches_nothing(
    data: Dataset, unlabelled: Path, teacher: str, tmp_path: Path, ask: Callable[..., Oracle]
) -> None:
    ask({"new_10": {"Kidney_R": 0.7}})
    with pytest.raises(TrainingError, match="the teachers predict no organ"):
        begin(data, tmp_path / "m", unlabelled, teacher).label(CPU, NullObserver())


def test_a_scan_of_the_data_set_is_refused(data: Dataset, teacher: str, tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    write_image(tmp_path / "u" / "case_1.nii.gz", tiny_case(1)[0])
    with pytest.raises(DatasetError, match="'case_1' has the name of a case of data set 'tiny'"):
        begin(data, tmp_path / "m", tmp_path / "u", teacher)
    assert not (tmp_path / "m").exists()


def test_no_scans_and_no_teacher_are_refused_before_anything_is_written(
    data: Dataset, unlabelled: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScanError, match="no scans in this folder"):
        begin(data, tmp_path / "m", tmp_path / "empty")
    with pytest.raises(ModelError, match="no model folder at nowhere"):
        begin(data, tmp_path / "m", unlabelled, "nowhere")
    with pytest.raises(DatasetError, match="at least two labelled cases"):
        begin(data.subset(data.ids[:1]), tmp_path / "m", unlabelled)
    stranger = replace(untrained_bundle(), schema=LabelSchema.consecutive(("aorta", "heart")))
    bundle.save(stranger, tmp_path / "stranger")
    with pytest.raises(ModelError, match=r"predicts none of the data set's labels \(it has aorta, heart\)"):
        begin(data, tmp_path / "m", unlabelled, str(tmp_path / "stranger"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"cases": {"a": {"images": ["x.nii"]}}}',
        '{"cases": {"../a": {"images": ["x.nii"], "organs": []}}}',
        '{"cases": {"a": {"images": ["x.nii"], "organs": ["heart"]}}}',
    ],
)
def test_a_damaged_list_of_labels_is_refused(data: Dataset, tmp_path: Path, text: str) -> None:
    (tmp_path / "pseudo-labels").mkdir()
    (tmp_path / "pseudo-labels" / "pseudo-labels.json").write_text(text)
    with pytest.raises(TrainingError, match="is damaged"):
        extended(data, tmp_path)


def test_a_damaged_record_is_refused(data: Dataset, unlabelled: Path, teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "m"
    begin(data, out, unlabelled, teacher)
    known = json.loads((out / record.UNLABELLED).read_text())
    (out / record.UNLABELLED).write_text(json.dumps({**known, "folds": 1}))
    with pytest.raises(TrainingError, match="is damaged"):
        self_training.reopen(data, out)
