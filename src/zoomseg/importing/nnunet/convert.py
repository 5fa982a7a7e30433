"""A trained nnU-Net model as a recipe: every number that affects its prediction is a key of the recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from zoomseg.core.errors import LabelError, ModelError, quoted
from zoomseg.core.geometry import Index3
from zoomseg.core.labels import LabelSchema
from zoomseg.importing.nnunet.network import Axes, axes_of, in_space, spec_of, turned
from zoomseg.importing.nnunet.plans import ANISOTROPY, ChannelIntensities, Configuration, Plans, Resampling
from zoomseg.recipe.quantities import MAX_NAME
from zoomseg.recipe.spec import (
    SGD,
    Augmentation,
    ChannelIntensity,
    ClassBalanced,
    FixedSpacing,
    GridAxis,
    ImageInput,
    IntensitySpec,
    MinMax,
    PerChannel,
    PlainConvUNet,
    Polynomial,
    PriorInput,
    Recipe,
    ResEncUNet,
    Stage,
    Training,
    Unchanged,
    Window,
    ZScore,
)

SOURCE = (
    "Isensee et al. 2021, nnU-Net: a self-configuring method for deep learning-based biomedical image "
    "segmentation"
)
STAGE, LOWRES, FULLRES = "whole", "lowres", "fullres"
"""Names of stages: of a single one, and of the two of a cascade."""

ITERATIONS = 250_000
"""1000 epochs of 250, as in nnU-Net's training."""

OVERSAMPLED = 0.33
"""``nnUNetTrainer``'s ``oversample_foreground_percent``."""

OVERLAP = 0.5
"""``nnUNetPredictor``'s ``tile_step_size``."""

_ORIENTATIONS = {
    "SimpleITKIO": "stored",
    "NibabelIO": "stored",
    "NibabelIOWithReorient": "canonical",
    "SimpleITKIOWithReorient": "canonical",
}
"""By reader: whether it reorients scans to RAS+."""


@dataclass(frozen=True)
class Converted:
    """A model without its weights."""

    recipe: Recipe
    schema: LabelSchema
    channel_names: tuple[str, ...]
    axes: Axes

    @property
    def stage(self) -> Stage:
        """The configuration's own stage, which is the last."""
        return self.recipe.stages[-1]

    @property
    def network(self) -> PlainConvUNet | ResEncUNet:
        network = self.stage.network
        assert isinstance(network, PlainConvUNet | ResEncUNet)
        return network


def converted(
    plans: Plans,
    name: str,
    configuration: Configuration,
    dataset: dict[str, Any],
    mirrored: Sequence[int] = (),
    before: Converted | None = None,
) -> Converted:
    """The recipe of one configuration, called ``name``.

    Args:
        mirrored: axes of the network's input that were mirrored in training.
        before: the configuration whose label map this one reads, if it reads one.

    Raises:
        ModelError: names what cannot be imported, and what can.
    """
    _check(plans, name, configuration)
    channels = _channel_names(dataset)
    schema, regions = _schema(dataset)
    own = _stage(plans, configuration, mirrored, regions)
    intensity = _intensity(plans, configuration, len(channels))
    recipe = Recipe(
        name=_recipe_name(plans.dataset_name, name),
        description=f"Imported from nnU-Net v2: {name} of {plans.dataset_name or 'a data set'}.",
        source=SOURCE,
        intensity=intensity,
        stages=(own,),
        orientation=_ORIENTATIONS[plans.image_reader_writer],
        crop="nonzero",
        prior_from="predictions",
        roi_expansion=False,
    )
    alone = Converted(recipe, schema, channels, axes_of(plans.transpose_forward))
    if before is None:
        return alone
    _check_prior(configuration)
    return _cascade(alone, before, _label_values(dataset))


