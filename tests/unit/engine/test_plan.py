"""Planned numbers follow from the fingerprint by the rules that the docs state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoomseg.core.labels import LabelSchema
from zoomseg.engine.plan import Fingerprint, plan, spacing_for
from zoomseg.networks.build import check_input_shape
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import DilatedForeground, FixedSpacing, PlannedRecipe, Recipe, Window, ZScore

ABDOMEN = Fingerprint((0.8, 0.8, 2.0), (512, 512, 200), (512, 512, 300), True, (-110.2, 240.4), 30)
THICK_MR = Fingerprint((1.25, 1.25, 7.7), (256, 256, 36), (256, 256, 40), False, (0.0, 900.0), 16)
CROPS = Fingerprint((1.0, 1.0, 1.0), (35, 50, 35), (43, 59, 47), False, (0.0, 900.0), 200)
ORGANS = LabelSchema.consecutive(["liver", "right kidney", "left kidney"])


def planned(data: Fingerprint, schema: LabelSchema = ORGANS) -> Recipe:
    template = load("default")
    assert isinstance(template, PlannedRecipe)
    return plan(template, data, schema)


def template() -> PlannedRecipe:
    recipe = load("default")
    assert isinstance(recipe, PlannedRecipe)
    return recipe


def test_large_scans_get_two_stages_small_crops_one() -> None:
    assert [s.name for s in planned(ABDOMEN).stages] == ["coarse", "fine"]
    assert [s.name for s in planned(CROPS).stages] == ["whole"]


@pytest.mark.parametrize("data", [ABDOMEN, THICK_MR], ids=["ct", "thick"])
def test_fine_grid_uses_its_voxel_budget_and_is_never_finer_than_the_data(data: Fingerprint) -> None:
    spacing = spacing_for(data, 2_500_000)
    extent = np.array(data.shape) * np.array(data.spacing_mm)
    assert all(s >= own - 1e-3 for s, own in zip(spacing, data.spacing_mm, strict=True))
    voxels = np.prod(extent / np.array(spacing))
    available = math.prod(data.shape)
    assert voxels == pytest.approx(min(2_500_000, available), rel=0.01)


def test_coarse_tile_holds_the_median_scan_in_one_pass() -> None:
    for data in (ABDOMEN, THICK_MR):
        grid = planned(data).stages[0].grid
        assert isinstance(grid, FixedSpacing)
        seen = np.array(grid.mm) * np.array(grid.tile)
        assert (seen >= np.array(data.shape) * np.array(data.spacing_mm) - 1e-6).all()


def test_thick_slices_are_not_pooled_until_the_others_are_as_coarse() -> None:
    fine = planned(THICK_MR).stages[1]
    assert fine.network.kind == "resenc_unet"
    assert fine.network.strides[1] == (2, 2, 1)
    assert fine.network.kernels[0] == (3, 3, 1)
    isotropic = planned(ABDOMEN).stages[1].network
    assert isotropic.kind == "resenc_unet"
    assert isotropic.strides[1] == (2, 2, 2)
    assert isotropic.kernels[0] == (3, 3, 3)


@pytest.mark.parametrize("data", [ABDOMEN, THICK_MR, CROPS], ids=["ct", "thick", "crops"])
def test_patches_and_tiles_suit_the_networks(data: Fingerprint) -> None:
    for stage in planned(data).stages:
        assert check_input_shape(stage.network, "same", stage.training.patch) == stage.training.patch
        assert check_input_shape(stage.network, "same", stage.grid.tile) == stage.grid.tile


def test_ct_gets_a_window_of_foreground_intensities_mr_a_zscore() -> None:
    assert planned(ABDOMEN).intensity == Window(lower=-110, upper=240, output=(-1.0, 1.0))
    assert isinstance(planned(THICK_MR).intensity, ZScore)


def test_region_margin_in_voxels_of_the_fine_grid() -> None:
    fine = planned(ABDOMEN).stages[1]
    assert isinstance(fine.roi, DilatedForeground)
    assert isinstance(fine.grid, FixedSpacing)
    margin_mm = fine.roi.radius_vox * float(np.mean(fine.grid.mm))
    assert margin_mm == pytest.approx(template().region_margin_mm, rel=0.01)


@pytest.mark.parametrize(
    ("names", "flips"),
    [
        (["anterior", "posterior"], ("R",)),
        (["left lung", "right lung"], ("R",)),
        (["liver", "left kidney", "right kidney"], ()),
        (["left kidney", "liver"], ()),
    ],
)
def test_mirroring_only_where_every_label_survives_it(names: list[str], flips: tuple[str, ...]) -> None:
    recipe = planned(CROPS, LabelSchema.consecutive(names))
    assert recipe.stages[0].training.augmentation.flip_axes == flips
