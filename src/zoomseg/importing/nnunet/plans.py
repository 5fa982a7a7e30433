"""``plans.json``: one configuration with its inherited values, in the current format and in that of plans
before nnU-Net 2.4, which give a U-Net's numbers without an ``architecture``."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoomseg.core.errors import ModelError, listed, quoted
from zoomseg.recipe.quantities import MAX_LEVELS, Batch

PlansModel = TypeVar("PlansModel", bound=BaseModel)

ANISOTROPY = 3.0
"""``nnunetv2.configuration.ANISO_THRESHOLD``."""

Sizes = int | list[int] | list[list[int]]
"""One number for all levels and axes, one per level, or one per level and axis."""


class _Part(BaseModel):
    """Further keys, irrelevant for prediction, are allowed."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ArchitectureNumbers(_Part):
    """``arch_kwargs`` of ``PlainConvUNet`` and ``ResidualEncoderUNet``."""

    n_stages: Annotated[int, Field(ge=2, le=MAX_LEVELS)]
    features_per_stage: int | list[int]
    kernel_sizes: Sizes
    strides: Sizes
    n_conv_per_stage: int | list[int] | None = None
    n_blocks_per_stage: int | list[int] | None = None
    n_conv_per_stage_decoder: int | list[int]
    norm_op: str | None = None
    norm_op_kwargs: dict[str, Any] | None = None
    nonlin: str | None = None
    nonlin_kwargs: dict[str, Any] | None = None
    nonlin_first: bool = False
    block: str | None = None
    stem_channels: int | None = None


class Architecture(_Part):
    network_class_name: str
    arch_kwargs: ArchitectureNumbers

    @property
    def name(self) -> str:
        """The class name alone, independent of its module in nnU-Net at the time."""
        return self.network_class_name.rpartition(".")[2]


class _OldNumbers(_Part):
    """A configuration's U-Net before nnU-Net 2.4."""

    patch_size: list[int]
    UNet_class_name: str
    UNet_base_num_features: int
    unet_max_num_features: int
    n_conv_per_stage_encoder: Annotated[list[int], Field(min_length=2, max_length=MAX_LEVELS)]
    n_conv_per_stage_decoder: list[int]
    conv_kernel_sizes: list[list[int]]
    pool_op_kernel_sizes: list[list[int]]

    @property
    def architecture(self) -> Architecture:
        """As in nnU-Net itself (``nnunetv2.utilities.plans_handling.plans_handler``)."""
        stages = len(self.n_conv_per_stage_encoder)
        features = [
            min(self.UNet_base_num_features * 2**n, self.unet_max_num_features) for n in range(stages)
        ]
        residual = self.UNet_class_name == "ResidualEncoderUNet"
        numbers = ArchitectureNumbers(
            n_stages=stages,
            features_per_stage=features,
            kernel_sizes=self.conv_kernel_sizes,
            strides=self.pool_op_kernel_sizes,
            n_conv_per_stage=None if residual else self.n_conv_per_stage_encoder,
            n_blocks_per_stage=self.n_conv_per_stage_encoder if residual else None,
            n_conv_per_stage_decoder=self.n_conv_per_stage_decoder,
            norm_op=f"torch.nn.modules.instancenorm.InstanceNorm{len(self.patch_size)}d",
            nonlin="torch.nn.LeakyReLU",
        )
        return Architecture(network_class_name=self.UNet_class_name, arch_kwargs=numbers)


class Resampling(_Part):
    """Keyword arguments of ``resample_data_or_seg_to_shape``, with its defaults."""

    is_seg: bool = False
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: float = ANISOTROPY


class Configuration(_Part):
    """The parts of a configuration that are relevant for prediction. Axes are nnU-Net's: a scan's k, j, i,
    transposed."""

    spacing: list[float]
    patch_size: list[int]
    batch_size: Batch = 2
    preprocessor_name: str = "DefaultPreprocessor"
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool | None]
    resampling_fn_data: str = "resample_data_or_seg_to_shape"
    resampling_fn_data_kwargs: Resampling = Resampling()
    resampling_fn_seg: str = "resample_data_or_seg_to_shape"
    resampling_fn_seg_kwargs: Resampling = Resampling()
    resampling_fn_probabilities: str = "resample_data_or_seg_to_shape"
    resampling_fn_probabilities_kwargs: Resampling = Resampling()
    previous_stage: Annotated[str | None, Field(pattern=r"^[^/\\\x00]+$")] = None
    """A configuration, and part of the name of its folder."""
    architecture: Architecture


class ChannelIntensities(_Part):
    """Intensities of the foreground of all training scans."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class Plans(_Part):
    dataset_name: str = ""
    plans_name: str = ""
    image_reader_writer: str = "SimpleITKIO"
    transpose_forward: Annotated[list[int], Field(min_length=3, max_length=3)]
    label_manager: str = "LabelManager"
    foreground_intensity_properties_per_channel: dict[str, ChannelIntensities]
    configurations: dict[str, dict[str, Any]]


def parse(data: dict[str, Any]) -> Plans:
    """The complete plans.

    Raises:
        ModelError: they are not nnU-Net v2 plans.
    """
    if "configurations" not in data and "plans_per_stage" in data:
        raise ModelError("plans are of nnU-Net v1; only v2's are read: convert or train the model with v2")
    older = data.get("foreground_intensity_properties_by_modality")
    plans = validated(Plans, {"foreground_intensity_properties_per_channel": older} | data, "plans.json")
    if sorted(plans.transpose_forward) != [0, 1, 2]:
        raise ModelError(
            f"plans.json: transpose_forward is {plans.transpose_forward}; expected 0, 1, 2 in some order"
        )
    return plans


def configuration_of(plans: Plans, name: str) -> Configuration:
    """A configuration with all inherited values.

    Raises:
        ModelError: there is none of that name, it inherits from itself, or a number is missing or wrong.
    """
    where = f"plans.json, configuration {quoted(name)}"
    given = _inherited(plans, name)
    if "architecture" not in given and "UNet_class_name" in given:
        given["architecture"] = validated(_OldNumbers, given, where).architecture
    return validated(Configuration, given, where)


def _inherited(plans: Plans, name: str) -> dict[str, Any]:
    """A configuration's own values, and those of its parents that it lacks."""
    found: dict[str, Any] = {}
    visited: set[str] = set()
    following: str | None = name
    while following is not None:
        if following in visited:
            raise ModelError(
                f"plans.json: configuration {quoted(following)} inherits from itself; download the plans "
                "again"
            )
        if following not in plans.configurations:
            known = listed(sorted(plans.configurations))
            raise ModelError(
                f"plans.json has no configuration {quoted(following)}, which the checkpoint names; it has: "
                f"{known}"
            )
        visited.add(following)
        own = dict(plans.configurations[following])
        parent = own.pop("inherits_from", None)
        for key, value in own.items():
            found.setdefault(key, value)
        following = None if parent is None else str(parent)
    return found


def validated(model: type[PlansModel], data: dict[str, Any], where: str) -> PlansModel:
    """A part of a JSON file as a value.

    Raises:
        ModelError: its first problem.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        raise ModelError(
            f"{where}: {quoted(key)}: {detail['msg']}; supported are plans of nnU-Net 2.0 to 2.8"
        ) from None
