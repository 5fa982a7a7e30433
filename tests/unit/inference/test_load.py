"""Loading predictors from models on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import zoomseg
from helpers.tiny_dataset import CPU, tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.backends.compilers import BackendError
from zoomseg.core.case import Case
from zoomseg.core.errors import MemoryLimitError, ModelError, RecipeError, ZoomSegError
from zoomseg.inference.load import PredictionSettings, load_predictor, ready_predictor
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.recipe.spec import Stage


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """The folder of a cross-validation with two models."""
    for fold in range(2):
        bundle.save(untrained_bundle(seed=fold), tmp_path / f"fold-{fold}")
    (tmp_path / bundle.FOLDS).write_text("{}")
    return tmp_path


def probabilities(predictor) -> np.ndarray:
    found = predictor.predict(Case("a", tiny_case(0)[0])).probabilities
    return np.asarray(found.probabilities)


def test_the_folds_of_a_cross_validation_answer_together(folds: Path) -> None:
    """The prediction equals that of the models given one by one."""
    together = probabilities(load_predictor([folds], CPU))
    one_by_one = probabilities(load_predictor([folds / "fold-0", str(folds / "fold-1")], CPU))
    np.testing.assert_array_equal(together, one_by_one)
    alone = probabilities(load_predictor([folds / "fold-0"], CPU))
    assert not np.allclose(together, alone)


def test_a_model_in_memory_predicts_as_from_disk(folds: Path) -> None:
    ready = probabilities(ready_predictor(bundle.load(folds / "fold-0"), "cpu"))
    np.testing.assert_array_equal(ready, probabilities(load_predictor([folds / "fold-0"], "cpu")))


@pytest.mark.parametrize(
    "loaded",
    [lambda folder: load_predictor([folder]), lambda folder: zoomseg.load(folder)._predictor],
    ids=["predictor", "python"],
)
def test_a_model_that_is_replaced_before_its_networks_are_read_is_read_anew(
    loaded: Callable[[Path], Predictor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, new = tmp_path / "m", untrained_bundle(seed=1)
    bundle.save(untrained_bundle(seed=0), folder)
    bundle.store_graphs(folder, {s: bundle.NetworkGraph(b"a graph", 1, 1) for s in new.weights})
    with pytest.raises((ModelError, BackendError)):  # no network, and no other process replaces it
        loaded(folder)
    read, times = bundle.load, []

    def replaced_afterwards(model: str | Path) -> bundle.Bundle:
        found = read(model)
        times.append(model)
        if len(times) == 1:
            bundle.save(new, folder)
        return found

    monkeypatch.setattr(bundle, "load", replaced_afterwards)
    found = probabilities(loaded(folder))
    assert len(times) == 2
    np.testing.assert_array_equal(found, probabilities(ready_predictor(read(folder), "cpu")))


def test_what_cannot_be_loaded_is_named(folds: Path) -> None:
    with pytest.raises(ModelError, match="no-such-model"):
        load_predictor(["no-such-model"], CPU)
    with pytest.raises(ZoomSegError, match="unknown device 'tpu'; allowed: auto, cpu, cuda"):
        load_predictor([folds / "fold-0"], "tpu")
    other = replace(untrained_bundle(), channel_names=("MR",))
    with pytest.raises(ModelError, match="channels"):
        ready_predictor(bundle.load(folds / "fold-0"), CPU, others=[other])


def test_memory_limits_hold(folds: Path) -> None:
    predictor = load_predictor([folds / "fold-0"], CPU, PredictionSettings(max_ram=1_000_000))
    with pytest.raises(MemoryLimitError):
        predictor.predict(Case("a", tiny_case(0)[0]))


def test_a_limit_of_memory_that_is_not_there_is_said_to_be_none(folds: Path) -> None:
    told: list[str] = []
    for max_vram in (None, 1_000_000):
        settings = PredictionSettings(max_vram=max_vram)
        load_predictor([folds / "fold-0"], CPU, settings, on_warning=told.append)
    assert told == ["no GPU is used, so that its memory limit (--max-vram) has no effect"]


def test_tiles_overlap_as_little_as_asked(folds: Path) -> None:
    case = Case("a", tiny_case(0)[0])
    model = bundle.load(folds / "fold-0")
    recipe = model.recipe.model_copy(update={"stages": tuple(_overlapping(s) for s in model.recipe.stages)})
    model = replace(model, recipe=recipe)
    usual, less = (
        ready_predictor(model, CPU, PredictionSettings(overlap=share)).predict(case) for share in (None, 0.0)
    )
    assert [record.overlap for record in usual.records] == [0.5, 0.5]
    assert [record.overlap for record in less.records] == [(0.0, 0.0, 0.0)] * 2
    assert sum(r.tiles for r in less.records) < sum(r.tiles for r in usual.records)
    with pytest.raises(RecipeError, match=r"share up to 0\.5 of themselves"):
        ready_predictor(model, CPU, PredictionSettings(overlap=0.75))


def _overlapping(stage: Stage) -> Stage:
    return stage.model_copy(
        update={"grid": stage.grid.model_copy(update={"overlap": 0.5, "tile": (8, 8, 8)})}
    )
