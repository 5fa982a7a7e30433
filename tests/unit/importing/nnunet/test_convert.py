"""Plans as a recipe: every number in its place, and unsupported ones refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import nnunet_models
from zoomseg.core.errors import ModelError
from zoomseg.importing.nnunet.convert import Converted, converted
from zoomseg.importing.nnunet.plans import configuration_of, parse
from zoomseg.recipe.spec import (
    ClassBalanced,
    FixedSpacing,
    MinMax,
    PerChannel,
    Polynomial,
    Unchanged,
    Window,
    ZScore,
)

DATASET: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": nnunet_models.LABELS}


def of(given: Any, dataset: dict[str, Any] = DATASET) -> Converted:
    plans = parse(given)
    return converted(plans, "3d_fullres", configuration_of(plans, "3d_fullres"), dataset)


def changed(**changes: Any) -> Any:
    given = nnunet_models.plans()
    given["configurations"]["3d_fullres"] |= changes
    return given


def test_the_recipe_has_every_number_of_the_plans() -> None:
    own = of(nnunet_models.plans(transpose=(1, 0, 2)))
    (stage,) = own.recipe.stages
    # nnU-Net's axes are j, k, i here.
    assert stage.grid == FixedSpacing(
        mm=(1.25, 3.0, 1.5),
        tile=(12, 4, 8),
        overlap=0.5,
        fit="round",
        interpolation="cubic",
        slices_apart_above=3.0,
        importance="gaussian",
        beyond="zero",
    )
    assert stage.network.strides == ((1, 1, 1), (2, 1, 2), (2, 2, 2))  # type: ignore[union-attr]
    assert (stage.mean, own.recipe.crop, own.recipe.orientation) == ("geometric", "nonzero", "stored")
    assert own.schema.names == ("liver", "spleen")
    assert own.channel_names == ("CT",)


def test_slices_are_sampled_in_their_plane_and_answered_once() -> None:
    plans = parse(nnunet_models.plans(transpose=(1, 0, 2)))
    (stage,) = converted(plans, "2d", configuration_of(plans, "2d"), DATASET).recipe.stages
    grid = stage.grid
    assert isinstance(grid, FixedSpacing)
    # nnU-Net's axes are j, k, i here, and its slices lie across j.
    assert (grid.mm, grid.tile, grid.overlap) == ((1.25, None, 1.5), (12, 1, 8), (0.5, 0, 0.5))
    assert stage.network.strides == ((1, 1, 1), (2, 1, 2), (2, 1, 2))  # type: ignore[union-attr]
    assert stage.network.kernels == ((3, 1, 3),) * 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("patch", "rotation"),
    [([8, 16, 16], (30.0, 30.0, 30.0)), ([4, 16, 16], (0.0, 0.0, 30.0))],
    ids=["even", "flat"],
)
def test_fine_tuning_turns_and_scales_patches_as_nnunet_does(
    patch: list[int], rotation: tuple[float, float, float]
) -> None:
    training = of(changed(patch_size=patch)).recipe.stages[0].training
    assert training.augmentation.rotation_deg == rotation
    assert (training.augmentation.scale, training.augmentation.flip_axes) == ((0.7, 1.4), ())
    assert (training.gradient_clip, training.schedule) == (12.0, Polynomial())


@pytest.mark.parametrize(("batch", "anywhere"), [(2, 1 / 2), (3, 2 / 3), (5, 3 / 5), (12, 8 / 12)])
def test_fine_tuning_draws_patches_as_nnunet_does(batch: int, anywhere: float) -> None:
    """Whole patches of every batch anywhere, the others on a class, each equally likely."""
    training = of(changed(batch_size=batch)).recipe.stages[0].training
    assert training.sampler == ClassBalanced(background_share=anywhere)


def test_axes_that_were_mirrored_are_named_as_the_grid_s() -> None:
    plans = parse(nnunet_models.plans(transpose=(1, 0, 2)))  # nnU-Net's axes are j, k, i

    def mirrored(name: str, axes: tuple[int, ...]) -> tuple[str, ...]:
        own = converted(plans, name, configuration_of(plans, name), DATASET, axes)
        return own.recipe.stages[0].mirror_axes

    assert mirrored("3d_fullres", (0, 2)) == ("i", "j")
    assert mirrored("3d_fullres", ()) == ()
    assert mirrored("2d", (0, 1)) == ("i", "k")
    assert mirrored("2d", (0,)) == ("k",)


def test_ct_is_clipped_and_standardised_by_numbers_of_the_training_scans() -> None:
    window = of(nnunet_models.plans()).recipe.intensity
    assert isinstance(window, Window)
    assert (window.lower, window.upper) == (-100.0, 200.0)
    assert window.output == pytest.approx(((-100 - 60) / 50, (200 - 60) / 50))


def test_zscore_is_that_of_the_whole_scan_unclipped() -> None:
    assert of(nnunet_models.plans(scheme="ZScoreNormalization")).recipe.intensity == ZScore(
        clip_percentiles=None
    )


def test_every_channel_is_normalised_by_its_own_scheme() -> None:
    given = changed(
        normalization_schemes=[
            "CTNormalization",
            "ZScoreNormalization",
            "RescaleTo01Normalization",
            "RGBTo01Normalization",
            "NoNormalization",
            "CTNormalization",
        ],
        use_mask_for_norm=[False, True, False, False, None, False],
    )
    other = {"mean": 1.0, "std": 2.0, "percentile_00_5": 0.0, "percentile_99_5": 4.0}
    given["foreground_intensity_properties_per_channel"]["5"] = other
    names = {str(n): f"channel {n}" for n in range(6)}
    intensity = of(given, DATASET | {"channel_names": names}).recipe.intensity
    assert isinstance(intensity, PerChannel)
    ct, *others, last = intensity.channels
    assert isinstance(ct, Window)
    assert (ct.lower, ct.upper) == (-100.0, 200.0)
    assert others == [
        ZScore(clip_percentiles=None, within="nonzero"),
        MinMax(),
        Window(lower=0, upper=255, output=(0, 1)),
        Unchanged(),
    ]
    assert last == Window(lower=0, upper=4, output=(-0.5, 1.5))


def test_channels_alike_are_said_once() -> None:
    given = changed(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[True, True])
    names = {"channel_names": {"0": "T1", "1": "T2"}}
    assert of(given, DATASET | names).recipe.intensity == ZScore(clip_percentiles=None, within="nonzero")


def test_ct_needs_the_intensities_of_its_channel() -> None:
    given = changed(normalization_schemes=["CTNormalization"] * 2, use_mask_for_norm=[False, False])
    with pytest.raises(ModelError, match="no foreground intensities of channel 1, which CTNormalization"):
        of(given, DATASET | {"channel_names": {"0": "CT", "1": "CT"}})


def test_regions_are_labels_in_the_order_in_which_they_are_written() -> None:
    labels = {"background": 0, "tumour": [1, 2, 3], "core": [1, 3], "rim": [3], "ignore": 4}
    own = of(nnunet_models.plans(), DATASET | {"labels": labels, "regions_class_order": [2, 1, 3]})
    assert own.schema.value_of == {"tumour": 2, "core": 1, "rim": 3}
    assert own.recipe.stages[0].labels_overlap
    single = {"labels": {"background": 0, "b": [2], "a": 1}}  # no region, as no label has several values
    assert of(nnunet_models.plans(), DATASET | single).schema.value_of == {"a": 1, "b": 2}


def test_label_values_may_be_written_as_text() -> None:
    own = of(nnunet_models.plans(), DATASET | {"labels": {"background": "0", "b": "2", "a": ["1"]}})
    assert own.schema.value_of == {"a": 1, "b": 2}


def test_a_cascade_of_fewer_regions_than_labels_is_refused() -> None:
    """Its network has a channel for each label."""
    for labels, supported in (
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, False),
        ({"background": 0, "whole": [1, "2"], "core": 2}, True),
        ({"background": 0, "whole": [1, 3], "core": 3}, False),
    ):
        dataset = DATASET | {"labels": labels, "regions_class_order": [1, 2]}
        before = of(nnunet_models.plans(), dataset)
        plans = parse(nnunet_models.plans())
        configuration = configuration_of(plans, "3d_fullres")
        if supported:
            own = converted(plans, "3d_fullres", configuration, dataset, before=before)
            assert [stage.name for stage in own.recipe.stages] == ["lowres", "fullres"]
            continue
        with pytest.raises(
            ModelError, match=r"regions have the values \[1, 2\] and consist of the labels \["
        ):
            converted(plans, "3d_fullres", configuration, dataset, before=before)


def test_a_reader_that_turns_scans_makes_the_model_see_them_turned() -> None:
    given = nnunet_models.plans() | {"image_reader_writer": "NibabelIOWithReorient"}
    assert of(given).recipe.orientation == "canonical"


def test_resampling_that_never_separates_slices() -> None:
    options = {"order_z": 0, "force_separate_z": False}
    given = changed(
        resampling_fn_data_kwargs=options | {"order": 3},
        resampling_fn_probabilities_kwargs=options | {"order": 1},
    )
    grid = of(given).recipe.stages[0].grid
    assert isinstance(grid, FixedSpacing)
    assert grid.slices_apart_above is None


def test_the_ignore_label_is_none_of_the_models() -> None:
    labels = nnunet_models.LABELS | {"ignore": 3}
    assert of(nnunet_models.plans(), DATASET | {"labels": labels}).schema.names == ("liver", "spleen")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed(spacing=[1.0, 1.0]), "patch_size has 3 axes and spacing 2; expected 2 or 3 of both"),
        (changed(patch_size=[8], spacing=[1.0]), "patch_size has 1 axes"),
        (changed(preprocessor_name="Mine"), "preprocessor Mine: supported is DefaultPreprocessor"),
        (
            changed(normalization_schemes=["Mine"]),
            "normalisation Mine: supported are CTNormalization, ZScoreNormalization, Rescale",
        ),
        (changed(normalization_schemes=["CTNormalization"] * 2), "2 normalisation schemes for 1 channels"),
        (
            changed(resampling_fn_data="resample_torch_simple"),
            "resampling_fn_data resample_torch_simple: supported",
        ),
        (
            changed(resampling_fn_probabilities_kwargs={"order": 3}),
            "resampling_fn_probabilities_kwargs .*order 1",
        ),
        (
            changed(resampling_fn_probabilities_kwargs={}),  # nnU-Net's default is 3
            "resampling_fn_probabilities_kwargs .*order 1",
        ),
        (nnunet_models.plans() | {"label_manager": "Mine"}, "label manager Mine: supported is LabelManager"),
        (nnunet_models.plans() | {"image_reader_writer": "Tiff3DIO"}, "image reader Tiff3DIO: supported are"),
    ],
)
def test_what_a_recipe_cannot_say_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        of(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resampling_fn_seg": "mine"}, "resampling_fn_seg mine: supported is resample_data_or_seg_to_shape"),
        ({"resampling_fn_seg_kwargs": {"is_seg": True, "order": 0}}, "resampling_fn_seg_kwargs .*order 1"),
        ({"resampling_fn_seg_kwargs": {"is_seg": True}}, "resampling_fn_seg_kwargs .*order 1"),
        ({"resampling_fn_seg_kwargs": {"order": 1}}, "resampling_fn_seg_kwargs .*is_seg true"),
        (
            {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "force_separate_z": False}},
            "resampling of seg and of data separates slices differently",
        ),
    ],
)
def test_a_cascade_that_resamples_its_label_map_otherwise_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    plain = of(nnunet_models.plans())
    plans = parse(changed(**changes))
    configuration = configuration_of(plans, "3d_fullres")
    assert converted(plans, "3d_fullres", configuration, DATASET).recipe == plain.recipe  # reads no label map
    with pytest.raises(ModelError, match=message):
        converted(plans, "3d_fullres", configuration, DATASET, before=plain)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"labels": nnunet_models.LABELS}, "channel_names must name every channel"),
        (DATASET | {"channel_names": {"1": "CT"}}, "channel_names must name every channel by its number: 0"),
        (DATASET | {"channel_names": {"9" * 5000: "CT"}}, "channel_names must name every channel"),
        (DATASET | {"labels": {"0": "background"}}, "labels must give every name its value"),
        (
            DATASET | {"labels": {"background": 0, "all": [1, 2], "core": 1}},
            "labels are 2 regions, and regions_class_order is None; expected one value for each",
        ),
        (
            DATASET | {"labels": {"background": 0, "all": [1, 2]}, "regions_class_order": [1, 2]},
            r"labels are 1 regions, and regions_class_order is \[1, 2\]",
        ),
        (
            DATASET | {"labels": {"background": 0, "all": [1, 2], "b": 1}, "regions_class_order": [1, 1]},
            "several regions get one value",
        ),
        (DATASET | {"labels": {"background": 0, "liver": 2}}, r"label values are \[2\]; expected 1, 2, 3"),
    ],
)
def test_labels_and_channels_that_are_not_read_are_refused(dataset: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        of(nnunet_models.plans(), dataset)
