"""Plans: inheritance, the format before nnU-Net 2.4, and errors."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import nnunet_models
from zoomseg.core.errors import ModelError
from zoomseg.importing.nnunet.network import spec_of
from zoomseg.importing.nnunet.plans import configuration_of, parse


def test_a_configuration_has_what_it_inherits() -> None:
    found = configuration_of(parse(nnunet_models.plans()), "3d_child")
    assert found.spacing == [6.0, 3.0, 2.5]
    assert found.patch_size == nnunet_models.PATCH
    assert found.architecture.name == "PlainConvUNet"


def test_plans_without_an_architecture_give_the_same_network() -> None:
    given = nnunet_models.plans()
    own = given["configurations"]["3d_fullres"]
    new = configuration_of(parse(given), "3d_fullres")
    del own["architecture"]
    own |= nnunet_models.old_numbers()
    old = configuration_of(parse(given), "3d_fullres")
    assert spec_of(old.architecture, (2, 1, 0)) == spec_of(new.architecture, (2, 1, 0))


def test_a_circle_and_an_unknown_configuration_are_refused() -> None:
    given = nnunet_models.plans()
    with pytest.raises(ModelError, match=r"no configuration 3d_lowres, .*it has: 2d, 3d_child, 3d_fullres"):
        configuration_of(parse(given), "3d_lowres")
    given["configurations"]["3d_fullres"]["inherits_from"] = "3d_child"
    with pytest.raises(ModelError, match="3d_child inherits from itself"):
        configuration_of(parse(given), "3d_child")


def test_a_long_chain_is_followed_to_its_end() -> None:
    given = nnunet_models.plans()
    for n in range(3000):
        parent = f"child_{n - 1}" if n else "3d_fullres"
        given["configurations"][f"child_{n}"] = {"inherits_from": parent, "batch_size": n + 1}
    found = configuration_of(parse(given), "child_2999")
    assert (found.batch_size, found.patch_size) == (3000, nnunet_models.PATCH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 10**400}, "batch_size: Input should be less than or equal to 4096"),
        (
            {"resampling_fn_data_kwargs": {"separate_z_anisotropy_threshold": "x"}},
            "resampling_fn_data_kwargs.separate_z_anisotropy_threshold: ",
        ),
        ({"resampling_fn_seg_kwargs": {"order": []}}, "resampling_fn_seg_kwargs.order: "),
        ({"previous_stage": "../elsewhere"}, "previous_stage: String should match"),
    ],
)
def test_numbers_out_of_range_and_of_other_types_are_refused(changes: Any, message: str) -> None:
    given = nnunet_models.plans()
    given["configurations"]["3d_fullres"] |= changes
    with pytest.raises(ModelError, match=message):
        configuration_of(parse(given), "3d_fullres")


@pytest.mark.parametrize(
    ("levels", "message"), [(100_000, "at most 12 items"), (1, "at least 2 items"), (0, "at least 2 items")]
)
def test_older_plans_have_as_many_levels_as_a_network(levels: int, message: str) -> None:
    given = nnunet_models.plans()
    own = given["configurations"]["3d_fullres"]
    del own["architecture"]
    own |= nnunet_models.old_numbers() | {"n_conv_per_stage_encoder": [2] * levels}
    with pytest.raises(ModelError, match=f"n_conv_per_stage_encoder: List should have {message}"):
        configuration_of(parse(given), "3d_fullres")


def test_plans_of_another_version_or_with_a_key_missing_are_refused() -> None:
    with pytest.raises(ModelError, match="plans are of nnU-Net v1"):
        parse({"plans_per_stage": {}})
    given = nnunet_models.plans()
    given["transpose_forward"] = [0, 1, 1]
    with pytest.raises(ModelError, match=r"transpose_forward is \[0, 1, 1\]"):
        parse(given)
    given = nnunet_models.plans()
    del given["configurations"]["3d_fullres"]["patch_size"]
    with pytest.raises(ModelError, match="configuration 3d_fullres: patch_size: Field required"):
        configuration_of(parse(given), "3d_fullres")


def test_older_plans_have_intensities_by_modality() -> None:
    given = nnunet_models.plans()
    known = parse(given).foreground_intensity_properties_per_channel
    given["foreground_intensity_properties_by_modality"] = given.pop(
        "foreground_intensity_properties_per_channel"
    )
    assert parse(given).foreground_intensity_properties_per_channel == known
    assert known["0"].mean == 60.0


def test_slices_of_older_plans_are_normalised_over_two_axes() -> None:
    given = nnunet_models.plans()
    numbers = nnunet_models.old_numbers()
    given["configurations"]["2d"] = {
        **given["configurations"]["3d_fullres"],
        **numbers,
        "patch_size": [8, 12],
    }
    del given["configurations"]["2d"]["architecture"]
    found = configuration_of(parse(given), "2d").architecture.arch_kwargs
    assert found.norm_op == "torch.nn.modules.instancenorm.InstanceNorm2d"
