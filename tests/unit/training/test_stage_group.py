"""One step of stages trained together: gradients between them, averaged weights, measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny_dataset import CPU, retrained, tiny_dataset, tiny_recipe
from zoomseg.backends.device import Device
from zoomseg.core.labels import IGNORE
from zoomseg.datasets.layouts import Dataset
from zoomseg.recipe.spec import SGD, AdamW, ImageInput, OptimiserSpec, PriorInput, Recipe
from zoomseg.training import loop, stage_group
from zoomseg.training.data.patches import Batch, PatchSource, StageBatch
from zoomseg.training.log import NullObserver, RunningDice
from zoomseg.training.loop import LoopSettings, Split
from zoomseg.training.stage_group import StageGroup, overlaps

SPLIT = Split(("case_0", "case_1", "case_2"), ("case_3",))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


def drawn(data: Dataset, recipe: Recipe, out: Path) -> tuple[StageGroup, Batch]:
    """Both stages of a recipe, trained together, and a batch for them."""
    run = loop._Run(data, SPLIT, recipe, out, LoopSettings(CPU), NullObserver())
    group = run._group(0)
    source = PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    return group, source.draw(2, np.random.default_rng(0))


def learn(group: StageGroup, batch: Batch) -> dict[str, float] | None:
    dice = {name: RunningDice(3, 1.0) for name in group.trained}
    losses = group.train_step(batch, dice, measure=True)
    group.step += 1
    return losses


def test_end_to_end_gradient_reaches_the_coarse_network_from_the_fine_loss_alone(
    data: Dataset, tmp_path: Path
) -> None:
    """Autograd through softmax, resampling and crop against a finite difference of the fine loss."""
    recipe = tiny_recipe(together=True)
    group, batch = drawn(data, recipe, tmp_path / "m")
    weight = group.modules["coarse"].heads[0].weight
    fine = group.forward(batch, group.modules)[0]["fine"]
    (gradient,) = torch.autograd.grad(fine, weight)
    assert float(gradient.abs().max()) > 0
    at = int(gradient.abs().argmax())
    values = []
    for delta in (1e-2, -1e-2):
        with torch.no_grad():
            weight.view(-1)[at] += delta
            values.append(float(group.forward(batch, group.modules)[0]["fine"]))
            weight.view(-1)[at] -= delta
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(gradient.view(-1)[at]), rel=0.03)


def test_a_dropped_channel_of_a_prior_is_zero(data: Dataset, tmp_path: Path) -> None:
    group, batch = drawn(data, tiny_recipe(together=True), tmp_path / "m")
    inputs: list[torch.Tensor] = []
    group.modules["fine"].register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    group.forward(batch, group.modules)
    shown = torch.tensor([[True, False], [False, True]])
    stages = {**batch.stages, "fine": replace(batch.stages["fine"], shown=(shown,))}
    group.forward(replace(batch, stages=stages), group.modules)
    whole, dropped = inputs
    assert float(whole[:, 1:].amax()) > 0
    assert torch.equal(dropped[:, :1], whole[:, :1])  # the image
    assert torch.equal(dropped[:, 1:], whole[:, 1:] * shown[:, :, None, None, None])


def test_the_channel_of_a_label_is_found_among_those_that_are_stored(data: Dataset, tmp_path: Path) -> None:
    """Of three labels, those that the stage reads, in the prior's order."""
    recipe = tiny_recipe(together=False)
    run = loop._Run(data, SPLIT, recipe, tmp_path / "m", LoopSettings(CPU), NullObserver())
    group = replace(run._group(1), labels={"coarse": ("aorta", "liver", "spleen")})
    image, stored = torch.zeros(1, 1, 2, 2, 2), torch.arange(24.0).reshape(1, 3, 2, 2, 2)
    target, counts = torch.zeros(1, 2, 2, 2, dtype=torch.uint8), torch.ones(1, 3)
    patch = StageBatch(image, target, counts, (), None, {"coarse": stored}, (), None)
    prior = PriorInput(of="coarse", labels=("spleen", "liver"))
    stage = group.last_stage.model_copy(update={"inputs": (ImageInput(), prior)})
    shown = group._assemble(stage, patch, Batch(("a",), {"fine": patch}), {})
    assert torch.equal(shown, torch.cat([image, stored[:, [2, 1]]], dim=1))


def test_a_prior_is_zero_beyond_the_scan_where_the_image_is(data: Dataset, tmp_path: Path) -> None:
    group, batch = drawn(data, tiny_recipe(together=True), tmp_path / "m")
    inputs: list[torch.Tensor] = []
    group.modules["fine"].register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    group.forward(batch, group.modules)
    within = torch.rand(batch.stages["fine"].target_BIJK.shape) < 0.5
    stages = {**batch.stages, "fine": replace(batch.stages["fine"], within_BIJK=within)}
    group.forward(replace(batch, stages=stages), group.modules)
    whole, cleared = inputs
    assert torch.equal(cleared[:, 1:], whole[:, 1:] * within[:, None])


