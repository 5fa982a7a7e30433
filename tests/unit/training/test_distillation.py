"""Teachers' predictions for a patch, their effect on a student, and teachers that do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny_dataset import CPU, retrained, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.backends.torch_networks import ready_network
from zoomseg.core.errors import ModelError
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.tiling import Tile
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.recipe.spec import DiceCrossEntropy, Recipe
from zoomseg.training import distillation, loop, loss
from zoomseg.training.data.patches import Batch, PatchSource
from zoomseg.training.log import NullObserver, RunningDice
from zoomseg.training.loop import LoopSettings, Split
from zoomseg.training.stage_group import StageGroup

WIDER = tiny_recipe(together=True).stages[0].network.model_copy(update={"channels": (12, 24)})
SPLIT = Split(("case_0", "case_1", "case_2"), ("case_3",))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


def saved(folder: Path, model: Bundle) -> Path:
    bundle.save(model, folder)
    return folder


def two_teachers(data: Dataset, root: Path) -> distillation.Teachers:
    models = [saved(root / f"t{seed}", untrained_bundle(seed)) for seed in (11, 12)]
    return distillation.load(models, data, tiny_recipe(together=True))


def drawn(
    data: Dataset, recipe: Recipe, teachers: distillation.Teachers | None, out: Path
) -> tuple[StageGroup, Batch]:
    run = loop._Run(data, SPLIT, recipe, out, LoopSettings(CPU, teachers=teachers), NullObserver())
    group = run._group(0)
    source = PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    return group, source.draw(2, np.random.default_rng(0))


def learn(group: StageGroup, batch: Batch) -> dict[str, float]:
    losses = group.train_step(batch, {name: RunningDice(3, 1.0) for name in group.trained}, measure=True)
    group.step += 1
    assert losses is not None
    return losses


def test_teachers_say_the_mean_of_their_probabilities(data: Dataset, tmp_path: Path) -> None:
    teachers = two_teachers(data, tmp_path)
    x = torch.randn(2, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        each = [ready_network(m, "coarse", CPU)(x)[0].softmax(dim=1) for m in teachers.models]
    said = teachers.networks(["coarse"], CPU)["coarse"](x, ())
    torch.testing.assert_close(said, (each[0] + each[1]) / 2)


def test_loss_is_half_the_references_and_half_the_teachers(data: Dataset, tmp_path: Path) -> None:
    """The teachers have the student's input, including its own coarse prediction as a prior."""
    group, batch = drawn(data, tiny_recipe(together=True), two_teachers(data, tmp_path), tmp_path / "m")
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in group.modules.items():
        module.register_forward_hook(lambda _, x, out, name=name: seen.update({name: (x[0], out[0])}))
    both = group.forward(batch, group.modules)[0]
    networks, group.teachers = group.teachers, {}
    hard = group.forward(batch, group.modules)[0]
    assert seen["fine"][0].shape[1] == 1 + 2
    for name, (x, logits) in seen.items():
        taught, target = networks[name](x, ()).clone(), batch.stages[name].target_BIJK
        soft = loss.soft_cross_entropy(logits, taught, target, loss.all_here)
        assert both[name].item() == pytest.approx((hard[name].item() + soft.item()) / 2, rel=1e-5)


def test_no_gradient_flows_through_the_teachers(data: Dataset, tmp_path: Path) -> None:
    """With their predictions as constants, the coarse network's gradient from the fine loss is the same."""
    group, batch = drawn(data, tiny_recipe(together=True), two_teachers(data, tmp_path), tmp_path / "m")
    weight = group.modules["coarse"].heads[0].weight
    said: list[torch.Tensor] = []
    asked = group.teachers["fine"]

    def remembered(x_BCIJK: torch.Tensor, tiles: tuple[Tile, ...]) -> torch.Tensor:
        said.append(asked(x_BCIJK.detach(), tiles).clone())
        return said[0]

    (found,) = torch.autograd.grad(group.forward(batch, group.modules)[0]["fine"], weight)
    group.teachers = {**group.teachers, "fine": remembered}
    (wanted,) = torch.autograd.grad(group.forward(batch, group.modules)[0]["fine"], weight)
    assert len(said) == 1
    torch.testing.assert_close(found, wanted)


def test_without_a_learning_rate_nothing_changes(data: Dataset, tmp_path: Path) -> None:
    teachers = two_teachers(data, tmp_path)
    group, batch = drawn(data, tiny_recipe(together=True, lr=1e-60), teachers, tmp_path / "m")
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in group.modules.items()}
    learn(group, batch)
    for name, module in group.modules.items():
        assert all(torch.equal(before[name][k], v) for k, v in module.state_dict().items())


def taught_alone(recipe: Recipe) -> Recipe:
    """With a loss without a part from the reference."""
    return retrained(recipe, loss=DiceCrossEntropy(dice_weight=0, cross_entropy_weight=0))