def _cascade(own: Converted, before: Converted, label_values: set[int]) -> Converted:
    """A configuration after the one whose label map it reads. ``label_values``: of the labels of which
    regions consist."""
    for what, one, other in (
        ("labels", own.schema, before.schema),
        ("channels", own.channel_names, before.channel_names),
        ("orientation", own.recipe.orientation, before.recipe.orientation),
    ):
        if one != other:
            raise ModelError(
                f"the configuration that the cascade reads has other {what}; give the one of the same "
                "data set"
            )
    overlap = own.stage.labels_overlap
    names = tuple(sorted(own.schema.names, key=own.schema.value_of.__getitem__))
    if overlap and not (_consecutive(own.schema.values) and label_values == set(own.schema.values)):
        raise ModelError(
            f"dataset.json: regions have the values {sorted(own.schema.values)} and consist of the labels "
            f"{quoted(sorted(label_values))}; supported in a cascade are 1, 2, 3 and so on, and as many "
            "regions as labels"
        )
    prior = PriorInput(of=LOWRES, labels=names if overlap else "all", form="label_map")
    differs = before.recipe.intensity != own.recipe.intensity
    low = {"name": LOWRES, "fusion": "none", "intensity": before.recipe.intensity if differs else None}
    stages = (
        before.stage.model_copy(update=low),
        own.stage.model_copy(update={"name": FULLRES, "inputs": (ImageInput(), prior)}),
    )
    recipe = Recipe.model_validate(own.recipe.model_copy(update={"stages": stages}).model_dump())
    return replace(own, recipe=recipe)


def _stage(plans: Plans, configuration: Configuration, mirrored: Sequence[int], regions: bool) -> Stage:
    axes = axes_of(plans.transpose_forward)
    dimensions = len(configuration.patch_size)
    across = [None] * (3 - dimensions)
    spacing = [[*across, *configuration.spacing][axis] for axis in axes]
    patch = turned(in_space(configuration.patch_size), axes)
    return Stage(
        name=STAGE,
        grid=FixedSpacing(
            mm=(spacing[0], spacing[1], spacing[2]),
            tile=patch,
            overlap=_overlap(axes, dimensions),
            fit="round",
            interpolation="cubic",
            slices_apart_above=_threshold(configuration),
            importance="gaussian",
            beyond="zero",
        ),
        network=spec_of(configuration.architecture, axes, dimensions),
        training=Training(
            patch=patch,
            batch=configuration.batch_size,
            iterations=ITERATIONS,
            sampler=ClassBalanced(background_share=_anywhere(configuration.batch_size)),
            optimiser=SGD(nesterov=True, weight_decay=3e-5),
            schedule=Polynomial(),
            augmentation=_augmentation(patch),
            gradient_clip=12.0,
        ),
        mean="geometric",
        mirror_axes=_mirror_axes(mirrored, axes, dimensions),
        labels_overlap=regions,
    )


def _anywhere(batch: int) -> float:
    """Share of patches that nnU-Net draws anywhere in a scan: of every batch, whole patches (its
    ``nnUNetDataLoader._oversample_last_XX_percent``). The others are centred on a class, each equally
    likely."""
    return round(batch * (1 - OVERSAMPLED)) / batch


def _mirror_axes(mirrored: Sequence[int], axes: Axes, dimensions: int) -> tuple[GridAxis, ...]:
    wrong = [axis for axis in mirrored if not 0 <= axis < dimensions]
    if wrong:
        raise ModelError(
            f"the checkpoint allows mirroring along axis {wrong[0]}, which a network of {dimensions} axes "
            "does not have; download it again"
        )
    there = {axis + 3 - dimensions for axis in mirrored}
    names: tuple[GridAxis, ...] = ("i", "j", "k")
    return tuple(name for name, axis in zip(names, axes, strict=True) if axis in there)


def _overlap(axes: Axes, dimensions: int) -> float | tuple[float, float, float]:
    """Slices are predicted once each."""
    i, j, k = (0.0 if dimensions == 2 and axis == 0 else OVERLAP for axis in axes)
    return OVERLAP if dimensions == 3 else (i, j, k)


