"""``roth2018-pyramid`` compared with the paper (Roth et al. 2018, MICCAI), and its gradients end to end."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.small_recipes import shrunk
from helpers.tiny_dataset import CPU, tiny_dataset
from zoomseg.datasets.layouts import Dataset
from zoomseg.networks import build as networks
from zoomseg.recipe import graph, load, network_shapes
from zoomseg.recipe.spec import (
    AdamW,
    Downsample,
    Foreground,
    ImageInput,
    PriorInput,
    Recipe,
    SoftDice,
    UNet3D,
)
from zoomseg.training import loop
from zoomseg.training.data.patches import Batch, PatchSource
from zoomseg.training.log import NullObserver
from zoomseg.training.stage_group import StageGroup


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    loaded = load.load("roth2018-pyramid")
    assert isinstance(loaded, Recipe)
    return loaded


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


def test_levels(recipe: Recipe) -> None:
    grids = [stage.grid for stage in recipe.stages]
    assert [g.factor for g in grids if isinstance(g, Downsample)] == [(4, 4, 4), (2, 2, 2)]  # ds_1 = 2^S
    assert recipe.stages[0].inputs == (ImageInput(),)
    assert recipe.stages[1].inputs == (ImageInput(), PriorInput(of="level1"))
    assert [group.trained for group in graph.training_groups(recipe)] == [("level1", "level2")]
    for stage in recipe.stages:
        assert stage.network == UNet3D(channels=(64, 128, 256, 512))
        assert stage.grid.padding == "same"
        assert stage.training.patch == (64, 64, 64)
        assert all(n > 64 for n in stage.grid.tile)  # "larger input size" at prediction
        assert network_shapes.check_input_shape(stage.network, "same", stage.grid.tile) == stage.grid.tile


def test_how_it_learns(recipe: Recipe) -> None:
    training = recipe.stages[1].training
    assert training == recipe.stages[0].training
    assert (training.batch, training.distinct_cases, training.iterations) == (3, True, 20_000)
    assert isinstance(training.sampler, Foreground)
    assert isinstance(training.loss, SoftDice)
    assert training.optimiser == AdamW(lr=1e-3, weight_decay=0)  # without weight decay it equals Adam


def test_each_level_has_over_19_million_parameters() -> None:
    with torch.device("meta"):
        for channels in (1, 8):  # the image; the image and the maps of seven organs
            module = networks.build(UNet3D(channels=(64, 128, 256, 512)), channels, 8, "same")
            assert 19.0e6 < networks.parameters(module) < 19.2e6


def pyramid(data: Dataset, levels: int) -> Recipe:
    """The recipe for the tiny data set; with three levels, another one is added below (ds_1 = 8)."""
    small = shrunk("roth2018-pyramid", data, iterations=2)
    if levels == 2:
        return small
    first, second = small.stages
    lowest = first.model_copy(
        update={"name": "level0", "grid": first.grid.model_copy(update={"factor": (8, 8, 8)})}
    )
    first = first.model_copy(update={"inputs": (ImageInput(), PriorInput(of="level0"))})
    names = ("level0", "level1", "level2")
    return small.model_copy(update={"stages": (lowest, first, second), "train_together": (names,)})


def one_batch(recipe: Recipe, data: Dataset, out: Path, names: tuple[str, ...]) -> tuple[StageGroup, Batch]:
    run = loop._Run(data, loop.Split(data.ids, ()), recipe, out, loop.LoopSettings(CPU), NullObserver())
    group = run._group(0)
    source = PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    return group, source.draw(3, np.random.default_rng(1))


@pytest.mark.parametrize("levels", [2, 3])
def test_levels_share_the_patch_centre_and_each_sees_twice_as_far(
    levels: int, data: Dataset, tmp_path: Path
) -> None:
    recipe = pyramid(data, levels)
    names = tuple(s.name for s in recipe.stages)
    _, batch = one_batch(recipe, data, tmp_path, names)
    assert len(set(batch.cases)) == 3  # "sampled from different CT volumes"
    for low, high in itertools.pairwise(names):
        for below, above in zip(batch.stages[low].grids, batch.stages[high].grids, strict=True):
            assert np.allclose(np.array(below.extent_mm), 2 * np.array(above.extent_mm))


@pytest.mark.parametrize("levels", [2, 3])
def test_the_lowest_level_learns_from_the_highest_loss_alone(
    levels: int, data: Dataset, tmp_path: Path
) -> None:
    """The gradient passes every upsampling and crop between them: autograd is compared with a finite
    difference."""
    recipe = pyramid(data, levels)
    names = tuple(s.name for s in recipe.stages)
    group, batch = one_batch(recipe, data, tmp_path, names)

    def loss() -> torch.Tensor:
        return group.forward(batch, group.modules)[0]["level2"]

    weights = list(group.modules[names[0]].parameters())
    gradient = torch.autograd.grad(loss(), weights)
    length = float(torch.sqrt(sum((g.square().sum() for g in gradient), torch.zeros(()))))
    assert length > 0
    values = []
    # A step along the gradient, where the loss (about one, in float32) changes most, so small that few units
    # change their sign: the difference quotient converges to the length of the gradient.
    step = 5e-5
    for delta in (step, -step):
        with torch.no_grad():
            for w, g in zip(weights, gradient, strict=True):
                w += delta * g / length
            values.append(float(loss().detach()))
            for w, g in zip(weights, gradient, strict=True):
                w -= delta * g / length
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(length, rel=0.02)


def test_trained_separately_no_gradient_reaches_the_lower_level(data: Dataset, tmp_path: Path) -> None:
    """As in the ablation, ``train_together`` is empty."""
    recipe = pyramid(data, 2).model_copy(update={"train_together": ()})
    assert [group.trained for group in graph.training_groups(recipe)] == [("level1",), ("level2",)]
    run = loop._Run(data, loop.Split(data.ids, ()), recipe, tmp_path, loop.LoopSettings(CPU), NullObserver())
    run.finished |= run._group(0).finished()
    group = run._group(1)
    source = PatchSource(recipe, group.stages, run._pack(group).train, run.schemas)
    losses, _ = group.forward(source.draw(3, np.random.default_rng(1)), group.modules)
    assert losses.keys() == {"level2"}
    losses["level2"].backward()
    assert all(p.grad is None for p in group.modules["level1"].parameters())
    assert any(
        float(p.grad.abs().max()) > 0 for p in group.modules["level2"].parameters() if p.grad is not None
    )
