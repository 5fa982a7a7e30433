"""Every shipped recipe, reduced in size but with all of its kinds: trained for a few steps, saved, loaded and
used for prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.small_recipes import shrunk
from helpers.tiny_dataset import CPU, tiny_case, tiny_dataset
from zoomseg.core.case import Case
from zoomseg.datasets.layouts import Dataset
from zoomseg.inference.load import PredictionSettings, load_predictor
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.pipeline.cascade import Prediction
from zoomseg.recipe import graph
from zoomseg.recipe.load import load, names
from zoomseg.recipe.spec import Recipe
from zoomseg.training import loop
from zoomseg.training.log import LogRow, NullObserver

STEPS = 3


class _Rows(NullObserver):
    def __init__(self) -> None:
        self.rows: list[LogRow] = []

    def row(self, row: LogRow, remaining_seconds: float | None) -> None:
        self.rows.append(row)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


def new_case() -> Case:
    image, _ = tiny_case(seed=9)
    return Case("new", image, None)


def trained(recipe: Recipe, data: Dataset, out: Path) -> tuple[list[LogRow], Prediction]:
    watch = _Rows()
    loop.train(data, loop.Split(data.ids, ()), recipe, out, loop.LoopSettings(CPU, seed=5), watch)
    new = new_case()
    result = Predictor(bundle.load(out), CPU).predict(new)
    assert result.labels.grid.same_as(new.image.grid)
    assert result.schema == data.schema
    assert int(result.labels.data.max()) <= len(data.schema.names)
    return watch.rows, result


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_it_trains_and_predicts(name: str, data: Dataset, tmp_path: Path) -> None:
    recipe = shrunk(name, data, STEPS)
    rows, result = trained(recipe, data, tmp_path / "model")
    assert {row.stage for row in rows} == {stage.name for stage in recipe.stages}
    assert all(np.isfinite(row.loss) for row in rows)
    assert recipe.stages[0].name in result.stages
    for stage, prior in result.stages.items():
        assert np.allclose(prior.probabilities.sum(axis=0), 1, rtol=0, atol=1e-4), stage
    model = tmp_path / "model"
    assert set(bundle.load(model).graphs) == {stage.name for stage in recipe.stages}
    if recipe.atlas is None:  # another registration would take most of the time
        settings = PredictionSettings("openvino", any_scan=True)
        on_graphs = load_predictor([model], CPU, settings).predict(new_case())
        assert (on_graphs.labels.data != result.labels.data).mean() < 1e-3


def test_flare_finds_small_organs_again_and_refines_each(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kidneys are treated as the small organs, as the tiny data set has no others."""
    monkeypatch.setattr(loop, "convert", lambda *_: None)
    recipe = shrunk("flare22-whole-volume", data, STEPS)
    assert [stage.name for stage in recipe.stages] == ["coarse", "big-abdomen"]
    whole = load("flare22-whole-volume")
    assert isinstance(whole, Recipe)
    kidneys = ("left_kidney", "right_kidney")
    stages = tuple(
        s.model_copy(update={"labels": kidneys}) if s.name in ("relocate", "refine") else s
        for s in whole.stages
        if not s.name.startswith("big")
    )
    fitted, notes = graph.fit(whole.model_copy(update={"stages": stages}), data.schema)
    assert notes == ()
    small = {s.name: s for s in recipe.stages}["coarse"]
    own = {"grid": small.grid, "training": small.training, "network": small.network}
    fitted = fitted.model_copy(
        update={
            "stages": tuple(s.model_copy(update=own) for s in fitted.stages),
            "on_missing": "whole_volume",
        }
    )
    rows, result = trained(graph.expand(fitted, data.schema), data, tmp_path / "model")
    expected = {"coarse", "relocate", "refine-left_kidney", "refine-right_kidney"}
    assert {row.stage for row in rows} == expected
    assert set(result.stages) == expected
    assert result.stages["refine-left_kidney"].labels == ("left kidney",)