def _augmentation(patch: Index3) -> Augmentation:
    """The augmentation of ``nnUNetTrainer.get_training_transforms``, as far as a recipe can express it, for
    fine-tuning. Without mirroring, which requires knowledge of paired labels. A flat patch is rotated in its
    plane."""
    flat = max(patch) / min(patch) > ANISOTROPY
    r, a, s = (30.0 if not flat or size == min(patch) else 0.0 for size in patch)
    return Augmentation(
        rotation_deg=(r, a, s),
        scale=(0.7, 1.4),
        brightness=0.25,
        contrast=0.25,
        gamma=(0.7, 1.5),
        noise=0.3,
        blur_vox=1.0,
        probability=0.2,
    )


def _check(plans: Plans, name: str, configuration: Configuration) -> None:
    """Refuse configurations that a recipe cannot express."""
    dimensions = len(configuration.patch_size)
    if dimensions not in (2, 3) or len(configuration.spacing) != dimensions:
        raise ModelError(
            f"plans.json, configuration {quoted(name)}: patch_size has {dimensions} axes and spacing "
            f"{len(configuration.spacing)}; expected 2 or 3 of both"
        )
    if configuration.preprocessor_name != "DefaultPreprocessor":
        raise ModelError(
            f"preprocessor {quoted(configuration.preprocessor_name)}: supported is DefaultPreprocessor"
        )
    if plans.label_manager != "LabelManager":
        raise ModelError(f"label manager {quoted(plans.label_manager)}: supported is LabelManager")
    if plans.image_reader_writer not in _ORIENTATIONS:
        raise ModelError(
            f"image reader {quoted(plans.image_reader_writer)}: supported are {', '.join(_ORIENTATIONS)}"
        )


def _threshold(configuration: Configuration) -> float | None:
    """The anisotropy above which slices are resampled separately; None: never."""
    image = _resampling("data", configuration.resampling_fn_data, configuration.resampling_fn_data_kwargs, 3)
    probabilities = _resampling(
        "probabilities",
        configuration.resampling_fn_probabilities,
        configuration.resampling_fn_probabilities_kwargs,
        1,
    )
    if image != probabilities:
        raise ModelError(
            "resampling of data and of probabilities separates slices differently; supported: alike"
        )
    return image


def _check_prior(configuration: Configuration) -> None:
    """Refuse a cascade that resamples the label map it reads differently from the image."""
    labels = _resampling("seg", configuration.resampling_fn_seg, configuration.resampling_fn_seg_kwargs, 1)
    if labels != _threshold(configuration):
        raise ModelError(
            "resampling of seg and of data separates slices differently; supported in a cascade: alike"
        )


def _resampling(what: str, function: str, options: Resampling, order: int) -> float | None:
    if function != "resample_data_or_seg_to_shape":
        raise ModelError(
            f"resampling_fn_{what} {quoted(function)}: supported is resample_data_or_seg_to_shape"
        )
    labels = what == "seg"
    if (
        options.order != order
        or options.order_z != 0
        or options.force_separate_z is True
        or options.is_seg != labels
    ):
        raise ModelError(
            f"resampling_fn_{what}_kwargs {quoted(options)}: supported are is_seg {str(labels).lower()}, "
            f"order {order}, order_z 0 and force_separate_z null or false"
        )
    return None if options.force_separate_z is False else options.separate_z_anisotropy_threshold


def _intensity(plans: Plans, configuration: Configuration, channels: int) -> IntensitySpec:
    schemes, masks = configuration.normalization_schemes, configuration.use_mask_for_norm
    if len(schemes) != channels or len(masks) != channels:
        raise ModelError(
            f"{len(schemes)} normalisation schemes for {channels} channels; expected one for each"
        )
    known = plans.foreground_intensity_properties_per_channel
    own = [
        _channel_intensity(scheme, bool(mask), known.get(str(n)), n)
        for n, (scheme, mask) in enumerate(zip(schemes, masks, strict=True))
    ]
    if len(own) == 1 or (own[0].kind in ("zscore", "min_max", "unchanged") and len(set(own)) == 1):
        return own[0]
    return PerChannel(channels=tuple(own))


