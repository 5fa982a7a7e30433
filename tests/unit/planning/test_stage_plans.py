"""Plans of stages: spacings from voxel budgets, and augmentation that suits the data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from zoomseg.core.labels import LabelSchema
from zoomseg.planning.fingerprint import Fingerprint, OrganStatistics, SideBySide
from zoomseg.planning.organ_groups import Group
from zoomseg.planning.stage_plans import (
    boxes,
    contrast,
    mirrored,
    reordered,
    spacing_for,
    spacing_in,
    two_stages,
)
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import BoxAround, FixedSpacing, PlannedRecipe, PriorInput, ResEncUNet

ABDOMEN = Fingerprint((0.8, 0.8, 2.0), (512, 512, 200), (512, 512, 300), True, (-110.2, 240.4), 30, 30)
THICK_MR = Fingerprint((1.25, 1.25, 7.7), (256, 256, 36), (256, 256, 40), False, (0.0, 900.0), 16, 16)


@pytest.mark.parametrize("data", [ABDOMEN, THICK_MR], ids=["ct", "thick"])
def test_fine_grid_uses_its_voxel_budget_and_is_never_finer_than_the_data(data: Fingerprint) -> None:
    spacing = spacing_for(data, 2_500_000)
    extent = np.array(data.shape) * np.array(data.spacing_mm)
    assert all(s >= own - 1e-3 for s, own in zip(spacing, data.spacing_mm, strict=True))
    voxels = np.prod(extent / np.array(spacing))
    available = math.prod(data.shape)
    assert voxels == pytest.approx(min(2_500_000, available), rel=0.01)


def test_several_boxes_share_a_voxel_budget() -> None:
    # 8000 and 1000 cubic millimetres in 1125 voxels: 8 mm3 each.
    assert spacing_in((1.0, 1.0, 1.0), [(20.0, 20.0, 20.0), (10.0, 10.0, 10.0)], 1125) == (2.0, 2.0, 2.0)
    assert spacing_in((1.0, 1.0, 4.0), [(16.0, 16.0, 16.0)], 256) == (2.0, 2.0, 4.0)
    assert spacing_in((1.0, 1.0, 1.0), [(20.0, 20.0, 20.0)], 10**6) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("mm", "rounded"), [(0.0003, 0.0003), (0.0014, 0.0014), (0.76171875, 0.762)])
def test_spacings_keep_three_digits(mm: float, rounded: float) -> None:
    """Those of micro-CT, too."""
    data = replace(ABDOMEN, spacing_mm=(mm, mm, mm), shape=(100, 100, 100))
    assert spacing_for(data, 10**6) == (rounded,) * 3


def test_a_coarse_grid_of_micrometres_is_widened_as_little_as_one_of_millimetres() -> None:
    small, large = (
        two_stages(template(), replace(ABDOMEN, spacing_mm=(mm, mm, mm)), LabelSchema.consecutive(["bone"]))[
            0
        ]
        for mm in (0.001, 1.0)
    )
    assert small.stage.grid.tile == large.stage.grid.tile
    assert np.array(small.mm) * 1000 == pytest.approx(np.array(large.mm), rel=0.005)
    assert (np.array(small.mm) * small.stage.grid.tile * 1000 >= ABDOMEN.shape).all()


def test_a_stage_for_scans_with_other_axes_has_its_numbers_in_their_order() -> None:
    coarse = two_stages(template(), THICK_MR, LabelSchema.consecutive(["liver"]))[0].stage
    made = reordered(coarse, (1, 2, 0))  # scans whose axes run along A, S and R
    assert isinstance(made.grid, FixedSpacing)
    assert isinstance(coarse.grid, FixedSpacing)
    assert isinstance(made.network, ResEncUNet)
    assert isinstance(coarse.network, ResEncUNet)
    for own, planned in (
        (made.grid.mm, coarse.grid.mm),
        (made.grid.tile, coarse.grid.tile),
        (made.training.patch, coarse.training.patch),
        *zip(made.network.strides, coarse.network.strides, strict=True),
        *zip(made.network.kernels, coarse.network.kernels, strict=True),
    ):
        assert own == (planned[1], planned[2], planned[0])
    assert len(set(coarse.grid.mm)) > 1  # otherwise their order would not show
    assert reordered(coarse, (0, 1, 2)) == coarse


def template() -> PlannedRecipe:
    recipe = load("default")
    assert isinstance(recipe, PlannedRecipe)
    return recipe


@pytest.mark.parametrize(
    ("first", "second", "flips"),
    [
        (("left eye", "right eye"), ("left foot", "right foot"), [("R",), ("R",), ("R",)]),
        # A group with one side only must not be mirrored, ...
        (("left eye", "left foot"), ("right eye", "right foot"), [("R",), (), ()]),
        # ... nor one whose prior, the coarse prediction, could not be mirrored with it.
        (("left eye", "right eye"), ("left foot", "liver"), [(), (), ()]),
    ],
)
def test_boxes_are_mirrored_only_where_all_they_show_survives_it(
    first: tuple[str, ...], second: tuple[str, ...], flips: list[tuple[str, ...]]
) -> None:
    groups = (Group(first, (0, 0, 0), (100, 100, 100)), Group(second, (200, 0, 0), (260, 50, 50)))
    made = boxes(template(), ABDOMEN, LabelSchema.consecutive([*first, *second]), groups)
    assert [draft.stage.training.augmentation.flip_axes for draft in made] == flips


def test_a_box_stage_answers_for_its_group_and_knows_all_that_the_coarse_one_said() -> None:
    groups = (Group(("a",), (0, 0, 0), (60, 60, 60)), Group(("b", "c"), (200, 200, 200), (260, 290, 260)))
    _, _, draft = boxes(template(), ABDOMEN, LabelSchema.consecutive(["a", "b", "c"]), groups)
    stage = draft.stage
    assert (stage.name, stage.labels) == ("fine-2", ("b", "c"))
    assert stage.roi == BoxAround(of="coarse", labels=("b", "c"), margin_mm=16.0)
    assert stage.inputs[1] == PriorInput(of="coarse", labels="all")
    assert draft.mm == (0.8, 0.8, 2.0)
    told = {reason.what: reason.value for reason in draft.reasons}
    assert told["fine-2 region"] == "16 mm around the box of b, c"


def test_other_modalities_are_trained_for_more_changes_of_contrast() -> None:
    assert contrast(ABDOMEN).reason.value == "by up to 25%, gamma 0.75 to 1.33"
    other = contrast(THICK_MR)
    assert (other.contrast, other.gamma, other.organ_brightness) == (0.5, (0.6, 1.7), 0.7)
    assert other.reason.value == "by up to 50%, gamma 0.6 to 1.7, every organ's brightness by up to 70%"


def of_tones(*seen: tuple[int, float | None]) -> Fingerprint:
    """Organs found in this many cases, with this spread of their brightness."""
    size, middle = (90.0, 90.0, 90.0), (0.5, 0.5, 0.5)
    organs = tuple(
        OrganStatistics(f"o{n}", cases, 40, 80.0, size, middle, (0.0, 9.0), 1.0, spread)
        for n, (cases, spread) in enumerate(seen)
    )
    return replace(THICK_MR, organs=organs)


def test_organs_that_many_cases_show_alike_change_their_brightness_as_little() -> None:
    alike = contrast(of_tones((30, 0.024), (40, 0.03)))
    assert (alike.contrast, alike.gamma, alike.organ_brightness) == (0.5, (0.6, 1.7), 0.09)
    assert "differs by more than 3% (standard deviation over cases): 3 times that" in alike.why


@pytest.mark.parametrize(
    "seen",
    [((29, 0.03), (40, 0.03)), ((40, None),), ((40, 0.25), (40, 0.03))],
    ids=["few cases", "alone", "unlike"],
)
def test_what_the_data_does_not_show_may_happen(seen: tuple[tuple[int, float | None], ...]) -> None:
    assert contrast(of_tones(*seen)).organ_brightness == 0.7


@pytest.mark.parametrize(("cases", "flips"), [(36, ()), (35, ("R",))])
def test_an_organ_that_is_always_on_one_side_of_another_is_not_mirrored(
    cases: int, flips: tuple[str, ...]
) -> None:
    data = replace(THICK_MR, side_by_side=SideBySide("head", "tail", cases, 40))
    found, reason = mirrored(LabelSchema.consecutive(["head", "tail"]), data)
    assert found == flips
    if not flips:
        assert reason.why == "'head' lies to the right of 'tail' in 36 of 40 cases"


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["RK", "LK"], "'LK' and 'RK' may be the left and the right one"),
        (["lkid", "rkid", "left lung", "right lung"], "'lkid' and 'rkid' may be the left and the right one"),
        (["label_1", "label_2"], "'label_1' names no organ, so it may be a left or a right one"),
    ],
)
def test_names_that_leave_a_doubt_are_not_mirrored(names: list[str], why: str) -> None:
    found, reason = mirrored(LabelSchema.consecutive(names), THICK_MR)
    assert found == ()
    assert reason.why.startswith(why)


def test_a_group_of_one_doubtful_label_is_not_mirrored() -> None:
    """Without its counterpart, a name seems to have no side."""
    names = ("RK", "LK", "eye", "nose")
    groups = (Group(names[::2], (0, 0, 0), (100, 100, 100)), Group(names[1::2], (200, 0, 0), (260, 50, 50)))
    made = boxes(template(), ABDOMEN, LabelSchema.consecutive(names), groups)
    assert [draft.stage.training.augmentation.flip_axes for draft in made] == [(), (), ()]


def test_names_that_tell_sides_are_asked_first() -> None:
    data = replace(THICK_MR, side_by_side=SideBySide("right lung", "left lung", 40, 40))
    assert mirrored(LabelSchema.consecutive(["left lung", "right lung"]), data)[0] == ("R",)
