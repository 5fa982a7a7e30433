"""``roth2018-cascade`` compared with the figures in the paper (Roth et al. 2018, CMIG 66:90-99)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.tiny_dataset import CPU
from zoomseg.core.case import Case
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.tiling import cover
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.evaluation.upper_bound import dice, oracle
from zoomseg.networks import build as networks
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.cascade import Cascade
from zoomseg.pipeline.grid import stage_grid
from zoomseg.pipeline.stage_input import StageView
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
from zoomseg.study.recipe_edits import overlap


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    loaded = load.load("roth2018-cascade")
    assert isinstance(loaded, Recipe)
    return loaded


def test_where_each_stage_looks(recipe: Recipe) -> None:
    first, second = recipe.stages
    assert first.roi == BodyMask(include_reference=True)
    assert second.roi == DilatedForeground(of="stage1", radius_vox=3, include_reference=True)
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
        assert (stage.grid.padding, stage.grid.beyond) == ("valid", "zero")
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
        assert happens.elastic_distribution == "normal"  # Section 3.1
        assert (happens.rotation_deg, happens.translation_vox) == ((5, 5, 5), 20)
        assert (happens.probability, happens.flip_axes, happens.scale) == (1, (), (1, 1))
        assert (happens.noise, happens.brightness, happens.contrast, happens.blur_vox) == (0, 0, 0, 0)
    shares = [stage.training.budget_share for stage in recipe.stages]
    assert shares == pytest.approx([200 / 315, 115 / 315], abs=1e-3)


def test_a_tile_of_132x132x116_answers_44x44x28_with_19_million_parameters(recipe: Recipe) -> None:
    """Fig. 5 and Section 3.5; seven organs and background (Table 1)."""
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


def irregular(shape: tuple[int, int, int]) -> Region:
    """Two oblique ellipsoids and a thin tube between them, similar to organs: none of its sides is flat."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    one = ((i - 70) / 55) ** 2 + ((j - 60 - 0.2 * k) / 40) ** 2 + ((k - 50) / 37) ** 2 < 1
    other = ((i - 150) / 31) ** 2 + ((j - 90) / 47) ** 2 + ((k - 95 + 0.1 * i) / 29) ** 2 < 1
    tube = (j - 75 - 0.1 * i) ** 2 + (k - 66) ** 2 < 20
    box, mask = Box((0, 0, 0), shape), one | other | (tube & (i > 60) & (i < 160))
    return Region(Grid(shape, np.eye(4)), box, mask)


def answers(stage: Stage, region: Region) -> np.ndarray:
    """Number of tiles that predict each voxel of the region."""
    halo = network_shapes.halo(stage.network, stage.grid.padding)
    tiling = cover(region, stage.grid.tile, halo, stage.grid.overlap, stage.grid.placement)
    count = np.zeros(region.grid.shape, dtype=np.int64)
    for tile in tiling.tiles:
        assert region.mask_in(tile.inner).any()
        count[tile.inner.intersect(region.grid.box).slices] += 1
    return count[region.mask_in(region.grid.box)]


def test_each_stage_answers_every_voxel_as_often_as_the_paper_says(recipe: Recipe) -> None:
    """Section 2.4: first non-overlapping tiles, then a 4x higher sampling rate (R in equation 5)."""
    region = irregular((203, 157, 131))
    first, second = recipe.stages
    assert np.array_equal(np.unique(answers(first, region)), [1])
    assert np.array_equal(np.unique(answers(second, region)), [4])


def test_tiles_stand_on_the_scan_s_own_lattice(recipe: Recipe) -> None:
    """Fig. 5: 44 x 44 x 28 voxels, regardless of C2; the released code begins at the first voxel."""
    region = irregular((203, 157, 131))
    (side_by_side,) = (s for s in overlap("stage2", 0.0)(recipe).stages if s.name == "stage2")
    halo = network_shapes.halo(side_by_side.network, side_by_side.grid.padding)
    assert side_by_side.grid.placement == "lattice"
    tiling = cover(region, side_by_side.grid.tile, halo, side_by_side.grid.overlap, "lattice")
    starts = np.array([tile.inner.start for tile in tiling.tiles])
    assert not (starts % (44, 44, 28)).any()
    assert np.array_equal(np.unique(answers(side_by_side, region)), [1])


def test_an_even_spread_answers_more_often(recipe: Recipe) -> None:
    """In other recipes, tiles stay inside the region's box and overlap by what is left over."""
    region = irregular((203, 157, 131))
    first = recipe.stages[0]
    spread = first.model_copy(update={"grid": first.grid.model_copy(update={"placement": "spread"})})
    assert 1.2 < answers(spread, region).mean() < 2


# --- no post-processing ---------------------------------------------------------------------------

LIVER = LabelSchema(("liver",), (1,))
PLANES, MISSED, RADIUS, MARGIN = 40, 10, 3, 5
"""In voxels of the stages' grids (4 mm): the length of the liver, and the quarter of it that stage 1 misses;
the extent of C2 beyond the prediction of stage 1, and that of an expanded region (20 mm)."""


def scan_of_a_liver() -> tuple[Case, LabelMap]:
    """A block of ``PLANES`` planes in tissue, with voxels of 2 mm; its labels without the last quarter."""
    grid = Grid.from_spacing((2 * PLANES + 8, 40, 40), (2.0, 2.0, 2.0))
    drawn = np.zeros(grid.shape, dtype=np.uint8)
    drawn[4 : 4 + 2 * PLANES, 8:32, 8:32] = 1
    seen = drawn.copy()
    seen[4 + 2 * (PLANES - MISSED) :] = 0
    image = Volume(np.full((1, *grid.shape), 40.0, dtype=np.float32), grid)
    return Case("a", image, LabelMap(drawn, grid, LIVER)), LabelMap(seen, grid, LIVER)


def test_beyond_the_scan_networks_read_zeros(recipe: Recipe) -> None:
    """Of stage 2, as in the released networks: 500 HU. The scan has 40 HU everywhere."""
    scan = stage_input.prepare(scan_of_a_liver()[0], recipe)
    stage = recipe.stages[1]
    grid = stage_grid(stage.grid, scan.grid)
    box = Box((-3, 0, grid.shape[2] - 2), (2, 4, grid.shape[2] + 1))
    shown = stage_input.image_in(StageView(stage, grid, Region.whole(grid)), scan, box)
    expected = np.zeros((1, *box.shape))
    expected[:, 3:, :, :2] = (40 + 2000) / 5000 * 2 - 1
    assert np.asarray(shown) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("expansion", "found"), [(False, PLANES - MISSED + RADIUS), (True, PLANES - MISSED + RADIUS + MARGIN)]
)
def test_what_c2_leaves_out_stays_out_unless_the_recipe_says_otherwise(
    recipe: Recipe, expansion: bool, found: int
) -> None:
    """Section 5: "No post-processing was applied". Both stages are oracles, but that of stage 1 returns only
    three quarters of the liver: the Dice is 0.904 as published, and 0.974 with an expanded region."""
    case, seen = scan_of_a_liver()
    assert case.labels is not None
    networks = {"stage1": oracle(seen), "stage2": oracle(case.labels)}
    assert not recipe.roi_expansion
    changed = recipe.model_copy(update={"roi_expansion": expansion})
    result = Cascade(changed, LIVER, lambda view: networks[view.stage.name](view), CPU).run(case)
    assert dice(result.labels.data, case.labels)["liver"] == 2 * found / (found + PLANES)
    assert result.records[1].widened == (("liver",) if expansion else ())
