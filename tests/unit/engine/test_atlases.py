"""Atlas priors in the engine: from training cases to a model's own atlases."""

from __future__ import annotations

import itertools
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from shrunk import shrunk
from tiny import CPU, tiny_case, tiny_dataset
from zoomseg.atlas import register as registration
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, ModelError
from zoomseg.core.volume import Volume
from zoomseg.engine import atlases, look, train
from zoomseg.engine.log import Silent
from zoomseg.engine.predict import Predictor
from zoomseg.engine.stop import InterruptedTrainingError
from zoomseg.io import bundle
from zoomseg.io.dataset import Dataset
from zoomseg.recipe.spec import ATLAS, AtlasInput, ImageInput, Recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def recipe(data: Dataset) -> Recipe:
    """The small-organ recipe's coarse stage, which also sees the atlas prior."""
    whole = shrunk("valindria2018-small-organs", data, iterations=2)
    coarse = whole.stages[0].model_copy(
        update={"inputs": (ImageInput(), AtlasInput(labels=data.schema.names))}
    )
    return whole.model_copy(update={"stages": (coarse,)})


@pytest.fixture(scope="module")
def model(data: Dataset, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    split = train.Split(("case_0", "case_1", "case_2"), ("case_3",))
    registered = tmp_path_factory.mktemp("registered")
    train.train(data, split, recipe, out, train.Settings(CPU, registered=registered), Silent())
    # Two atlases for each of four cases, and what was fused of them.
    assert len(list(registered.rglob("*.safetensors"))) == 4 * (2 + 1)
    return out


def test_a_model_keeps_its_atlases_and_predicts_with_them(model: Path, data: Dataset) -> None:
    assert "images of up to 2 training patients" in (model / "README.md").read_text()
    image, labels = tiny_case(seed=9)
    loaded = bundle.load(model)
    prior_of = atlases.of_model(loaded)
    assert prior_of is not None
    scan = look.prepare(Case("new", image, labels), loaded.recipe)
    prior = prior_of(scan)
    assert prior.labels == data.schema.names
    assert prior.source == ATLAS
    # The balls of the atlases, moved onto this scan's: mostly inside.
    truth = labels.reoriented(scan.orientation).data
    found = torch.nn.functional.interpolate(prior.probabilities[None], size=truth.shape, mode="trilinear")[
        0
    ].argmax(dim=0)
    for c in (1, 2):
        overlap = int(((found == c) & (truth == c)).sum())
        assert 2 * overlap / int((found == c).sum() + (truth == c).sum()) > 0.6
    result = Predictor(loaded, CPU).predict(Case("new", image, None))
    assert "coarse" in result.priors
    assert ATLAS not in result.priors
    assert result.seconds[ATLAS] > 0


def test_the_prior_reaches_the_network(model: Path) -> None:
    """Another prior, another answer."""
    image, _ = tiny_case(seed=9)
    loaded = bundle.load(model)
    own = atlases.of_model(loaded)
    assert own is not None

    def without(scan: look.Scan) -> object:
        prior = own(scan)
        nothing = torch.zeros_like(prior.probabilities)
        nothing[0] = 1
        return replace(prior, probabilities=nothing)

    with_atlas = Predictor(loaded, CPU).predict(Case("new", image, None)).priors["coarse"]
    other = Predictor(loaded, CPU, without).predict(Case("new", image, None)).priors["coarse"]  # type: ignore[arg-type]
    assert float((with_atlas.probabilities - other.probabilities).abs().max()) > 1e-3


def test_no_case_is_its_own_atlas(data: Dataset, recipe: Recipe) -> None:
    library = atlases.collect(data, data.ids, recipe, Silent(), threading.Event())
    asked: list[str | None] = []

    class Watched(type(library)):  # type: ignore[misc]
        def prior(self, image: object, *, exclude: str | None = None, **rest: object) -> object:
            asked.append(exclude)
            return None

    scan = look.prepare(data.load(data.cases[0]), recipe)
    atlases.of_library(Watched(library.spec, library.schema, library.atlases), None, print)(scan)
    assert asked == ["case_0"]
    assert "case_0" not in [atlas.id for atlas in library.chosen("case_0")]


def test_atlases_are_completely_annotated_cases(data: Dataset, recipe: Recipe) -> None:
    partly = [replace(case, annotated=frozenset({"left kidney"})) for case in data.cases]
    some = replace(data, cases=(*partly[:3], data.cases[3]))
    library = atlases.collect(some, some.ids, recipe, Silent(), threading.Event())
    assert [atlas.id for atlas in library.atlases] == ["case_3"]
    none = replace(data, cases=tuple(partly))
    with pytest.raises(DatasetError, match="annotated completely"):
        atlases.collect(none, none.ids, recipe, Silent(), threading.Event())


def test_stopping_while_atlases_are_read(data: Dataset, recipe: Recipe) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedTrainingError, match="--resume"):
        atlases.collect(data, data.ids, recipe, Silent(), stop)


def test_a_dropped_atlas_and_the_way_there_are_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To those who ask for it; else as a Python warning."""
    image, _ = tiny_case(seed=9)
    loaded = bundle.load(model)
    scan = look.prepare(Case("new", image, None), loaded.recipe)
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
    own = atlases.of_model(loaded, warned.append, lambda *told: seen.append(told))
    assert own is not None
    told = own(scan)
    assert warned == ["new: atlas case_0 is left out: no transform"]
    assert seen == [("new", n, 3) for n in (1, 2, 3)]
    silent = atlases.of_model(loaded)
    assert silent is not None
    with pytest.warns(UserWarning, match="^new: atlas case_0 is left out: no transform$"):
        assert torch.equal(silent(scan).probabilities, told.probabilities)


def test_a_model_without_its_atlases_says_so(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    shutil.rmtree(copy / atlases.FOLDER)
    with pytest.raises(ModelError, match="atlases"):
        Predictor(bundle.load(copy), CPU)
    loaded = replace(bundle.load(model), folder=None)
    with pytest.raises(ModelError, match="not read from a folder"):
        Predictor(loaded, CPU)


def test_recipes_that_do_not_use_it_want_no_atlas(recipe: Recipe, data: Dataset) -> None:
    assert atlases.wanted(recipe)
    plain = recipe.stages[0].model_copy(update={"inputs": (ImageInput(),)})
    assert not atlases.wanted(recipe.model_copy(update={"stages": (plain,)}))
