"""A cross-validation decides once, trains fold after fold, and is resumed after an interruption."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.core.errors import DatasetError, ModelError, ScanError, TrainingError
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import bundle
from zoomseg.io.scans import read_labels, write_labels
from zoomseg.recipe.load import dump, load
from zoomseg.recipe.spec import PlannedRecipe, Recipe
from zoomseg.training import cross_validation, requested_recipe
from zoomseg.training.cross_validation import CrossValidation
from zoomseg.training.log import NullObserver
from zoomseg.training.loop import Split
from zoomseg.training.requested_recipe import TrainingRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("folds"))


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=1)))
    return str(path)


def begin(data: Dataset, out: Path, request: TrainingRequest, count: int = 2) -> CrossValidation:
    return cross_validation.begin(data, out, count, request, CPU, NullObserver())


def test_every_fold_leaves_out_its_own_cases(data: Dataset, recipe: str, tmp_path: Path) -> None:
    begun = begin(data, tmp_path / "m", TrainingRequest(recipe, seed=5))
    models = [begun.model(fold, CPU, NullObserver()) for fold in range(2)]
    for fold, model in enumerate(models):
        assert model.provenance["validation_cases"] == list(begun.split(fold).validation)
        assert model.provenance["seed"] == 5
    assert sorted(begun.split(0).validation + begun.split(1).validation) == sorted(data.ids)
    assert bundle.models_in(tmp_path / "m") == begun.folders
    assert bundle.models_in("abdomen-ct") == ("abdomen-ct",)


def test_what_is_finished_is_not_done_again(data: Dataset, recipe: str, tmp_path: Path) -> None:
    begun = begin(data, tmp_path / "m", TrainingRequest(recipe))
    begun.model(0, CPU, NullObserver())
    written = (tmp_path / "m" / "fold-0" / "model.json").stat().st_mtime_ns

    told: list[str] = []

    class Listening(NullObserver):
        def message(self, text: str) -> None:
            told.append(text)

    model = cross_validation.reopen(data, tmp_path / "m").model(0, CPU, Listening())
    assert told == ["fold 0 (of 0 to 1)"]
    assert model.provenance["complete"] is True
    assert (tmp_path / "m" / "fold-0" / "model.json").stat().st_mtime_ns == written


def test_a_complete_fold_without_graphs_gets_them(data: Dataset, recipe: str, tmp_path: Path) -> None:
    """It was stopped after its model was written, or is of an earlier version."""
    begun = begin(data, tmp_path / "m", TrainingRequest(recipe))
    begun.model(0, CPU, NullObserver())
    file = tmp_path / "m" / "fold-0" / "model.json"
    manifest = json.loads(file.read_text())
    assert set(manifest.pop("graphs")) == {"coarse", "fine"}
    file.write_text(json.dumps(manifest))
    begun.model(0, CPU, NullObserver())
    assert set(bundle.load(tmp_path / "m" / "fold-0").graphs) == {"coarse", "fine"}


def test_a_case_that_cannot_be_segmented_is_listed_and_tried_once(recipe: str, tmp_path: Path) -> None:
    """Otherwise its fold would be validated again by every resumed cross-validation."""
    data = tiny_dataset(tmp_path / "d")
    validated: list[str] = []
    begun = begin(data, tmp_path / "m", TrainingRequest(recipe))
    for fold in range(2):
        begun.model(fold, CPU, NullObserver())
    (tmp_path / "d" / "imagesTr" / "case_2_0000.nii.gz").write_bytes(b"damaged")
    for again in (begun, cross_validation.reopen(data, tmp_path / "m")):
        scores = again.run(
            CPU, lambda: nullcontext(NullObserver()), lambda folder, _: validated.append(folder.name)
        )
        assert [case.id for case in scores.cases] == ["case_0", "case_1", "case_3"]
        assert [failure.case for failure in scores.failures] == ["case_2"]
        assert validated == ["fold-0", "fold-1"]
    summary = json.loads((tmp_path / "m" / "validation" / "summary.json").read_text())
    assert list(summary["failed"]) == ["case_2"]


def test_an_interrupted_fold_goes_on(data: Dataset, recipe: str, tmp_path: Path) -> None:
    """Its file states that it is incomplete, as after Ctrl-C; the recipe may be missing."""
    begun = begin(data, tmp_path / "m", TrainingRequest(recipe, epochs=None))
    model = begun.model(0, CPU, NullObserver())
    stopped = replace(model, provenance={**model.provenance, "complete": False})
    bundle.save(stopped, tmp_path / "m" / "fold-0")
    Path(recipe).unlink()
    again = cross_validation.reopen(data, tmp_path / "m")
    assert again.model(0, CPU, NullObserver()).provenance["complete"] is True
    assert again.model(1, CPU, NullObserver()).provenance["complete"] is True


def test_the_initial_model_is_needed_only_at_the_beginning(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(together=True, iterations=1)
    bundle.save(replace(untrained_bundle(), recipe=recipe), tmp_path / "old")
    begun = begin(data, tmp_path / "m", TrainingRequest(init=tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    again = cross_validation.reopen(data, tmp_path / "m")
    assert again.request.init == begun.request.init == tmp_path / "m" / "init" / "old"
    assert again.model(1, CPU, NullObserver()).provenance["init"] == {
        "model": "old",
        "recipe": "tiny",
        "tensors": 50,
    }
    given = {"init": str((tmp_path / "old").resolve())}
    assert cross_validation.reopen(data, tmp_path / "m", settings=given).request == again.request


def test_folds_are_planned_alike(data: Dataset, tmp_path: Path) -> None:
    begin(data, tmp_path / "m", TrainingRequest("default", epochs=1))
    planned = load(tmp_path / "m" / "recipe.yaml")
    assert isinstance(load("default"), PlannedRecipe)
    assert isinstance(planned, Recipe)
    assert (tmp_path / "m" / "plan.md").read_text().startswith("# How default was planned for tiny\n")


def test_what_was_asked_for_comes_back(data: Dataset, recipe: str, tmp_path: Path) -> None:
    request = TrainingRequest(recipe, seconds=60.0, seed=2)
    begin(data, tmp_path / "m", request)
    again = cross_validation.reopen(data, tmp_path / "m")
    assert (again.count, again.request) == (2, replace(request, recipe=None))
    for length in ({"epochs": 3}, {}):  # the last one that was given
        longer = cross_validation.reopen(data, tmp_path / "m", **length).request
        assert (longer.seconds, longer.epochs) == (None, 3)
    with pytest.raises(TrainingError, match="epochs must be"):
        cross_validation.reopen(data, tmp_path / "m", epochs=0)
    assert cross_validation.reopen(data, tmp_path / "m").request == longer


def test_an_organ_that_one_case_has_is_refused_before_anything_is_trained(
    recipe: str, tmp_path: Path
) -> None:
    """The model of the fold that holds it out could not learn it."""
    data = tiny_dataset(tmp_path / "d")
    for case in data.cases[1:]:
        assert case.labels is not None
        labels = read_labels(case.labels, data.schema)
        left = np.where(labels.data == 1, labels.data, 0).astype(np.uint8)
        write_labels(case.labels, replace(labels, data=left))
    held_out = requested_recipe.choose_split(data, TrainingRequest(folds=2, fold=1)).validation
    fold = int("case_0" in held_out)
    for wanted in (recipe, "default"):
        expected = f"right kidney is only in case_0, on which the model of fold {fold} is not trained,"
        with pytest.raises(DatasetError, match=expected):
            begin(data, tmp_path / "m", TrainingRequest(wanted))
        assert not (tmp_path / "m").exists()


def test_given_splits_are_kept_and_leave_out_other_cases(data: Dataset, recipe: str, tmp_path: Path) -> None:
    splits = (Split(("case_0", "case_1"), ("case_2",)), Split(("case_2", "case_0"), ("case_1",)))
    request = TrainingRequest(recipe)
    begun = cross_validation.begin(data, tmp_path / "m", 2, request, CPU, NullObserver(), splits)
    again = cross_validation.reopen(data, tmp_path / "m")
    for run in (begun, again):
        assert [run.split(fold) for fold in range(2)] == list(splits)
    model = again.model(1, CPU, NullObserver())
    assert model.provenance["training_cases"] == ["case_2", "case_0"]
    assert model.provenance["validation_cases"] == ["case_1"]


def test_a_plan_does_not_see_cases_that_no_split_trains_on(tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "d")
    splits = (Split(("case_0",), ("case_1",)), Split(("case_1",), ("case_0",)))
    Path(data.cases[3].images[0]).write_bytes(b"not a scan")
    with pytest.raises(ScanError):
        begin(data, tmp_path / "all", TrainingRequest("default", epochs=1))
    cross_validation.begin(
        data, tmp_path / "m", 2, TrainingRequest("default", epochs=1), CPU, NullObserver(), splits
    )
    assert (tmp_path / "m" / "plan.md").is_file()


def test_a_single_split_is_no_cross_validation(data: Dataset, recipe: str, tmp_path: Path) -> None:
    one = (Split(("case_0", "case_1"), ("case_2",)),)
    with pytest.raises(DatasetError, match="at least 2 folds, got 1"):
        cross_validation.begin(data, tmp_path / "m", 1, TrainingRequest(recipe), CPU, NullObserver(), one)


def test_wrong_beginnings(data: Dataset, recipe: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="can be split into 2 to 4 folds, got 9"):
        begin(data, tmp_path / "m", TrainingRequest(recipe), count=9)
    assert not (tmp_path / "m").exists()
    begin(data, tmp_path / "m", TrainingRequest(recipe))
    with pytest.raises(ModelError, match=r"already holds a training \(folds.json\); give --resume"):
        begin(data, tmp_path / "m", TrainingRequest(recipe))
    with pytest.raises(TrainingError, match="no cross-validation to resume"):
        cross_validation.reopen(data, tmp_path / "n")
    with pytest.raises(TrainingError, match=r"has other cases than .* was trained with \(case_2\)"):
        cross_validation.reopen(data.subset(["case_0", "case_1"]), tmp_path / "m")


@pytest.mark.parametrize(
    "change", [{"folds": 1}, {"folds": "2"}, {"seed": None}, {"teachers": [1]}, {"init": 3}], ids=str
)
def test_damaged_records(data: Dataset, recipe: str, tmp_path: Path, change: dict[str, object]) -> None:
    begin(data, tmp_path / "m", TrainingRequest(recipe))
    file = tmp_path / "m" / "folds.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | change))
    with pytest.raises(TrainingError, match=r"folds\.json is damaged"):
        cross_validation.reopen(data, tmp_path / "m")
    file.write_text("{")
    with pytest.raises(TrainingError, match=r"folds\.json is damaged"):
        cross_validation.reopen(data, tmp_path / "m")