def _channel_intensity(
    scheme: str, mask: bool, own: ChannelIntensities | None, channel: int
) -> ChannelIntensity:
    match scheme:
        case "CTNormalization":
            if own is None:
                raise ModelError(
                    f"plans.json has no foreground intensities of channel {channel}, which CTNormalization "
                    "needs"
                )
            return _clipped(own)
        case "ZScoreNormalization":
            return ZScore(clip_percentiles=None, within="nonzero" if mask else "all")
        case "RescaleTo01Normalization":
            return MinMax()
        case "RGBTo01Normalization":  # of 0 to 255 by definition: nothing is clipped
            return Window(lower=0, upper=255)
        case "NoNormalization":
            return Unchanged()
        case _:
            raise ModelError(
                f"normalisation {quoted(scheme)}: supported are CTNormalization, ZScoreNormalization, "
                "RescaleTo01Normalization, RGBTo01Normalization and NoNormalization"
            )


def _clipped(own: ChannelIntensities) -> Window:
    """``CTNormalization``: clipped, minus the mean, divided by the standard deviation; the same function as a
    window."""
    spread = max(own.std, 1e-8)
    lower, upper = own.percentile_00_5, own.percentile_99_5
    return Window(lower=lower, upper=upper, output=((lower - own.mean) / spread, (upper - own.mean) / spread))


def _channel_names(dataset: dict[str, Any]) -> tuple[str, ...]:
    given = dataset.get("channel_names", dataset.get("modality"))
    numbers = [str(n) for n in range(len(given))] if isinstance(given, dict) else []
    if not isinstance(given, dict) or not given or set(given) != set(numbers):
        raise ModelError(
            "dataset.json: channel_names must name every channel by its number: 0, 1, 2 and so on"
        )
    return tuple(str(given[number]) for number in numbers)


def _schema(dataset: dict[str, Any]) -> tuple[LabelSchema, bool]:
    """The labels, and whether they are regions, in the order in which they overwrite one another."""
    given = dataset.get("labels")
    if not isinstance(given, dict) or _whole(given.get("background")) != 0:
        raise ModelError("dataset.json: labels must give every name its value, and background 0")
    # The ignore label occurs in references, never in predictions.
    labels = {str(name): value for name, value in given.items() if name not in ("background", "ignore")}
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    if regions:
        names, values = list(labels), _painted(labels, dataset.get("regions_class_order"))
    else:
        single = {
            name: _whole(value[0] if isinstance(value, list) and value else value)
            for name, value in labels.items()
        }
        if not _consecutive(list(single.values())):
            raise ModelError(
                f"dataset.json: label values are {quoted(list(labels.values()))}; expected 1, 2, 3 and so on"
            )
        names = sorted(single, key=lambda name: single[name])
        values = [single[name] for name in names]
    try:
        return LabelSchema(tuple(names), tuple(values)), regions
    except LabelError as error:
        raise ModelError(f"dataset.json: {error}") from error


def _painted(labels: dict[str, Any], order: object) -> list[int]:
    """The value of each region in the label map (nnU-Net's ``regions_class_order``)."""
    if not isinstance(order, list) or len(order) != len(labels) or any(type(n) is not int for n in order):
        raise ModelError(
            f"dataset.json: labels are {len(labels)} regions, and regions_class_order is {quoted(order)}; "
            "expected one value for each"
        )
    if len(set(order)) != len(order):
        raise ModelError(
            f"dataset.json: regions_class_order is {quoted(order)}, so that several regions get one value; "
            "supported is a value of its own for each"
        )
    return order


def _label_values(dataset: dict[str, Any]) -> set[int]:
    """The values of all labels that are predicted, also of those in regions."""
    given = [value for name, value in dataset["labels"].items() if name not in ("background", "ignore")]
    every = (_whole(one) for value in given for one in (value if isinstance(value, list) else [value]))
    return {one for one in every if isinstance(one, int)}


def _whole(value: Any) -> Any:
    """A label's value; nnU-Net also reads numbers written as text."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value


def _consecutive(values: Sequence[object]) -> bool:
    numbers = [value for value in values if type(value) is int]
    return len(numbers) == len(values) and sorted(numbers) == list(range(1, len(values) + 1))


def _recipe_name(dataset: str, configuration: str) -> str:
    text = re.sub("[^a-z0-9]+", "-", f"nnunet-{dataset}-{configuration}".lower())
    return text.strip("-")[:MAX_NAME]
