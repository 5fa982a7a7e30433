"""Atlas priors in prediction: from training cases to a model's own atlases."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from helpers.small_recipes import shrunk_with_atlas
from helpers.tiny_dataset import CPU, tiny_case, tiny_dataset
from zoomseg.atlas import register as registration
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError
from zoomseg.core.resample import resample_data
from zoomseg.core.volume import Volume
from zoomseg.datasets.layouts import Dataset
from zoomseg.inference import atlas_priors
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.pipeline import stage_input
from zoomseg.recipe.spec import ATLAS, ImageInput, Recipe
from zoomseg.training import loop
from zoomseg.training.log import NullObserver


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def recipe(data: Dataset) -> Recipe:
    return shrunk_with_atlas(data)


@pytest.fixture(scope="module")
def model(data: Dataset, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    split = loop.Split(("case_0", "case_1", "case_2"), ("case_3",))
    registered = tmp_path_factory.mktemp("registered")
    loop.train(data, split, recipe, out, loop.LoopSettings(CPU, registered=registered), NullObserver())
    # Two atlases for each of four cases, and their fused labels.
    assert len(list(registered.rglob("*.safetensors"))) == 4 * (2 + 1)
    return out


def test_a_model_keeps_its_atlases_and_predicts_with_them(model: Path, data: Dataset) -> None:
    assert "images of up to 2 training patients" in (model / "README.md").read_text()
    image, labels = tiny_case(seed=9)
    loaded = bundle.load(model)
    prior_of = atlas_priors.of_model(loaded)
    assert prior_of is not None
    scan = stage_input.prepare(Case("new", image, labels), loaded.recipe)
    prior = prior_of(scan)
    assert prior.labels == data.schema.names
    assert prior.source == ATLAS
    # The balls of the atlases, registered to this scan's: mostly inside.
    truth = labels.reoriented(scan.orientation).data
    found = resample_data(prior.probabilities, prior.grid, scan.grid).argmax(axis=0)
    for c in (1, 2):
        overlap = int(((found == c) & (truth == c)).sum())
        assert 2 * overlap / int((found == c).sum() + (truth == c).sum()) > 0.6
    result = Predictor(loaded, CPU).predict(Case("new", image, None))
    assert "coarse" in result.stages
    assert ATLAS not in result.stages
    assert result.seconds[ATLAS] > 0


def test_the_prior_reaches_the_network(model: Path) -> None:
    """Another prior gives another prediction."""
    image, _ = tiny_case(seed=9)
    loaded = bundle.load(model)
    own = atlas_priors.of_model(loaded)
    assert own is not None

    def without(scan: stage_input.PreparedScan) -> object:
        prior = own(scan)
        nothing = np.zeros_like(prior.probabilities)
        nothing[0] = 1
        return replace(prior, probabilities=nothing)

    with_atlas = Predictor(loaded, CPU).predict(Case("new", image, None)).stages["coarse"]
    other = Predictor(loaded, CPU, without).predict(Case("new", image, None)).stages["coarse"]  # type: ignore[arg-type]
    assert float(np.abs(with_atlas.probabilities - other.probabilities).max()) > 1e-3


def test_a_dropped_atlas_and_the_way_there_are_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the callback if one is given, otherwise as a Python warning."""
    image, _ = tiny_case(seed=9)
    loaded = bundle.load(model)
    scan = stage_input.prepare(Case("new", image, None), loaded.recipe)
    real, calls = registration.register, itertools.count()

    def fails_first(
        fixed: Volume, moving: Volume, kind: Literal["affine", "deformable"]
    ) -> registration.Warp:
        if next(calls) % 2 == 0:  # of two atlases
            raise registration.RegistrationError("no transform")
        return real(fixed, moving, kind)

    monkeypatch.setattr(registration, "register", fails_first)
    warned: list[str] = []
    seen: list[tuple[str, int, int]] = []
    own = atlas_priors.of_model(loaded, warned.append, lambda *told: seen.append(told))
    assert own is not None
    told = own(scan)
    assert warned == ["new: atlas case_0 is left out: no transform"]
    assert seen == [("new", n, 3) for n in (1, 2, 3)]
    silent = atlas_priors.of_model(loaded)
    assert silent is not None
    with pytest.warns(UserWarning, match="^new: atlas case_0 is left out: no transform$"):
        assert np.array_equal(silent(scan).probabilities, told.probabilities)


def test_a_model_without_its_atlases_says_so(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    shutil.rmtree(copy / atlas_priors.FOLDER)
    with pytest.raises(ModelError, match="atlases"):
        Predictor(bundle.load(copy), CPU)
    loaded = replace(bundle.load(model), folder=None)
    with pytest.raises(ModelError, match="not read from a folder"):
        Predictor(loaded, CPU)


def test_recipes_that_do_not_use_it_want_no_atlas(recipe: Recipe, data: Dataset) -> None:
    assert atlas_priors.uses_atlas(recipe)
    plain = recipe.stages[0].model_copy(update={"inputs": (ImageInput(),)})
    assert not atlas_priors.uses_atlas(recipe.model_copy(update={"stages": (plain,)}))
