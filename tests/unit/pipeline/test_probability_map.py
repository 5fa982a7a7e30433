"""Probabilities at a scan's resolution: every stage's own in its region, interpolated, by its fusion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.tiny_dataset import SCHEMA, tiny_recipe
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.resample import resample_data
from zoomseg.pipeline import probability_map as module
from zoomseg.pipeline.fusion import times_atlas
from zoomseg.pipeline.probability_map import LEVELS, probability_map
from zoomseg.recipe.spec import Recipe

SCAN = Grid.from_spacing((20, 18, 16), (1.0, 1.0, 2.0))
COARSE, FINE = SCAN.with_spacing((4.0, 4.0, 4.0)), SCAN.with_spacing((1.5, 1.5, 2.0))
LEFT, RIGHT = SCHEMA.names
HALF_A_LEVEL = 0.5 / LEVELS + 1e-6


def said(
    grid: Grid, region: Region, seed: int, labels: tuple[str, ...] = SCHEMA.names, name: str = "a"
) -> StagePrediction:
    logits = 3 * torch.randn(1 + len(labels), *grid.shape, generator=torch.Generator().manual_seed(seed))
    return StagePrediction(logits.softmax(dim=0), grid, labels, region, name)


def whole(grid: Grid, prediction: StagePrediction, organ: str) -> np.ndarray:
    """The naive way: all of it at once."""
    full = resample_data(prediction.probabilities, prediction.grid, grid, antialias=False)
    return full[prediction.channel(organ)].numpy()


def inside(region: Region) -> np.ndarray:
    return region.on(SCAN).mask_in(SCAN.box)


def recipe(coarse: str, fine: str) -> Recipe:
    made = tiny_recipe(together=True)
    kinds = zip(made.stages, (coarse, fine), strict=True)
    return made.model_copy(update={"stages": tuple(s.model_copy(update={"fusion": k}) for s, k in kinds)})


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    assert found.dtype == np.uint8
    return bool(np.abs(found / LEVELS - expected).max() <= HALF_A_LEVEL)


@pytest.fixture
def region() -> Region:
    found = Region.of_mask(FINE, np.random.default_rng(0).random(FINE.shape) < 0.4)
    assert found is not None
    return found


@pytest.fixture
def stages(region: Region) -> dict[str, StagePrediction]:
    return {"coarse": said(COARSE, Region.whole(COARSE), 1), "fine": said(FINE, region, 2)}


@pytest.mark.parametrize("block", [10**9, 700])
def test_the_last_stage_inside_its_region_the_one_before_outside(
    stages: dict[str, StagePrediction], region: Region, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks as at once."""
    cut = module.blocks
    monkeypatch.setattr(module, "blocks", lambda box: cut(box, block))
    expected = np.where(
        inside(region), whole(SCAN, stages["fine"], LEFT), whole(SCAN, stages["coarse"], LEFT)
    )
    found = probability_map(LEFT, SCAN, recipe("replace_in_roi", "replace_in_roi"), stages)
    assert close(found, expected)
    assert 0 < inside(region).mean() < 1


def test_a_stage_that_does_not_enter_is_not_there(stages: dict[str, StagePrediction], region: Region) -> None:
    expected = inside(region) * whole(SCAN, stages["fine"], RIGHT)
    assert close(probability_map(RIGHT, SCAN, recipe("none", "replace_in_roi"), stages), expected)


def test_a_stage_that_had_nowhere_to_look_says_nothing(stages: dict[str, StagePrediction]) -> None:
    found = probability_map(
        LEFT, SCAN, recipe("replace_in_roi", "replace_in_roi"), {"coarse": stages["coarse"]}
    )
    assert close(found, whole(SCAN, stages["coarse"], LEFT))


def test_paste_is_about_its_own_organs_alone(stages: dict[str, StagePrediction], region: Region) -> None:
    pasted = recipe("replace_in_roi", "paste")
    stages["fine"] = said(FINE, region, 3, (LEFT,))
    expected = inside(region) * whole(SCAN, stages["fine"], LEFT)
    assert close(probability_map(LEFT, SCAN, pasted, stages), expected)
    assert close(probability_map(RIGHT, SCAN, pasted, stages), whole(SCAN, stages["coarse"], RIGHT))
    replaced = recipe("replace_in_roi", "replace_in_roi")
    expected = ~inside(region) * whole(SCAN, stages["coarse"], RIGHT)
    assert close(probability_map(RIGHT, SCAN, replaced, stages), expected)


def test_of_stages_that_answer_together_the_highest(
    stages: dict[str, StagePrediction], region: Region
) -> None:
    together = recipe("most_probable", "most_probable")
    both = [whole(SCAN, stages["coarse"], LEFT), inside(region) * whole(SCAN, stages["fine"], LEFT)]
    assert close(probability_map(LEFT, SCAN, together, stages), np.maximum(*both))


def test_times_the_atlas(stages: dict[str, StagePrediction], region: Region) -> None:
    atlas = said(COARSE, Region.whole(COARSE), 5, name="atlas")
    found = probability_map(LEFT, SCAN, recipe("none", "replace_times_atlas"), stages, atlas)
    product = times_atlas(stages["fine"], atlas)
    assert close(found, inside(region) * whole(SCAN, product, LEFT))
    assert not close(found, inside(region) * whole(SCAN, stages["fine"], LEFT))


def test_a_region_in_one_corner(stages: dict[str, StagePrediction]) -> None:
    corner = Region(FINE, Box((0, 0, 0), (3, 4, 2)))
    stages["fine"] = replace(stages["fine"], region=corner)
    found = probability_map(LEFT, SCAN, recipe("none", "replace_in_roi"), stages)
    assert close(found, inside(corner) * whole(SCAN, stages["fine"], LEFT))


def test_votes_have_no_probability(stages: dict[str, StagePrediction]) -> None:
    with pytest.raises(RecipeError, match=r"its stages fine vote for every voxel"):
        probability_map(LEFT, SCAN, recipe("replace_in_roi", "majority_vote"), stages)
