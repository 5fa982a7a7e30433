"""Guards of the spec itself."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from helpers.tiny_dataset import tiny_recipe
from zoomseg.recipe.spec import (
    SGD,
    BoxAround,
    DilatedForeground,
    PriorInput,
    ResEncUNet,
    Stage,
    Window,
    is_planned,
)


def test_specs_are_values() -> None:
    spec = DilatedForeground(of="coarse")
    with pytest.raises(ValidationError, match="frozen"):
        spec.radius_vox = 4.0  # type: ignore[misc]
    assert spec == DilatedForeground(of="coarse", radius_vox=3)
    assert DilatedForeground(of="coarse", margin_mm=16).radius_vox is None
    with pytest.raises(ValidationError, match="give radius_vox or margin_mm, not both"):
        DilatedForeground(of="coarse", radius_vox=3, margin_mm=16)


def test_numbers_must_be_finite() -> None:
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValidationError, match="finite"):
            DilatedForeground(of="coarse", radius_vox=value)
        with pytest.raises(ValidationError, match="finite"):
            Window(lower=0, upper=1, output=(0, value))


def test_a_network_needs_one_entry_per_level() -> None:
    with pytest.raises(ValidationError, match="one entry per level each"):
        ResEncUNet(channels=(4, 8), strides=((1, 1, 1),), kernels=((3, 3, 3),) * 2, blocks=(1, 1))


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValidationError, match="must be below upper"):
        Window(lower=5, upper=5)


@pytest.mark.parametrize("inner", [(-1.0, 50.0), (50.0, 101.0), (50.0, 50.0), (0.0, 100.0)])
def test_the_inner_part_of_a_window_is_in_it_and_not_all_of_it(inner: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match=r"must be a part of lower to upper \(0.0 to 100.0\)"):
        Window(lower=0, upper=100, inner=inner)


def test_the_margin_of_prediction_is_one_of_training() -> None:
    BoxAround(of="coarse", margin_mm=8, reference_margin_mm=(8, 30))
    with pytest.raises(
        ValidationError, match=r"margin_mm \(20\) must lie in reference_margin_mm \(30 to 40\)"
    ):
        BoxAround(of="coarse", reference_margin_mm=(30, 40))


def test_the_reference_is_in_regions_that_are_masks_only() -> None:
    stage = tiny_recipe(together=False).stages[1]
    given = stage.model_dump(mode="json")
    given["roi"] = {"kind": "dilated_foreground", "of": "coarse", "include_reference": True}
    assert Stage.model_validate(given).includes_reference
    assert not stage.includes_reference
    given["grid"] = {"kind": "shape", "shape": [16, 16, 16], "tile": [16, 16, 16]}
    with pytest.raises(ValidationError, match="include_reference means nothing on a grid of kind shape"):
        Stage.model_validate(given)


def test_numbers_with_which_nothing_would_be_learned_are_refused() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        SGD(momentum=1)
    with pytest.raises(ValidationError, match="less than 1"):
        PriorInput(of="coarse", dropout=1)


def test_planned_recipes_are_told_by_their_key() -> None:
    assert is_planned({"plan": "cascade"})
    assert not is_planned({"stages": []})
    assert not is_planned(["plan"])
