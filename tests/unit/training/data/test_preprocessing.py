"""Preparation of cases for a group: regions from earlier stages or the reference, empty regions,
interruption."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.tiny_dataset import CPU, SCHEMA, tiny_dataset, tiny_recipe
from zoomseg.core.errors import TrainingError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import Dataset
from zoomseg.recipe.spec import BoxAround, FixedShape, ImageInput, Recipe
from zoomseg.training import loop
from zoomseg.training.data.patches import PatchSource
from zoomseg.training.data.preprocessing import PackedCases, Preprocessing, check_annotated
from zoomseg.training.log import NullObserver
from zoomseg.training.loop import LoopSettings, Split

IDS = ("case_0", "case_1")


class Watch(NullObserver):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


class Says(nn.Module):
    """A trained network that predicts one class in the first half of every tile, and background elsewhere."""

    def __init__(self, winner: int) -> None:
        super().__init__()
        self.winner, self.calls = winner, 0

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        logits = torch.zeros(x_BCIJK.shape[0], 3, *x_BCIJK.shape[2:])
        logits[:, 0] = 10.0
        logits[:, self.winner, : x_BCIJK.shape[2] // 2] = 20.0
        return (logits,)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


def prepared(
    data: Dataset, recipe: Recipe, out: Path, index: int, finished: dict[str, nn.Module], watch: Watch
) -> PackedCases:
    run = loop._Run(data, Split(IDS, ("case_2",)), recipe, out, LoopSettings(CPU), watch)
    run.finished |= finished
    group = run._group(index)
    preparation = Preprocessing(data, recipe, run.labels, run.cache, 0, CPU, watch, None)
    return preparation.packs(group, IDS, ("case_2",), lambda case: finished, threading.Event())


def test_a_stage_trained_apart_looks_where_the_finished_one_found_something(
    data: Dataset, tmp_path: Path
) -> None:
    coarse = Says(winner=2)
    packs = prepared(data, tiny_recipe(together=False), tmp_path, 1, {"coarse": coarse}, Watch())
    assert [p.case for p in packs.train["fine"]] == list(IDS)
    assert [p.case for p in packs.validation["fine"]] == ["case_2"]
    stored = packs.train["fine"][0].priors["coarse"]
    probabilities = np.asarray(stored.data.read(stored.grid.box))
    assert probabilities[2, 0, 5, 5] > 0.99
    assert probabilities[0, -1, 5, 5] > 0.99
    assert coarse.calls > 0


def test_stages_that_it_does_not_follow_are_not_run(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(together=False)
    coarse, fine = recipe.stages
    other = coarse.model_copy(update={"name": "other"})
    recipe = recipe.model_copy(update={"stages": (coarse, other, fine)})
    networks: dict[str, nn.Module] = {"coarse": Says(1), "other": Says(1)}
    prepared(data, recipe, tmp_path, 2, networks, Watch())
    bystander = networks["other"]
    assert isinstance(bystander, Says)
    assert bystander.calls == 0


def test_a_case_where_nothing_was_found_is_named_and_left_out(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(together=False).model_copy(update={"on_missing": "empty"})
    watch = Watch()
    with pytest.raises(TrainingError, match="'fine' has an empty region in all training cases"):
        prepared(data, recipe, tmp_path, 1, {"coarse": Says(winner=0)}, watch)
    assert watch.messages == [
        f"{case}: stage 'fine' has an empty region; left out" for case in (*IDS, "case_2")
    ]


def reference_boxed(on_missing: str) -> Recipe:
    """The fine stage without priors, in boxes around the reference."""
    recipe = tiny_recipe(together=False)
    coarse, fine = recipe.stages
    grid = FixedShape(shape=(16, 16, 12), tile=(16, 16, 12))
    roi = BoxAround(of="coarse", margin_mm=4, reference_margin_mm=(2, 6))
    fine = fine.model_copy(update={"roi": roi, "grid": grid, "inputs": (ImageInput(),)})
    return recipe.model_copy(update={"stages": (coarse, fine), "on_missing": on_missing})


def test_a_reference_box_needs_nothing_that_was_found(data: Dataset, tmp_path: Path) -> None:
    coarse, watch = Says(winner=0), Watch()
    recipe = reference_boxed("empty")
    packs = prepared(data, recipe, tmp_path, 1, {"coarse": coarse}, watch)
    assert [p.case for p in packs.train["fine"]] == list(IDS)
    assert coarse.calls == 0
    assert not watch.messages
    for packed in packs.train["fine"]:
        labels = data.load(next(c for c in data.cases if c.id == packed.case)).labels
        assert labels is not None
        at = np.argwhere(labels.data > 0)
        # In mm from the first organ voxel's edge to the last one's, and 6 mm on both sides, up to the scan's.
        mm = np.abs(np.diag(labels.grid.affine)[:3])
        margin = np.ceil(6 / mm).astype(int)
        first = np.maximum(at.min(axis=0) - margin, 0)
        last = np.minimum(at.max(axis=0) + 1 + margin, labels.grid.shape)
        assert sorted(packed.grid.extent_mm) == pytest.approx(sorted((last - first) * mm))


def test_patches_of_a_reference_box_have_margins_between_the_two(data: Dataset, tmp_path: Path) -> None:
    recipe = reference_boxed("empty")
    packs = prepared(data, recipe, tmp_path, 1, {}, Watch())
    schemas = {"fine": LabelSchema.consecutive(SCHEMA.names)}
    lead = packs.train["fine"][0]
    assert lead.reference is not None
    extent = np.array(lead.grid.extent_mm)

    def removed_mm(source: PatchSource, seed: int) -> np.ndarray:  # type: ignore[type-arg]
        """On the low and on the high side of every axis."""
        assert lead.reference is not None
        share, moved = source._box_share(lead, lead.reference, np.random.default_rng(seed))
        both = (1 - share) * extent / 2
        return np.stack([both + moved, both - moved])

    source = PatchSource(recipe, recipe.stages[1:], packs.train, schemas)
    drawn = np.stack([removed_mm(source, seed) for seed in range(200)])
    # Of margins of 2 or 3 voxels of 2 mm, and of 1 or 2 voxels of 3 mm, as prediction rounds them up.
    assert np.unique(drawn[..., 1].round(6)).tolist() == [0, 2]
    assert np.unique(drawn[..., 2].round(6)).tolist() == [0, 3]
    plain = PatchSource(recipe, recipe.stages[1:], packs.train, schemas, augmented=False)
    assert removed_mm(plain, 0)[:, 1:] == pytest.approx(np.array([[2, 0], [2, 0]]))  # 6 - 4 mm


def drawn_in(data: Dataset, drawn: dict[str, set[str]]) -> Dataset:
    """The data set with the given annotated labels in some of its cases."""
    partly = [replace(c, annotated=frozenset(drawn[c.id])) if c.id in drawn else c for c in data.cases]
    return replace(data, cases=tuple(partly))


def test_a_case_without_any_label_of_the_stage_is_named_and_left_out(data: Dataset, tmp_path: Path) -> None:
    coarse = tiny_recipe(together=False).stages[0].model_copy(update={"labels": ("left kidney",)})
    recipe = tiny_recipe(together=False).model_copy(update={"stages": (coarse,)})
    watch = Watch()
    partly = drawn_in(data, {"case_0": {"right kidney"}, "case_2": set(), "case_1": {"left kidney"}})
    packs = prepared(partly, recipe, tmp_path, 0, {}, watch)
    assert [p.case for p in packs.train["coarse"]] == ["case_1"]
    assert not packs.validation["coarse"]
    assert watch.messages == [
        f"{case}: no label of stage 'coarse' is annotated; left out" for case in ("case_0", "case_2")
    ]


def test_a_label_that_no_case_teaches_is_refused(data: Dataset) -> None:
    partly = drawn_in(data, {case: {"left kidney"} for case in IDS})
    check_annotated(partly, (*IDS, "case_2"), "fine", SCHEMA.names)
    check_annotated(partly, IDS, "fine", ("left kidney",))
    with pytest.raises(TrainingError, match="'right kidney' is annotated in none of the 2 cases that stage"):
        check_annotated(partly, IDS, "fine", SCHEMA.names)


def test_stopping_is_possible_between_cases(data: Dataset, tmp_path: Path) -> None:
    run = loop._Run(data, Split(IDS, ()), tiny_recipe(True), tmp_path, LoopSettings(CPU), NullObserver())
    group = run._group(0)
    preparation = Preprocessing(data, run.recipe, run.labels, run.cache, 0, CPU, NullObserver(), None)
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedTrainingError, match="--resume"):
        preparation.packs(group, IDS, (), lambda case: {}, stop)
