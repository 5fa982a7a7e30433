"""Cases in which an organ is not annotated: it is learned from the others, and not as background here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, tiny_case, tiny_dataset, tiny_recipe
from zoomseg.core.case import Case
from zoomseg.core.errors import TrainingError
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import Dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.io.bundle import Bundle
from zoomseg.io.scans import write_labels
from zoomseg.recipe.spec import Recipe
from zoomseg.training import loop
from zoomseg.training.log import NullObserver
from zoomseg.training.loop import LoopSettings, Split

PARTLY = ("case_0", "case_1")
SPLIT = Split(("case_0", "case_1", "case_2", "case_3"), ())
UNSEEN = (4, 5, 6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two of the four cases lack the label of the right kidney."""
    root = tmp_path_factory.mktemp("partly")
    made = tiny_dataset(root)
    for case in made.cases:
        if case.id in PARTLY:
            labels = made.load(case).labels
            assert labels is not None
            left = np.where(labels.data == 2, np.zeros_like(labels.data), labels.data)
            assert case.labels is not None
            write_labels(case.labels, LabelMap(left, labels.grid, labels.schema))
    return made


def said(data: Dataset, ids: tuple[str, ...], *drawn: str) -> Dataset:
    """The data set, with the annotated labels specified for some cases."""
    own = frozenset(drawn)
    return replace(data, cases=tuple(replace(c, annotated=own) if c.id in ids else c for c in data.cases))


def coarse(iterations: int) -> Recipe:
    recipe = tiny_recipe(together=False, iterations=iterations)
    return recipe.model_copy(update={"stages": recipe.stages[:1]})


def trained(data: Dataset, recipe: Recipe, out: Path) -> Bundle:
    return loop.train(data, SPLIT, recipe, out, LoopSettings(CPU, seed=1), NullObserver())


def right_kidney_dice(model: Bundle) -> float:
    """Mean over scans that were not used for training."""
    predictor = Predictor(model, CPU)
    values = []
    for seed in UNSEEN:
        image, truth = tiny_case(seed)
        found = predictor.predict(Case("unseen", image)).labels.data == 2
        there = truth.data == 2
        values.append(float(2 * (found & there).sum() / (found.sum() + there.sum())))
    return sum(values) / len(values)


def test_an_organ_is_found_better_than_where_its_absence_is_believed(data: Dataset, tmp_path: Path) -> None:
    believed = right_kidney_dice(trained(data, coarse(60), tmp_path / "believed"))
    partly = right_kidney_dice(trained(said(data, PARTLY, "left kidney"), coarse(60), tmp_path / "partly"))
    assert partly > 0.6
    assert partly > believed + 0.2


def test_naming_every_label_changes_no_weight(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(together=True, iterations=3)
    silent = trained(data, recipe, tmp_path / "silent")
    named = trained(said(data, data.ids, "left kidney", "right kidney"), recipe, tmp_path / "named")
    for stage, state in silent.weights.items():
        assert all(np.array_equal(value, named.weights[stage][key]) for key, value in state.items())


def test_a_label_that_nobody_drew_is_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="label 'right kidney' is annotated in none of the 4 cases"):
        trained(said(data, data.ids, "left kidney"), coarse(3), tmp_path)