def test_a_student_comes_to_say_what_its_teachers_say(data: Dataset, tmp_path: Path) -> None:
    """Its loss falls to half the entropy of their predictions, and not below."""
    recipe = taught_alone(tiny_recipe(together=False, iterations=80, lr=1e-2))
    teachers = distillation.load([saved(tmp_path / "t", decided(untrained_bundle(11)))], data, recipe)
    run = loop._Run(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU, teachers=teachers), NullObserver())
    group = run._group(0)
    source = PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    batch = source.draw(2, np.random.default_rng(0))
    seen = batch.stages["coarse"]
    q = group.teachers["coarse"](seen.image_BCIJK, ()).clone()
    counts = seen.target_BIJK != IGNORE
    entropy = float(-(q * q.log()).sum(dim=1)[counts].mean())
    excess = [learn(group, batch)["coarse"] - entropy / 2 for _ in range(80)]
    assert min(excess) >= 0
    assert excess[-1] < 0.1 * excess[0]


def decided(model: Bundle) -> Bundle:
    """New networks predict almost uniform probabilities: this one's last layers distinguish all classes."""
    weights = {
        stage: {
            key: torch.tensor([1.0, 0.0, -1.0]) if key.startswith("heads") and key.endswith("bias") else t
            for key, t in tensors.items()
        }
        for stage, tensors in model.weights.items()
    }
    return dataclasses.replace(model, weights=weights)


def test_other_teachers_are_another_training(data: Dataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(together=True)
    teachers = two_teachers(data, tmp_path)

    def fingerprint(taught_by: distillation.Teachers | None) -> str:
        settings = LoopSettings(CPU, teachers=taught_by)
        return loop._Run(data, SPLIT, recipe, tmp_path / "m", settings, NullObserver()).fingerprint

    first = distillation.load([tmp_path / "t11"], data, recipe)
    found = [fingerprint(t) for t in (None, teachers, first)]
    assert len(set(found)) == 3
    assert fingerprint(distillation.load([tmp_path / "t11"], data, recipe)) == found[2]


def changed(model: Bundle, stage: int, **update: object) -> Bundle:
    stages = list(model.recipe.stages)
    stages[stage] = stages[stage].model_copy(update=update)
    recipe = model.recipe.model_copy(update={"stages": tuple(stages)})
    return dataclasses.replace(model, recipe=recipe)


def unfit(kind: str) -> Bundle:
    model = untrained_bundle()
    coarse, fine = model.recipe.stages
    match kind:
        case "grid":
            return changed(model, 1, grid=fine.grid.model_copy(update={"mm": (2.0, 2.0, 2.0)}))
        case "region":
            return changed(model, 1, roi=coarse.roi)
        case "inputs":
            apart = dataclasses.replace(model, recipe=tiny_recipe(together=False))
            return changed(apart, 1, inputs=coarse.inputs)
        case "labels":
            return dataclasses.replace(model, schema=LabelSchema(("left kidney", "spleen"), (3, 7)))
        case "channels":
            return dataclasses.replace(model, channel_names=("MR",))
        case "intensity":
            window = model.recipe.intensity.model_copy(update={"upper": 300.0})
            return dataclasses.replace(model, recipe=model.recipe.model_copy(update={"intensity": window}))
        case "stage":
            recipe = model.recipe.model_copy(update={"stages": (coarse,), "train_together": ()})
            return dataclasses.replace(model, recipe=recipe, weights={"coarse": model.weights["coarse"]})
    strides = ((1, 1, 1), (8, 8, 8))
    return changed(model, 0, network=coarse.network.model_copy(update={"strides": strides}))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("grid", r"stage 'fine': its grid is .*\[2.0, 2.0, 2.0\].*, the recipe's is .*\[2.0, 2.0, 3.0\]"),
        ("region", "stage 'fine': its region is .*whole_volume.*, the recipe's is .*radius_vox': 2"),
        (
            "inputs",
            "stage 'fine': its inputs is image 0, the recipe's is image 0, coarse left kidney, coarse",
        ),
        ("labels", "stage 'coarse': its labels is left kidney, spleen, the recipe's is left kidney, right"),
        ("channels", "its channels is MR, the recipe's is CT"),
        ("intensity", "its intensity is .*300.0.*, the recipe's is .*200.0"),
        ("stage", r"has no stage 'fine' \(it has coarse\)"),
        ("network", "stage 'coarse': its network cannot process the patches: .*12x12x12"),
    ],
)
def test_teachers_that_do_not_fit(data: Dataset, tmp_path: Path, kind: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as refusal:
        distillation.load([saved(tmp_path / "t", unfit(kind))], data, tiny_recipe(together=True))
    assert "\n" not in str(refusal.value)


def test_tiles_and_networks_may_differ(data: Dataset, tmp_path: Path) -> None:
    model = untrained_bundle()
    fine = model.recipe.stages[1]
    model = changed(model, 1, grid=fine.grid.model_copy(update={"tile": (8, 8, 8), "overlap": 0.0}))
    recipe = tiny_recipe(together=True)
    stages = [s.model_copy(update={"network": WIDER}) for s in recipe.stages]
    recipe = recipe.model_copy(update={"stages": tuple(stages)})
    distillation.load([saved(tmp_path / "t", model)], data, recipe)
