"""``roth2018-cascade`` against the figures of the paper (Roth et al. 2018, CMIG 66:90-99)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.tiling import cover
from zoomseg.networks import build as networks
from zoomseg.recipe import graph, load, network_shapes
from zoomseg.recipe.spec import (
    SGD,
    BodyMask,
    DilatedForeground,
    Downsample,
    ImageInput,
    Recipe,
    Stage,
    StepDecay,
    UNet3D,
    UniformInRegion,
    WeightedCrossEntropy,
    Window,
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    loaded = load.load("roth2018-cascade")
    assert isinstance(loaded, Recipe)
    return loaded


def test_where_each_stage_looks(recipe: Recipe) -> None:
    first, second = recipe.stages
    assert first.roi == BodyMask()
    assert second.roi == DilatedForeground(of="stage1", radius_vox=3)
    assert recipe.prior_from == "predictions"
    assert [group.trained for group in graph.training_groups(recipe)] == [("stage1",), ("stage2",)]
    assert graph.ancestors(recipe, "stage2") == ("stage1",)


def test_what_both_stages_share(recipe: Recipe) -> None:
    first, second = (graph.intensity_of(recipe, stage) for stage in recipe.stages)
    assert first == Window(lower=-500, upper=500, output=(0, 1), zero_mean=True)
    assert second == Window(lower=-2000, upper=3000, output=(-1, 1))
    for stage in recipe.stages:
        assert isinstance(stage.grid, Downsample)
        assert stage.grid.factor == (2, 2, 2)
        assert stage.grid.tile == stage.training.patch == (132, 132, 116)
        assert stage.grid.padding == "valid"
        assert stage.inputs == (ImageInput(),)
        assert stage.network == UNet3D(channels=(64, 128, 256, 512))
        assert stage.labels == "all"
        assert stage.fusion == "replace_in_roi"


def test_how_both_stages_learn(recipe: Recipe) -> None:
    for stage, iterations in zip(recipe.stages, (200_000, 115_000), strict=True):
        training = stage.training
        assert training.iterations == iterations
        assert training.batch == 1
        assert training.sampler == UniformInRegion()
        assert training.loss == WeightedCrossEntropy(normalisation="weights")
        assert training.mask_loss
        assert training.optimiser == SGD(lr=1e-3, momentum=0.99, nesterov=False, weight_decay=0)
        assert training.schedule == StepDecay(every=30_000, factor=0.1)
        assert training.gradient_clip == training.ema_decay == 0
        happens = training.augmentation
        assert (happens.elastic_vox, happens.elastic_grid_vox) == (4, 32)
        assert (happens.rotation_deg, happens.translation_vox) == ((5, 5, 5), 20)
        assert (happens.probability, happens.flip_axes, happens.scale) == (1, (), (1, 1))
        assert (happens.noise, happens.brightness, happens.contrast, happens.blur_vox) == (0, 0, 0, 0)
    shares = [stage.training.budget_share for stage in recipe.stages]
    assert shares == pytest.approx([200 / 315, 115 / 315], abs=1e-3)


def test_a_tile_of_132x132x116_answers_44x44x28_with_19_million_parameters(recipe: Recipe) -> None:
    """Fig. 5 and Section 3.5; seven organs and the background (Table 1)."""
    for stage in recipe.stages:
        assert network_shapes.check_input_shape(stage.network, stage.grid.padding, stage.grid.tile) == (
            44,
            44,
            28,
        )
        with torch.device("meta"):
            module = networks.build(stage.network, 1, 8, stage.grid.padding).eval()
            logits = module(torch.zeros(1, 1, *stage.grid.tile))
        assert [tuple(t.shape) for t in logits] == [(1, 8, 44, 44, 28)]
        assert 19.05e6 < networks.parameters(module) < 19.09e6


def rate(stage: Stage, step: tuple[int, int, int]) -> float:
    """How many tiles answer for a voxel in the middle of a large region, on average.

    The region is exactly tiled by tiles ``step`` voxels apart, the middle a whole number of steps.
    """
    inner = network_shapes.check_input_shape(stage.network, stage.grid.padding, stage.grid.tile)
    shape = tuple(n + 12 * s for n, s in zip(inner, step, strict=True))
    region = Region.whole(Grid(shape, np.eye(4)))  # type: ignore[arg-type]
    halo = network_shapes.halo(stage.network, stage.grid.padding)
    tiling = cover(region, stage.grid.tile, halo, stage.grid.overlap)
    middle = Box(*(tuple(n * s for s in step) for n in (4, 8)))  # type: ignore[arg-type]
    return sum(tile.inner.intersect(middle).voxels for tile in tiling.tiles) / middle.voxels


def test_stage_2_samples_each_voxel_four_times(recipe: Recipe) -> None:
    """Section 2.4: non-overlapping tiles first, then a 4x higher sampling rate."""
    first, second = recipe.stages
    assert rate(first, (44, 44, 28)) == 1
    assert rate(second, (28, 28, 17)) == pytest.approx((44 / 28) ** 2 * 28 / 17)
    assert rate(second, (28, 28, 17)) == pytest.approx(4, rel=0.02)
