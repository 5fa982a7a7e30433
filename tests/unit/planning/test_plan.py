"""Planned numbers follow from the fingerprint by the documented rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from zoomseg.backends.device import Device
from zoomseg.core.errors import RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.memory import format_bytes
from zoomseg.datasets.advice import Advice
from zoomseg.networks import build as networks
from zoomseg.planning import plan as plan_module
from zoomseg.planning.fingerprint import Fingerprint, OrganStatistics
from zoomseg.planning.network_sizes import costs_of, step_bytes
from zoomseg.planning.plan import MEMORY_SHARE, plan
from zoomseg.planning.rationale import Plan, Reason, times
from zoomseg.planning.training_length import TrainingLength
from zoomseg.recipe.load import load
from zoomseg.recipe.network_shapes import check_input_shape
from zoomseg.recipe.spec import (
    DiceCrossEntropy,
    DilatedForeground,
    FixedSpacing,
    Islands,
    PlannedRecipe,
    Recipe,
    Stage,
    Window,
    ZScore,
)

ABDOMEN = Fingerprint((0.8, 0.8, 2.0), (512, 512, 200), (512, 512, 300), True, (-110.2, 240.4), 30, 30)
THICK_MR = Fingerprint((1.25, 1.25, 7.7), (256, 256, 36), (256, 256, 40), False, (0.0, 900.0), 16, 16)
CROPS = Fingerprint((1.0, 1.0, 1.0), (35, 50, 35), (43, 59, 47), False, (0.0, 900.0), 200, 40)
ORGANS = LabelSchema.consecutive(["liver", "right kidney", "left kidney"])


@dataclass(frozen=True)
class Sized(Device):
    """A device with a given memory."""

    gigabytes: float = 16.0

    @property
    def memory_bytes(self) -> int:
        return int(self.gigabytes * 1e9)

    @property
    def multiply_adds_per_second(self) -> float:
        return 5e10

    @property
    def name(self) -> str:
        return "test device"


def device(kind: str, gigabytes: float) -> Device:
    return Sized(kind, gigabytes=gigabytes)


def planned(data: Fingerprint, schema: LabelSchema = ORGANS, on: Device | None = None) -> Recipe:
    return whole_plan(data, schema, on).recipe


def whole_plan(
    data: Fingerprint,
    schema: LabelSchema = ORGANS,
    on: Device | None = None,
    length: TrainingLength | None = None,
) -> Plan:
    return plan(template(), data, schema, on or device("cpu", 16), length)


def reasons(made: Plan) -> dict[str, Reason]:
    """By decision; no decision occurs twice."""
    assert len({reason.what for reason in made.reasons}) == len(made.reasons)
    return {reason.what: reason for reason in made.reasons}


def template() -> PlannedRecipe:
    recipe = load("default")
    assert isinstance(recipe, PlannedRecipe)
    return recipe


def test_a_large_scan_among_small_crops_is_warned_of() -> None:
    made = whole_plan(replace(CROPS, shape=(40, 40, 40), largest_shape=(600, 600, 900)))
    assert [s.grid.tile for s in made.recipe.stages] == [(40, 40, 40)]
    (warning,) = made.warnings  # 29 x 29 x 44 tiles, of which each begins half a tile after the one before
    assert warning.startswith(
        "largest scan: 600x600x900 voxels: about 37,000 tiles of 40x40x40; there is one"
    )
    assert whole_plan(CROPS).warnings == ()
    assert whole_plan(replace(ABDOMEN, largest_shape=(900, 900, 9000))).warnings == ()


def test_large_scans_get_two_stages_small_crops_one() -> None:
    assert [s.name for s in planned(ABDOMEN).stages] == ["coarse", "fine"]
    assert [s.name for s in planned(CROPS).stages] == ["whole"]


def test_a_plan_speaks_of_the_stages_that_it_has() -> None:
    """The model card contains it."""
    assert planned(ABDOMEN).description == template().description
    assert "a second one at high resolution" in template().description
    assert "one network segments the scans" in planned(CROPS).description
    assert "2 others a group of organs each" in plan_module._described(template(), 3)


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
def test_rare_organs_weigh_more_in_the_cross_entropy(data: Fingerprint) -> None:
    made = whole_plan(data)
    for stage in made.recipe.stages:
        assert stage.training.loss == DiceCrossEntropy(class_balance=0.5)
    assert reasons(made)["training"].value == (
        "adamw at 0.01 after 10% of warm-up, dice_cross_entropy in which classes weigh their share to the "
        "power of -0.5 at first, class_balanced with 20% anywhere"
    )


@pytest.mark.parametrize("data", [ABDOMEN, THICK_MR, CROPS], ids=["ct", "thick", "crops"])
def test_patches_and_tiles_suit_the_networks(data: Fingerprint) -> None:
    for stage in planned(data).stages:
        assert check_input_shape(stage.network, "same", stage.training.patch) == stage.training.patch
        assert check_input_shape(stage.network, "same", stage.grid.tile) == stage.grid.tile


def test_ct_gets_a_window_of_foreground_intensities_mr_a_zscore() -> None:
    assert planned(ABDOMEN).intensity == Window(lower=-110, upper=240, output=(-1.0, 1.0))
    assert isinstance(planned(THICK_MR).intensity, ZScore)


def of_intensities(*percentiles: tuple[float, float]) -> Fingerprint:
    size, centre = (90.0, 90.0, 90.0), (0.5, 0.5, 0.5)
    organs = tuple(
        OrganStatistics(f"o{n}", 9, 9, 80.0, size, centre, p, 1.0) for n, p in enumerate(percentiles)
    )
    return replace(ABDOMEN, foreground_percentiles=(-950.0, 1650.0), organs=organs)


def test_bone_and_airways_leave_most_contrast_to_all_other_organs() -> None:
    head = of_intensities((-950.0, 300.0), (-10.4, 80.0), (-40.0, 70.0), (-107.0, 120.0), (-40.0, 1700.0))
    made = whole_plan(head)
    assert made.recipe.intensity == Window(lower=-950, upper=1650, output=(-1, 1), inner=(-40, 120))
    why = reasons(made)["intensities"]
    assert why.value == "window -950 to 1650 HU, of its contrast 60% from -40 to 120 HU"


@pytest.mark.parametrize(
    "percentiles", [(-800.0, 100.0), (5.0, 5.0), (-3000.0, -2000.0)], ids=["wide", "flat", "outside"]
)
def test_no_part_of_a_window_that_holds_much_of_it_or_nothing(percentiles: tuple[float, float]) -> None:
    assert planned(of_intensities(percentiles)).intensity == Window(lower=-950, upper=1650, output=(-1, 1))


def test_small_parts_go_of_organs_that_are_in_one_piece() -> None:
    size, centre = (90.0, 90.0, 90.0), (0.5, 0.5, 0.5)
    organs = tuple(
        OrganStatistics(name, cases, 9, ml, size, centre, (0.0, 90.0), part)
        for name, cases, ml, part in (
            ("liver", 9, 300.0, 0.95),
            ("aorta", 9, 300.0, 0.94),
            ("spleen", 4, 300.0, 1.0),
            ("portal vein", 9, 72.0, 1.0),
            ("pancreas", 5, 73.0, 1.0),  # a tenth of 729 ml
        )
    )
    made = whole_plan(replace(ABDOMEN, organs=organs))
    assert made.recipe.islands == Islands(labels=("liver", "pancreas"), below=0.25)
    removed = "components below 25% of the largest are removed, of liver, pancreas"
    assert reasons(made)["islands"].value == removed
    assert reasons(made)["islands"].why.endswith("of its bounding box; not so aorta, spleen, portal vein")
    none = whole_plan(replace(ABDOMEN, organs=organs[1:4]))
    assert none.recipe.islands is None
    assert reasons(none)["islands"].value == "kept"


def test_other_modalities_are_trained_for_more_changes_of_contrast() -> None:
    ct, mr = (planned(data).stages[0].training.augmentation for data in (ABDOMEN, THICK_MR))
    assert (ct.contrast, ct.gamma) == (0.25, (0.75, 1.33))
    assert (mr.contrast, mr.gamma) == (0.5, (0.6, 1.7))
    assert (ct.organ_brightness, mr.organ_brightness) == (0.0, 0.7)
    assert reasons(whole_plan(ABDOMEN))["contrast"].value == "by up to 25%, gamma 0.75 to 1.33"


def fine_grid(length: TrainingLength | None, on: Device | None = None) -> tuple[FixedSpacing, int, Reason]:
    """The fine grid of a plan, the voxels of its patches in one step, and why it has so many voxels."""
    made = whole_plan(THICK_MR, on=on, length=length)
    fine = made.recipe.stages[1]
    assert isinstance(fine.grid, FixedSpacing)
    shown = fine.training.batch * math.prod(fine.training.patch)
    return fine.grid, shown, reasons(made)["fine voxels"]


def test_a_training_that_shows_the_scans_seldom_gets_a_coarser_fine_grid() -> None:
    own, shown, plenty = fine_grid(None)
    assert own.mm == (1.25, 1.25, 7.7)
    assert (plenty.value, plenty.why[:14]) == ("2.5 million", "the recipe's; ")
    short, _, why = fine_grid(TrainingLength(600, None))
    extent = np.array(THICK_MR.shape) * np.array(THICK_MR.spacing_mm)
    assert short.mm[2] == 7.7
    assert np.prod(extent / short.mm) == pytest.approx(600 * shown / 100, rel=0.01)
    assert f"600 steps show the network {600 * shown / 1e6:.3g} million voxels, 100 times" in why.why
    least, _, why = fine_grid(TrainingLength(1, None))
    assert np.prod(extent / least.mm) == pytest.approx(480_000, rel=0.01)
    assert why.why.startswith("6 times the coarse grid's, the least; 1 steps show")


def test_how_many_steps_a_time_budget_holds_depends_on_the_device() -> None:
    steps = 600
    costs = costs_of(whole_plan(THICK_MR).recipe.stages, 1, ORGANS)
    seconds = steps * sum(cost.multiply_adds for cost in costs) / 5e10
    by_steps, by_time = fine_grid(TrainingLength(steps, None))[0], fine_grid(TrainingLength(None, seconds))[0]
    assert by_time == by_steps
    assert fine_grid(TrainingLength(None, 10 * seconds))[0].mm == (1.25, 1.25, 7.7)


def test_region_margin() -> None:
    fine = planned(ABDOMEN).stages[1]
    assert isinstance(fine.roi, DilatedForeground)
    assert (fine.roi.margin_mm, fine.roi.radius_vox) == (template().region_margin_mm, None)
    assert fine.roi.threshold == template().region_threshold == 0.2


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
    assert step_bytes(costs_of(roomy.stages, 1, ORGANS)) > MEMORY_SHARE * 1e9
    assert step_bytes(costs_of(tight.stages, 1, ORGANS)) <= MEMORY_SHARE * 1e9
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
    # 1.76 million voxels of 3 mm: a cube of 121, in steps of what the network's pooling divides
    assert template().gpu_patch_factor * template().fine_patch_voxels == 1_760_000
    assert large.stages[1].training.patch == (128, 128, 128)
    assert step_bytes(costs_of(small.stages, 1, ORGANS)) <= MEMORY_SHARE * 4e9


def test_a_device_that_is_too_small_is_named_with_what_it_has() -> None:
    with pytest.raises(RecipeError, match=r"test device has 2 MB to spare; use a device with more memory"):
        planned(ABDOMEN, on=device("cpu", 0.005))


def test_reasons_give_the_recipe_s_numbers() -> None:
    made = whole_plan(ABDOMEN)
    told = reasons(made)
    for stage in made.recipe.stages:
        grid, network = stage.grid, stage.network
        assert isinstance(grid, FixedSpacing)
        assert network.kind == "resenc_unet"
        if len(set(grid.mm)) == 1:
            assert told[f"{stage.name} spacing"].value == f"{grid.mm[0]:g} mm"
        else:
            assert told[f"{stage.name} spacing"].value == "{:g}x{:g}x{:g} mm".format(*grid.mm)
        assert told[f"{stage.name} patch"].value == times(stage.training.patch)
        assert told[f"{stage.name} batch"].value == str(stage.training.batch)
        shift = stage.training.augmentation.translation_vox
        assert told[f"{stage.name} shift"].value == f"up to {shift:g} voxels"
        assert told[f"{stage.name} network"].value.startswith(" ".join(map(str, network.channels)))
    assert told["fine region"].value.startswith("16 mm around all that the coarse stage gives")
    assert told["intensities"].value == "window -110 to 240 HU"
    assert "-110.2 and 240.4 HU" in told["intensities"].why
    assert told["median scan"].value == "512x512x200 voxels of 0.8x0.8x2 mm"
    assert told["median scan"].why.startswith("of 30 cases, axes R, A, S: 410x410x400 mm;")


def test_reasons_give_the_figures_that_led_there() -> None:
    told = reasons(whole_plan(ABDOMEN))
    assert told["stages"].value == "two: coarse, then fine"
    assert "52.4 million voxels, more than 4 patches of 110,000" in told["stages"].why
    assert told["fine spacing"].why == "so that the median scan has 2.5 million voxels"
    # 410 mm: 52 voxels of 7.66 mm, cut to 48, so that voxels become larger
    assert told["coarse spacing"].why.startswith("so that the median scan has 80,000 voxels; widened from ")
    assert "in multiples of 8x8x8" in told["fine patch"].why
    assert told["fine kernels"].value == "3x3x3"
    assert told["fine halvings"].value == "3 times"


def test_a_network_s_size_is_told() -> None:
    made = whole_plan(ABDOMEN)
    fine = made.recipe.stages[1]
    parameters = networks.parameters(networks.build(fine.network, 1 + len(ORGANS.names), 4, "same"))
    value = reasons(made)["fine network"].value
    assert value.endswith(
        f"{parameters / 1e6:.2f} million weights, {2 * parameters / 2**20:.1f} MB in half precision"
    )


def test_a_gigabyte_is_that_of_the_memory_limits() -> None:
    """2^30 bytes, as in ``--max-ram`` and in every message about memory."""
    told = reasons(whole_plan(ABDOMEN, on=device("cpu", 2**34 / 1e9)))["memory of a step"]
    assert told.why == "of the 6.40 GB (40% of 16.00 GB) that test device may spare for it"


def test_memory_is_told_and_what_was_done_to_fit() -> None:
    roomy, tight = whole_plan(ABDOMEN), whole_plan(ABDOMEN, on=device("cpu", 1.0))
    needed = step_bytes(costs_of(roomy.recipe.stages, 1, ORGANS))
    told = reasons(roomy)["memory of a step"]
    assert told.value == format_bytes(needed)
    assert told.why == "of the 5.96 GB (40% of 14.90 GB) that test device may spare for it"
    shrunk = reasons(tight)["memory of a step"]
    times_smaller = int(shrunk.why.split(", ")[-1].removesuffix(" times"))
    # The coarse grid of 80,000 voxels is reduced by a fifth each time, and so is the patch of 110,000.
    assert f"for {round(110_000 * 0.8**times_smaller, -2):,.0f} voxels" in reasons(tight)["fine patch"].why
    gpu = reasons(whole_plan(ABDOMEN, on=device("cuda", 80)))
    assert "16 times as large as on a CPU" in gpu["memory of a step"].why
    assert "the 26.82 GB (40% of 67.06 GB, training data's 7.45 GB aside)" in gpu["memory of a step"].why
    assert gpu["fine patch"].why.startswith("for 1.76 million voxels")


def test_thick_slices_are_explained() -> None:
    made = whole_plan(THICK_MR)
    told = reasons(made)
    assert told["fine halvings"].value == "R 4, A 4, S 2"
    assert "S (7.7 mm) not at the first 2" in told["fine halvings"].why
    assert told["fine kernels"].value == "3x3x1 at 2 levels, then 3x3x3 at 3 levels"
    assert told["fine spacing"].why.startswith(
        "the data's own: the median scan has 2.36 million of 2.5 million"
    )
    assert told["coarse spacing"].why.startswith(
        "so that the median scan has 80,000 voxels; S, coarser by itself, keeps its own"
    )
    assert told["intensities"].value == "z-score of each scan"


def test_tiny_crops_are_explained() -> None:
    told = reasons(whole_plan(CROPS))
    assert told["stages"].value == "one"
    assert "61,200 voxels, no more than 4 patches of 110,000" in told["stages"].why
    assert told["median scan"].why.startswith("of 40 of 200 cases")
    assert told["whole patch"].why.startswith("the whole scan's 35x50x35")
    assert told["whole batch"].value == "4"
    assert not any(what.startswith(("coarse", "fine")) for what in told)


def test_what_the_data_set_leaves_unsaid_is_a_warning_and_decides_nothing() -> None:
    advice = Advice(
        "channel_names", "channel 0 looks like CT", 'if it is, write "channel_names": {"0": "CT"}'
    )
    plain, warned = whole_plan(CROPS), whole_plan(replace(CROPS, advice=(advice,)))
    assert warned.warnings == (*plain.warnings, f"channel names: {advice}")
    assert warned.recipe == plain.recipe


@pytest.mark.parametrize(
    ("names", "value", "why"),
    [
        (["anterior", "posterior"], "left to right", "no label's name says left or right"),
        (["left lung", "right lung"], "left to right", "every label has its counterpart"),
        (
            ["left lung", "right lung", "left atrium", "right atrium"],
            "none",
            "'left atrium' is part of an organ that is not symmetric",
        ),
        (
            ["liver", "left kidney", "right kidney"],
            "none",
            "'left kidney' has a side, and 'liver' no counterp",
        ),
    ],
)
def test_mirroring_is_explained(names: list[str], value: str, why: str) -> None:
    told = reasons(whole_plan(CROPS, LabelSchema.consecutive(names)))["mirroring"]
    assert told.value == value
    assert told.why.startswith(why)


@pytest.mark.parametrize(
    ("length", "value"),
    [
        (None, "20,000 steps"),
        (TrainingLength(300, None), "300 steps"),
        (TrainingLength(None, 1500.0), "25 min"),
    ],
)
def test_the_length_is_the_recipe_s_or_what_was_asked_for(length: TrainingLength | None, value: str) -> None:
    assert reasons(whole_plan(CROPS, length=length))["length"].value == value


@pytest.mark.parametrize("cases", [10, 1000])
def test_plans_for_few_cases_and_for_many_differ_in_nothing_but_that(cases: int) -> None:
    data = replace(ABDOMEN, cases=cases, read=min(cases, 40))
    assert whole_plan(data).recipe == planned(ABDOMEN)


def test_an_organ_that_the_finest_grid_hardly_shows_is_warned_of() -> None:
    organs = (
        OrganStatistics("liver", 30, 30, 1500.0, (200.0, 180.0, 160.0), (0.6, 0.5, 0.7), (0.0, 200.0), 1.0),
    )
    tiny = OrganStatistics("left kidney", 30, 30, 0.5, (8.0, 8.0, 8.0), (0.3, 0.4, 0.6), (0.0, 200.0), 1.0)
    calm, warned = (whole_plan(replace(ABDOMEN, organs=o)) for o in (organs, (*organs, tiny)))
    assert calm.warnings == ()
    (warning,) = warned.warnings
    voxels = round(500 / math.prod(warned.finest_mm))
    assert 0 < voxels < 30
    assert warning.startswith(
        f"small organ: left kidney, 0.5 ml = {voxels} voxels of the finest grid; below 30"
    )
    assert warned.recipe.stages == calm.recipe.stages
