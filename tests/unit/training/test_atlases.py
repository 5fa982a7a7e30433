"""Atlases of a training."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from helpers.small_recipes import shrunk_with_atlas
from helpers.tiny_dataset import tiny_dataset
from zoomseg.core.errors import DatasetError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.datasets.layouts import Dataset
from zoomseg.pipeline import stage_input
from zoomseg.recipe.spec import Recipe
from zoomseg.training import atlases
from zoomseg.training.log import NullObserver


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def recipe(data: Dataset) -> Recipe:
    return shrunk_with_atlas(data)


def test_no_case_is_its_own_atlas(data: Dataset, recipe: Recipe) -> None:
    library = atlases.collect(data, data.ids, recipe, NullObserver(), threading.Event())
    asked: list[str | None] = []

    class Watched(type(library)):  # type: ignore[misc]
        def prior(self, image: object, *, exclude: str | None = None, **rest: object) -> object:
            asked.append(exclude)
            return None

    scan = stage_input.prepare(data.load(data.cases[0]), recipe)
    atlases.of_library(Watched(library.spec, library.schema, library.atlases), None, print)(scan)
    assert asked == ["case_0"]
    atlases.of_others(Watched(library.spec, library.schema, library.atlases), None, print)(scan)
    assert asked == ["case_0", None]
    assert "case_0" not in [atlas.id for atlas in library.chosen("case_0")]


def test_atlases_are_completely_annotated_cases(data: Dataset, recipe: Recipe) -> None:
    partly = [replace(case, annotated=frozenset({"left kidney"})) for case in data.cases]
    some = replace(data, cases=(*partly[:3], data.cases[3]))
    library = atlases.collect(some, some.ids, recipe, NullObserver(), threading.Event())
    assert [atlas.id for atlas in library.atlases] == ["case_3"]
    labelled = replace(data.cases[2], pseudo=True)
    without = replace(data, cases=(*data.cases[:2], labelled, data.cases[3]))
    library = atlases.collect(without, without.ids, recipe, NullObserver(), threading.Event())
    assert [atlas.id for atlas in library.atlases] == ["case_0", "case_1", "case_3"]
    none = replace(data, cases=tuple(partly))
    with pytest.raises(DatasetError, match="annotated completely"):
        atlases.collect(none, none.ids, recipe, NullObserver(), threading.Event())


def test_stopping_while_atlases_are_read(data: Dataset, recipe: Recipe) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedTrainingError, match="--resume"):
        atlases.collect(data, data.ids, recipe, NullObserver(), stop)
