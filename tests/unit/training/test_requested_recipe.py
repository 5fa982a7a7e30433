"""The cases and the recipe that a request means for a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_dataset import CPU, small_plan, tiny_dataset
from zoomseg.core.errors import DatasetError
from zoomseg.datasets.layouts import Dataset
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import PlannedRecipe
from zoomseg.training.log import NullObserver
from zoomseg.training.requested_recipe import TrainingRequest, choose_split, plan_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("request"))


def test_the_folds_do_not_depend_on_the_seed(data: Dataset) -> None:
    """Models of several seeds are compared on the same cases."""
    splits = {choose_split(data, TrainingRequest(folds=4, seed=seed)) for seed in range(4)}
    assert len(splits) == 1


def test_folds_share_out_the_cases(data: Dataset) -> None:
    held_out = [choose_split(data, TrainingRequest(folds=4, fold=n)).validation for n in range(4)]
    assert sorted(i for part in held_out for i in part) == sorted(data.ids)
    everything = choose_split(data, TrainingRequest())
    assert everything.train == data.ids
    assert everything.validation == ()
    with pytest.raises(DatasetError, match="fold must be 0 to 1, got 5"):
        choose_split(data, TrainingRequest(folds=2, fold=5))


def test_too_few_cases_for_the_folds(data: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"4 labelled cases can be split into 2 to 4 folds, got 5: choose"):
        choose_split(data, TrainingRequest(folds=5))
    with pytest.raises(DatasetError, match=r"1 labelled case\(s\) cannot be split: train without folds"):
        choose_split(data.subset(["case_0"]), TrainingRequest(folds=2))


def test_unlabelled_cases_are_not_trained_on(tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "d")
    for file in (tmp_path / "d" / "labelsTr").iterdir():
        file.unlink()
    bare = Dataset(
        data.root,
        data.name,
        data.channel_names,
        data.schema,
        tuple(type(c)(c.id, c.images, None, None) for c in data.cases),
    )
    with pytest.raises(DatasetError, match="has no labelled case"):
        choose_split(bare, TrainingRequest())


def test_a_plan_knows_the_length_and_the_start(data: Dataset, tmp_path: Path) -> None:
    recipe = load(small_plan(tmp_path / "r.yaml"))
    assert isinstance(recipe, PlannedRecipe)
    split = choose_split(data, TrainingRequest())

    def told(request: TrainingRequest) -> dict[str, str]:
        made = plan_recipe(data, split, recipe, CPU, NullObserver(), request)
        return {reason.what: reason.value for reason in made.reasons}

    assert told(TrainingRequest(epochs=3))["length"] == "300 steps"
    assert told(TrainingRequest(seconds=90.0))["length"] == "1.5 min"
    assert told(TrainingRequest(init=tmp_path / "model"))["fine-tuning"] == "a tenth of the learning rate"
    assert "fine-tuning" not in told(TrainingRequest())


def test_organs_that_hardly_show_are_told_of(data: Dataset, tmp_path: Path) -> None:
    """A kidney of the tiny data set has 1.8 ml: 19 voxels of 4.5 mm."""
    recipe = load(small_plan(tmp_path / "r.yaml"))
    assert isinstance(recipe, PlannedRecipe)
    recipe = recipe.model_copy(update={"iterations": 20_000})  # a short one has a coarser grid
    heard: list[str] = []

    class Listening(NullObserver):
        def message(self, text: str) -> None:
            heard.append(text)

    split = choose_split(data, TrainingRequest())
    plan_recipe(data, split, recipe, CPU, Listening(), TrainingRequest())
    assert heard == []
    coarse = recipe.model_copy(update={"fine_voxels": 1000})
    plan_recipe(data, split, coarse, CPU, Listening(), TrainingRequest())
    small = sorted(line.split(",")[0] for line in heard)
    assert small == ["small organ: left kidney", "small organ: right kidney"]
