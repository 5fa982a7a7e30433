"""Planned numbers follow from the fingerprint by the rules that the docs state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from zoomseg.core.errors import RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.engine.device import Device
from zoomseg.engine.plan import MEMORY_SHARE, Fingerprint, plan, spacing_for, step_bytes
from zoomseg.networks import build as networks
from zoomseg.networks.build import check_input_shape
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import DilatedForeground, FixedSpacing, PlannedRecipe, Recipe, Stage, Window, ZScore

ABDOMEN = Fingerprint((0.8, 0.8, 2.0), (512, 512, 200), (512, 512, 300), True, (-110.2, 240.4), 30)
THICK_MR = Fingerprint((1.25, 1.25, 7.7), (256, 256, 36), (256, 256, 40), False, (0.0, 900.0), 16)
CROPS = Fingerprint((1.0, 1.0, 1.0), (35, 50, 35), (43, 59, 47), False, (0.0, 900.0), 200)
ORGANS = LabelSchema.consecutive(["liver", "right kidney", "left kidney"])


@dataclass(frozen=True)
class Sized(Device):
    """A device with a memory of our choice."""

    gigabytes: float

    @property
    def memory_bytes(self) -> int:
        return int(self.gigabytes * 1e9)

    @property
    def name(self) -> str:
        return "test device"


def device(kind: str, gigabytes: float) -> Device:
    return Sized(torch.device(kind), None, gigabytes)


def planned(data: Fingerprint, schema: LabelSchema = ORGANS, on: Device | None = None) -> Recipe:
    return plan(template(), data, schema, on or device("cpu", 16))


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


def _voxels(stage: Stage) -> int:
    return math.prod(stage.training.patch)


def test_patches_shrink_until_a_step_fits_the_memory_and_the_coarse_one_still_shows_the_scan() -> None:
    roomy = planned(ABDOMEN)
    tight = planned(ABDOMEN, on=device("cpu", 1.0))
    assert step_bytes(roomy.stages, 1, ORGANS) > MEMORY_SHARE * 1e9
    assert step_bytes(tight.stages, 1, ORGANS) <= MEMORY_SHARE * 1e9
    for small, large in zip(tight.stages, roomy.stages, strict=True):
        assert 0.2 * _voxels(large) < _voxels(small) < _voxels(large)
        assert small.grid.tile == small.training.patch
    coarse = tight.stages[0].grid
    assert isinstance(coarse, FixedSpacing)
    seen = np.array(coarse.mm) * np.array(coarse.tile)
    assert (seen >= np.array(ABDOMEN.shape) * np.array(ABDOMEN.spacing_mm) - 1e-6).all()


def test_a_gpu_gets_larger_patches_up_to_its_memory() -> None:
    cpu, small, large = (
        planned(ABDOMEN, on=on) for on in (device("cpu", 16), device("cuda", 4), device("cuda", 80))
    )
    assert _voxels(cpu.stages[1]) < _voxels(small.stages[1]) < _voxels(large.stages[1])
    # 1.6 million voxels of 3 mm: a cube of 117, in steps of what the network's pooling divides
    assert template().gpu_patch_factor * template().fine_patch_voxels == 1_600_000
    assert large.stages[1].training.patch == (128, 128, 128)
    assert step_bytes(small.stages, 1, ORGANS) <= MEMORY_SHARE * 4e9


def test_a_device_that_is_too_small_is_named_with_what_it_has() -> None:
    with pytest.raises(RecipeError, match=r"test device has 0.00 GB to spare; use a device with more memory"):
        planned(ABDOMEN, on=device("cpu", 0.005))


def test_counted_memory_is_that_of_a_real_step() -> None:
    stage = planned(CROPS, on=device("cpu", 1.0)).stages[0]
    stage = stage.model_copy(update={"training": stage.training.model_copy(update={"patch": (16, 16, 16)})})
    module = networks.build(stage.network, 1, 4, "same")
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.zeros(stage.training.batch, 1, 16, 16, 16))
    parameters = 5 * 4 * sum(p.numel() for p in module.parameters())
    assert step_bytes([stage], 1, ORGANS) == pytest.approx(sum(kept.values()) + parameters, rel=0.02)