def test_averaged_weights_follow_the_last_ones_by_the_decay(data: Dataset, tmp_path: Path) -> None:
    group, batch = drawn(data, tiny_recipe(together=True), tmp_path / "m")
    key = "heads.0.weight"
    for step in range(3):
        before = group.final_weights["fine"][key].clone()
        assert learn(group, batch) is not None
        decay = min(0.9, (1 + step) / (10 + step))  # early steps are forgotten faster
        last = group.modules["fine"].state_dict()[key]
        assert torch.allclose(
            group.final_weights["fine"][key], decay * before + (1 - decay) * last, atol=1e-6
        )
        assert not torch.equal(group.final_weights["fine"][key], last)


class _Norm(torch.nn.Module):
    """A batch norm of the image alone, whose mean says which patches it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm3d(1)
        self.head = torch.nn.Conv3d(1, 3, 1)

    def forward(self, x_BCIJK: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.head(self.norm(x_BCIJK[:, :1])),)

    @property
    def mean(self) -> float:
        return float(self.norm.state_dict()["running_mean"])


def shown_brightness(data: Dataset, out: Path) -> tuple[StageGroup, _Norm, Callable[[float], None]]:
    """A group of one stage with one batch norm, and a training step on one patch with this mean."""
    recipe = retrained(tiny_recipe(together=False), batch=1, ema_decay=0.0)
    run = loop._Run(data, SPLIT, recipe, out, LoopSettings(CPU), NullObserver())
    group, module = run._group(0), _Norm()
    group.modules["coarse"] = module
    source = PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    batch = source.draw(1, np.random.default_rng(0))
    patch = batch.stages["coarse"]

    def show(value: float) -> None:
        image = patch.image_BCIJK - patch.image_BCIJK.mean() + value
        bright = replace(batch, stages={"coarse": replace(patch, image_BCIJK=image)})
        assert group.train_step(bright, {"coarse": RunningDice(3, 1.0)}, measure=False) is not None
        group.step += 1

    return group, module, show


def test_statistics_of_batch_norms_are_averages_of_many_steps(data: Dataset, tmp_path: Path) -> None:
    """Early steps lose their weight faster, as for averaged weights; later each step has a hundredth."""
    group, module, show = shown_brightness(data, tmp_path / "m")
    mean = 0.0
    for step, value in enumerate((1.0, -1.0, 3.0)):
        show(value)
        share = 9 / (10 + step)
        mean = (1 - share) * mean + share * value
        assert module.mean == pytest.approx(mean, abs=1e-4)
    group.step = 5000
    show(2.0)
    assert module.mean == pytest.approx(0.99 * mean + 0.01 * 2, abs=1e-4)


def test_a_prediction_hardly_depends_on_which_patch_came_last(data: Dataset, tmp_path: Path) -> None:
    """Of dark and bright patches in turn, its statistics are the mean of both, after either."""
    _, module, show = shown_brightness(data, tmp_path / "m")
    means = []
    for step in range(302):
        show(float(step % 2))
        means.append(module.mean)
    assert means[-2:] == pytest.approx([0.5, 0.5], abs=0.01)  # with torch's own decay: 0.47 and 0.53


def test_without_decay_the_last_weights_are_kept(data: Dataset, tmp_path: Path) -> None:
    group, batch = drawn(data, retrained(tiny_recipe(together=True), ema_decay=0.0), tmp_path / "m")
    learn(group, batch)
    learn(group, batch)
    for name in group.trained:
        for key, value in group.modules[name].state_dict().items():
            assert torch.equal(group.final_weights[name][key], value)


def test_a_step_follows_the_schedule_and_lowers_the_loss(data: Dataset, tmp_path: Path) -> None:
    group, batch = drawn(data, tiny_recipe(together=True, iterations=40), tmp_path / "m")
    first = learn(group, batch)
    rates = []
    for _ in range(15):
        last = learn(group, batch)
        rates.append(group.optimiser.param_groups[0]["lr"])
    assert first is not None
    assert last is not None
    assert all(last[name] < first[name] for name in group.trained)
    assert rates == sorted(rates, reverse=True)  # half a cosine, down
    assert rates[-1] < rates[0] < group.last_stage.training.optimiser.lr


@pytest.mark.parametrize(
    ("spec", "after"),
    [
        # The gradient is 2 each time, plus decay times weight; momentum keeps half of the last velocity.
        (SGD(lr=0.1, momentum=0.0), [0.8, 0.6]),
        (SGD(lr=0.1, momentum=0.5), [0.8, 0.5]),
        (SGD(lr=0.1, momentum=0.5, nesterov=True), [0.7, 0.35]),
        (SGD(lr=0.1, momentum=0.0, weight_decay=0.5), [0.75, 0.5125]),
        # Steps of the learning rate in the gradient's direction; the decay is apart from it.
        (AdamW(lr=0.1, weight_decay=0.0), [0.9, 0.8]),
        (AdamW(lr=0.1, weight_decay=0.5), [0.85, 0.7075]),
        (AdamW(lr=0.1, weight_decay=0.0, eps=1.0), [1 - 0.2 / 3, 1 - 0.4 / 3]),
    ],
    ids=str,
)
def test_an_optimiser_steps_as_its_spec_says(spec: OptimiserSpec, after: list[float]) -> None:
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimiser = stage_group._optimiser(spec, [weight])
    for expected in after:
        optimiser.zero_grad()
        (2 * weight).backward()
        optimiser.step()
        assert float(weight.detach()) == pytest.approx(expected, abs=1e-5)


def test_adamw_forgets_gradients_by_its_betas() -> None:
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimiser = stage_group._optimiser(AdamW(lr=0.1, betas=(0.5, 0.5), weight_decay=0.0), [weight])
    (2 * weight).backward()
    optimiser.step()
    optimiser.zero_grad()
    (-4 * weight).backward()
    optimiser.step()
    # Means of the gradients 2 and -4, and of their squares, by 1/3 and 2/3.
    assert float(weight.detach()) == pytest.approx(0.9 + 0.1 * 2 / 12**0.5, abs=1e-5)


def test_judging_changes_no_weight_and_uses_the_averaged_ones(data: Dataset, tmp_path: Path) -> None:
    group, batch = drawn(data, tiny_recipe(together=True), tmp_path / "m")
    learn(group, batch)
    before = {k: v.clone() for k, v in group.modules["fine"].state_dict().items()}
    dice = {name: RunningDice(3, 1.0) for name in group.trained}
    judged = group.validate((batch,), dice)
    assert all(torch.equal(before[k], v) for k, v in group.modules["fine"].state_dict().items())
    for name in group.trained:
        group.modules[name].load_state_dict(group.final_weights[name])
        group.modules[name].eval()
    with torch.no_grad():
        losses, _ = group.forward(batch, group.modules)
    for name in group.trained:
        assert judged[name] == pytest.approx(float(losses[name]), rel=1e-5)


def test_finished_networks_are_averaged_and_frozen(data: Dataset, tmp_path: Path) -> None:
    group, batch = drawn(data, tiny_recipe(together=True), tmp_path / "m")
    learn(group, batch)
    averaged = {k: v.clone() for k, v in group.final_weights["coarse"].items()}
    module = group.finished()["coarse"]
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert all(torch.equal(averaged[k], v) for k, v in module.state_dict().items())


def test_overlaps_count_agreement_and_both_sizes() -> None:
    """Four voxels: right, wrong, right, not counted. The prediction is smaller than the target by one voxel
    on each side of one axis, as with valid convolutions."""
    target = torch.tensor([9, 1, 2, 0, IGNORE, 9], dtype=torch.uint8).reshape(1, 6, 1, 1)
    guess = torch.tensor([1, 1, 0, 2])
    probabilities = torch.nn.functional.one_hot(guess, 3).T.float().reshape(1, 3, 4, 1, 1)
    overlap, size = overlaps(probabilities, target)
    assert overlap == [1, 1, 0]
    assert size == [1 + 1, 1 + 2, 1 + 0]


def test_an_organ_found_where_it_is_not_annotated_counts_as_background() -> None:
    target = torch.tensor([[1, 0, 0], [1, 0, 2]], dtype=torch.uint8).reshape(2, 3, 1, 1)
    guess = torch.tensor([[1, 2, 1], [1, 2, 2]])
    probabilities = torch.nn.functional.one_hot(guess, 3).movedim(-1, 1).float().reshape(2, 3, 3, 1, 1)
    annotated = torch.tensor([[True, True, False], [True, True, True]])
    assert overlaps(probabilities, target) == ([0, 2, 1], [3, 2 + 3, 1 + 3])
    # The first case's 2 is background there, and right; the second's is as wrong as it was.
    assert overlaps(probabilities, target, annotated) == ([1, 2, 1], [3 + 1, 2 + 3, 1 + 2])


@pytest.mark.parametrize(("patch", "half"), [((16, 16, 12), True), ((4, 16, 12), False)])
def test_no_bfloat16_on_a_cpu_where_feature_maps_are_two_voxels_long(
    data: Dataset, tmp_path: Path, patch: tuple[int, int, int], half: bool
) -> None:
    """torch reads uninitialised memory there: gradients would be arbitrary, or not finite."""
    recipe = tiny_recipe(together=False)
    training = recipe.stages[0].training.model_copy(update={"patch": patch})
    coarse = recipe.stages[0].model_copy(update={"training": training})
    recipe = recipe.model_copy(update={"stages": (coarse,)})
    device = Device("cpu", bfloat16=True)
    run = loop._Run(data, SPLIT, recipe, tmp_path, LoopSettings(device), NullObserver())
    group = run._group(0)
    source = PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    seen: list[torch.dtype] = []
    group.modules["coarse"].heads[0].register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    learn(group, source.draw(2, np.random.default_rng(0)))
    assert seen == [torch.bfloat16 if half else torch.float32]
