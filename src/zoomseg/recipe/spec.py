"""The specification of recipes: one model per kind, discriminated by ``kind``, unknown keys forbidden.

A recipe is a sequence of stages, each with seven keys: ``roi`` (its region), ``grid`` (its sampling),
``inputs`` (input of the network), ``network``, ``training``, ``labels`` (what it predicts) and ``fusion``
(how its prediction is written to the label map).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zoomseg.recipe.quantities import (
    MAX_LEVELS,
    AngleDeg,
    Anisotropy,
    Batch,
    Blocks,
    ChannelIndex,
    Channels,
    Decay,
    Dilation,
    Dropout,
    Factor,
    GradientNorm,
    InnerShare,
    Intensity,
    Iterations,
    Kernels,
    LabelName,
    LearningRate,
    LengthMm,
    LengthVox,
    Name,
    NeighbourhoodVox,
    NormalisedIntensity,
    Overlap,
    OwnSpacing,
    PitchVox,
    PositiveShare,
    Ratio,
    Ratios,
    ScanOrientation,
    Shape,
    Share,
    Spacing,
    Strength,
    Strides,
    Text,
    VoxelCount,
    Weight,
    WeightDecay,
)

Labels = tuple[LabelName, ...] | Literal["all", "own"]
"""Labels of another stage: names, all that it predicts, or those of the referring stage."""


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _apart(low: float, high: float) -> bool:
    """Whether two numbers ascend and differ in float32, with which images are computed."""
    return high - low >= 1e-6 * max(1.0, abs(low), abs(high))


# --- intensity ------------------------------------------------------------------------------------


class Window(Spec):
    """Clip to ``[lower, upper]`` (the scan's own unit, HU for CT) and scale to ``output``: linearly, or with
    ``inner_share`` of the output for the intensities ``inner`` alone, if a few organs (bone, airways) would
    leave little contrast to all others."""

    kind: Literal["window"] = "window"
    lower: Intensity
    upper: Intensity
    output: tuple[NormalisedIntensity, NormalisedIntensity] = (0.0, 1.0)
    inner: tuple[Intensity, Intensity] | None = None
    inner_share: InnerShare = 0.6
    zero_mean: bool = False
    """Subtract the mean inside a stage's region afterwards, channel by channel (``ZERO_MEAN`` in the released
    ``deploy_cascade.py`` of Roth et al. 2018)."""

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if not _apart(self.lower, self.upper):
            raise ValueError(f"lower ({self.lower}) must be below upper ({self.upper})")
        if not _apart(*self.output):
            raise ValueError(f"output ({list(self.output)}) must ascend")
        if self.inner is None:
            return self
        low, high = self.inner
        within = self.lower <= low and high <= self.upper
        outside = (low - self.lower) + (self.upper - high)
        if not (within and _apart(low, high) and _apart(0, outside)):
            raise ValueError(
                f"inner ([{low}, {high}]) must be a part of lower to upper ({self.lower} to {self.upper})"
            )
        return self


class ZScore(Spec):
    """Per scan and channel: clip to the percentiles, subtract the mean, divide by the standard deviation."""

    kind: Literal["zscore"] = "zscore"
    clip_percentiles: tuple[Share, Share] | None = (0.005, 0.995)
    """None: no clipping, and mean and standard deviation of all voxels (nnU-Net's ``ZScoreNormalization``);
    percentiles of a large scan are those of a million of its voxels."""
    within: Literal["all", "nonzero"] = "all"
    """``nonzero``: mean and standard deviation of the voxels that are not zero in every channel and of those
    that they enclose; all others become zero (nnU-Net's ``use_mask_for_norm``)."""

    @model_validator(mode="after")
    def _percentiles_are_of_all(self) -> ZScore:
        if self.within == "nonzero" and self.clip_percentiles is not None:
            raise ValueError("within: nonzero needs clip_percentiles: null")
        return self

    @model_validator(mode="after")
    def _ordered(self) -> ZScore:
        if self.clip_percentiles is None:
            return self
        low, high = self.clip_percentiles
        if not low < high:
            raise ValueError(f"clip_percentiles ([{low}, {high}]) must ascend")
        return self


class MinMax(Spec):
    """Per scan and channel: the lowest intensity becomes 0 and the highest 1 (nnU-Net's
    ``RescaleTo01Normalization``)."""

    kind: Literal["min_max"] = "min_max"


class Unchanged(Spec):
    """Unchanged intensities (nnU-Net's ``NoNormalization``)."""

    kind: Literal["unchanged"] = "unchanged"


ChannelIntensity = Annotated[Window | ZScore | MinMax | Unchanged, Field(discriminator="kind")]


class PerChannel(Spec):
    """A separate normalisation for every channel of the scan (nnU-Net's ``normalization_schemes``)."""

    kind: Literal["per_channel"] = "per_channel"
    channels: Annotated[tuple[ChannelIntensity, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _plain_windows(self) -> PerChannel:
        for channel in self.channels:
            if isinstance(channel, Window) and (channel.inner is not None or channel.zero_mean):
                raise ValueError("a window of one channel has no inner part and no zero_mean")
        return self


IntensitySpec = Annotated[Window | ZScore | MinMax | Unchanged | PerChannel, Field(discriminator="kind")]

# --- roi: where to look ---------------------------------------------------------------------------


class WholeVolume(Spec):
    kind: Literal["whole_volume"] = "whole_volume"


class BodyMask(Spec):
    """Threshold, hole filling, largest component (Roth et al. 2018, Section 2.2)."""

    kind: Literal["body_mask"] = "body_mask"
    threshold: Intensity = -200.0
    opening_vox: Annotated[int, Field(ge=0, le=100)] = 0
    """Number of times that the mask is eroded by a cube of 3 voxels of the stage's grid before its largest
    component is selected, and that the component is dilated: this removes objects that only touch the body
    (the released ``deploy_cascade.py`` of Roth et al. 2018: 2, with a threshold of -500 HU)."""
    include_reference: bool = False
    """In training, the region also contains the reference's labels (``prepare_data.py``, likewise)."""


class DilatedForeground(Spec):
    """The foreground that stage ``of`` predicts, dilated by a ball of ``radius_vox`` of this stage's grid, or
    of ``margin_mm``. With a ``threshold``, uncertain background is included, too: where the probabilities of
    these labels sum to more than that."""

    kind: Literal["dilated_foreground"] = "dilated_foreground"
    of: str
    labels: Labels = "all"
    radius_vox: LengthVox | None = None
    """3 if neither this nor ``margin_mm`` is given."""
    margin_mm: LengthMm | None = None
    threshold: Share | None = None
    include_reference: bool = False
    """As in ``BodyMask``."""

    @model_validator(mode="before")
    @classmethod
    def _published_radius(cls, given: object) -> object:
        """As in Roth et al. 2018, unless a radius or margin is given."""
        if isinstance(given, dict) and given.get("radius_vox") is None and given.get("margin_mm") is None:
            return {**given, "radius_vox": 3.0}
        return given

    @model_validator(mode="after")
    def _one_radius(self) -> DilatedForeground:
        if self.radius_vox is not None and self.margin_mm is not None:
            raise ValueError("give radius_vox or margin_mm, not both")
        return self


class BoxAround(Spec):
    """The bounding box of some labels of stage ``of``, widened by ``margin_mm``."""

    kind: Literal["box"] = "box"
    of: str
    labels: Labels = "all"
    margin_mm: LengthMm = 20.0
    reference_margin_mm: tuple[LengthMm, LengthMm] | None = None
    """In training, the box lies around the reference instead of the prediction of stage ``of``: widened along
    each axis by a length between these, drawn for every patch (the released data sets of Chen et al. 2022,
    FLARE). None: the box is that of prediction."""

    @model_validator(mode="after")
    def _margin_is_one_of_them(self) -> BoxAround:
        if self.reference_margin_mm is not None:
            low, high = self.reference_margin_mm
            if not low <= self.margin_mm <= high:
                raise ValueError(
                    f"margin_mm ({self.margin_mm:g}) must lie in reference_margin_mm ({low:g} to {high:g})"
                )
        return self


class ProbabilityTimesAtlas(Spec):
    """The bounding box of where the probabilities of stage ``of`` times the atlas prior, summed over
    ``labels``, exceed ``threshold``; widened by ``margin_mm`` (Valindria et al. 2018, Section 2.2)."""

    kind: Literal["probability_times_atlas"] = "probability_times_atlas"
    of: str
    labels: Labels = "own"
    threshold: Share = 0.1
    margin_mm: LengthMm = 12.0


RoiSpec = Annotated[
    WholeVolume | BodyMask | DilatedForeground | BoxAround | ProbabilityTimesAtlas,
    Field(discriminator="kind"),
]

# --- grid: sampled how ----------------------------------------------------------------------------


Interpolation = Literal["linear", "cubic"]
"""Interpolation of images to a grid. ``linear``: with a kernel that widens with the voxels. ``cubic``:
B-spline of order 3 through the voxels, which does not widen, limited to the image's lowest and highest value
(nnU-Net, by ``skimage.transform.resize``)."""


class _Tiled(Spec):
    """``tile`` is the network's INPUT shape; with ``valid`` padding its output is smaller.
    ``overlap`` is the share of the output tile that neighbours have in common along every axis, or along
    I, J and K (0 = no overlap; 0.5 samples each voxel 8 times)."""

    tile: Shape
    padding: Literal["same", "valid"] = "same"
    overlap: Overlap | tuple[Overlap, Overlap, Overlap] = 0.0
    placement: Literal["spread", "lattice"] = "spread"
    """``spread``: tiles evenly inside the region: they overlap by at least ``overlap``, each step rounded to
    voxels. ``lattice``: tiles at multiples of one step from the grid's first voxel, so that each voxel is
    sampled equally often if the step divides the output tile (Roth et al. 2018, Fig. 5 and Section 2.4)."""
    importance: Literal["linear", "gaussian"] = "linear"
    """Weight of a voxel's prediction where tiles overlap: falling linearly from the tile's middle, or a
    Gaussian whose standard deviation is an eighth of the tile (Isensee et al. 2021)."""
    beyond: Literal["edge", "zero"] = "edge"
    """Values that tiles read beyond the scan: its edge voxels, or zeros."""


class Downsample(_Tiled):
    kind: Literal["downsample"] = "downsample"
    factor: tuple[Factor, Factor, Factor]


class FixedSpacing(_Tiled):
    kind: Literal["spacing"] = "spacing"
    mm: OwnSpacing
    """None: the scan's own along that axis (across the slices of nnU-Net's configuration ``2d``)."""
    fit: Literal["cover", "round"] = "cover"
    """``cover``: exactly this spacing, with as many voxels as cover the field of view. ``round``: exactly the
    field of view, with the nearest number of voxels (nnU-Net's ``compute_new_shape``)."""
    interpolation: Interpolation = "linear"
    slices_apart_above: Anisotropy | None = None
    """If the ratio of a voxel's longest side to its shortest, of the scan or else of this grid, exceeds this,
    slices across the longest side are interpolated separately, and the nearest one is used: for images and
    for predictions (3 in nnU-Net's ``default_resampling.py``). None: all axes are treated alike, as the
    fusions that compare probabilities on the scan's grid need."""

    @model_validator(mode="after")
    def _sampled_anew(self) -> FixedSpacing:
        if self.mm == (None, None, None):
            raise ValueError(
                "mm gives no spacing for any axis; for the scan's own: kind downsample, factor 1"
            )
        return self


class FixedShape(_Tiled):
    """The region's box resampled to exactly this shape (so that one tile contains it)."""

    kind: Literal["shape"] = "shape"
    shape: Shape


GridSpec = Annotated[Downsample | FixedSpacing | FixedShape, Field(discriminator="kind")]

# --- inputs: input of the network -----------------------------------------------------------------


class ImageInput(Spec):
    """One channel of the scan, or all of them."""

    kind: Literal["image"] = "image"
    channel: ChannelIndex | Literal["all"] = "all"


class PriorInput(Spec):
    """Auto-context: an earlier stage's prediction, one channel per label."""

    kind: Literal["prior"] = "prior"
    of: str
    labels: Labels = "all"
    form: Literal["probabilities", "label_map"] = "probabilities"
    """``label_map``: for each label, 1 inside it in the label map of that stage alone and 0 elsewhere; on the
    grid, each voxel belongs to the label, or the background, with the largest share, interpolated linearly
    (nnU-Net's cascade)."""
    dropout: Dropout = 0.0
    """Training: share of patches in which a label's channel is zero, drawn label by label, as if the earlier
    stage had missed the label. In training it misses fewer than in new scans, so that a stage which always
    sees its prediction learns to repeat it (nnU-Net's cascade removes connected components instead)."""


OnMissing = Literal["whole_volume", "empty"]
"""The region of a stage if the stage that determines it finds nothing."""

ATLAS = "atlas"
"""The atlas prior's name among the priors of a scan; no stage may use it."""


class AtlasInput(Spec):
    """The atlas prior of the recipe's ``atlas``, one channel per label."""

    kind: Literal["atlas"] = "atlas"
    labels: Labels = "own"

    @property
    def of(self) -> str:
        return ATLAS


InputSpec = Annotated[ImageInput | PriorInput | AtlasInput, Field(discriminator="kind")]

# --- network --------------------------------------------------------------------------------------


ChannelsPerLevel = Annotated[tuple[Channels, ...], Field(max_length=MAX_LEVELS)]
StridesPerLevel = Annotated[tuple[Strides, ...], Field(max_length=MAX_LEVELS)]


class UNet3D(Spec):
    """The 3D U-Net of Cicek et al. 2016: two 3x3x3 convolutions with batch norm and ReLU per level,
    2x2x2 max pooling, 2x2x2 transposed convolutions, skips concatenated, 1x1x1 last layer."""

    kind: Literal["unet3d"] = "unet3d"
    channels: ChannelsPerLevel = (64, 128, 256, 512)
    """Output channels of each encoder level; the level's first convolution has half of them."""


class ResEncUNet(Spec):
    """U-Net with residual encoder blocks, instance norm, leaky ReLU, strided convolutions down and a
    light decoder, per-level strides so that thick slices are not pooled away."""

    kind: Literal["resenc_unet"] = "resenc_unet"
    channels: ChannelsPerLevel
    strides: StridesPerLevel
    """One per level; the first is the stem's (1, 1, 1 or larger)."""
    kernels: Annotated[tuple[Kernels, ...], Field(max_length=MAX_LEVELS)]
    """One per level."""
    blocks: Annotated[tuple[Blocks, ...], Field(max_length=MAX_LEVELS)]
    """Residual blocks per encoder level."""
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _same_length(self) -> ResEncUNet:
        lengths = {len(self.channels), len(self.strides), len(self.kernels), len(self.blocks)}
        if len(lengths) != 1:
            raise ValueError("channels, strides, kernels and blocks must have one entry per level each")
        return self


class PlainConvUNet(Spec):
    """U-Net of plain convolutions with instance norm and leaky ReLU, strided convolutions down, transposed
    ones up, skips concatenated: nnU-Net's own network (Isensee et al. 2021)."""

    kind: Literal["plain_conv_unet"] = "plain_conv_unet"
    channels: ChannelsPerLevel
    strides: StridesPerLevel
    """One per level; the first is the first convolution's (1, 1, 1)."""
    kernels: Annotated[tuple[Kernels, ...], Field(max_length=MAX_LEVELS)]
    """One per level, for encoder and decoder."""
    convolutions: Annotated[tuple[Blocks, ...], Field(max_length=MAX_LEVELS)]
    """Per encoder level."""
    decoder_convolutions: Annotated[tuple[Blocks, ...], Field(max_length=MAX_LEVELS)]
    """Per level except the lowest, the highest resolution first."""

    @model_validator(mode="after")
    def _same_length(self) -> PlainConvUNet:
        lengths = {len(self.channels), len(self.strides), len(self.kernels), len(self.convolutions)}
        if lengths != {len(self.decoder_convolutions) + 1}:
            raise ValueError(
                "channels, strides, kernels and convolutions must have one entry per level each, and "
                "decoder_convolutions one less"
            )
        if self.strides[:1] not in ((), ((1, 1, 1),)):
            raise ValueError(f"the first of strides must be [1, 1, 1], got {list(self.strides[0])}")
        return self


class UNet2D(Spec):
    """The U-Net of ``unet3d`` in two dimensions, on the slices of one plane (Zhou et al. 2016 use one such
    network per plane). The input is a stack of slices, along which nothing is convolved or pooled."""

    kind: Literal["unet2d"] = "unet2d"
    plane: Literal["axial", "coronal", "sagittal"]
    """The axis that is not convolved: S, A or R. Such a network is not trained with an ``orientation`` that
    orders them otherwise."""
    channels: ChannelsPerLevel = (64, 128, 256, 512)


ResidualFCNActivation = Literal["relu6", "leaky_relu"]


class ResidualFCN(Spec):
    """Residual FCN of DLTK (Pawlowski et al. 2017), as used by Valindria et al. 2018: residual units, strided
    downsampling, batch norm; the decoder adds linear upsampling to a projected skip."""

    kind: Literal["residual_fcn"] = "residual_fcn"
    channels: ChannelsPerLevel = (16, 32, 64, 128)
    strides: StridesPerLevel = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    """One per scale."""
    units: Blocks = 1
    """Residual units per scale."""
    activation: ResidualFCNActivation = "leaky_relu"
    """``relu6``: between 0 and 6, in DLTK since release 0.2.0; ``leaky_relu``: of slope 0.1, as in 0.1.1."""

    @model_validator(mode="after")
    def _same_length(self) -> ResidualFCN:
        if len(self.channels) != len(self.strides):
            raise ValueError("channels and strides must have one entry per scale each")
        return self


class ResUNetASPP(Spec):
    """Residual U-Net of four downsampling and four upsampling layers with atrous spatial pyramid pooling at
    the lowest level (FLARE 2022, Section 2.2)."""

    kind: Literal["resunet_aspp"] = "resunet_aspp"
    channels: ChannelsPerLevel
    """One per level, the lowest level last."""
    dilations: Annotated[tuple[Dilation, ...], Field(min_length=1, max_length=16)]
    """Of the parallel convolutions at the lowest level."""


NetworkSpec = Annotated[
    UNet3D | ResEncUNet | PlainConvUNet | UNet2D | ResidualFCN | ResUNetASPP, Field(discriminator="kind")
]

# --- training -------------------------------------------------------------------------------------


class UniformInRegion(Spec):
    """Patch centres anywhere in the stage's region, with equal probability."""

    kind: Literal["uniform"] = "uniform"


class ClassBalanced(Spec):
    """First a class (each equally likely over the whole data set, ``background_share`` of the draws anywhere
    in the region), then a case with it, then one of its voxels."""

    kind: Literal["class_balanced"] = "class_balanced"
    background_share: Share = 0.2


class Foreground(Spec):
    """Patch centres on labelled voxels of the region, each equally likely."""

    kind: Literal["foreground"] = "foreground"


class ClassWeighted(Spec):
    """First a class, background included, with a probability proportional to its number of voxels to the
    power of ``exponent`` (below zero: small classes more often), then a case with it, then one of its voxels
    (Valindria et al. 2018, Section 2.2; 0 = all classes equally often)."""

    kind: Literal["class_weighted"] = "class_weighted"
    exponent: Annotated[float, Field(ge=-1, le=1)] = -0.25


SamplerSpec = Annotated[
    UniformInRegion | Foreground | ClassBalanced | ClassWeighted, Field(discriminator="kind")
]


class WeightedCrossEntropy(Spec):
    """Voxel-wise cross-entropy weighted by lambda_k = (1 - N_k / N_C) / (K - 1) over the candidate
    region (Roth et al. 2018, equations 3 and 4)."""

    kind: Literal["weighted_cross_entropy"] = "weighted_cross_entropy"
    normalisation: Literal["voxels", "weights"] = "voxels"
    """Divisor of the weighted sum over a patch: the number N of its voxels that count (equation 4), or the
    sum of their weights (``softmax_loss_layer.cpp`` of the authors' released code, and PyTorch's
    cross-entropy). Background has a small weight, so that the latter gives larger gradients for a patch with
    little else: learning rates for one do not suit the other."""


class DiceCrossEntropy(Spec):
    """Soft Dice over the batch plus cross-entropy, summed over deep-supervision levels.

    In the cross-entropy, the weight of a class is its share of the region's voxels to the power of
    ``-class_balance``: 0 plain, 1 equal weight of all classes. It falls to zero over the training: first rare
    classes must be found, finally boundaries must be accurate."""

    kind: Literal["dice_cross_entropy"] = "dice_cross_entropy"
    dice_weight: Weight = 1.0
    cross_entropy_weight: Weight = 1.0
    class_balance: Share = 0.0


class SoftDice(Spec):
    """Minus the soft Dice of every class, background included, averaged over the K classes (Roth et al.
    2018, MICCAI, equation 1; here one minus it)."""

    kind: Literal["dice"] = "dice"


LossSpec = Annotated[WeightedCrossEntropy | DiceCrossEntropy | SoftDice, Field(discriminator="kind")]


class SGD(Spec):
    kind: Literal["sgd"] = "sgd"
    lr: LearningRate = 1e-2
    momentum: Decay = 0.99
    nesterov: bool = False
    weight_decay: WeightDecay = 0.0

    @model_validator(mode="after")
    def _accelerated(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamW(Spec):
    kind: Literal["adamw"] = "adamw"
    lr: LearningRate = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    weight_decay: WeightDecay = 1e-2


OptimiserSpec = Annotated[SGD | AdamW, Field(discriminator="kind")]


WarmupShare = Annotated[float, Field(ge=0, lt=1)]
"""Share of the schedule in which the learning rate rises."""


class StepDecay(Spec):
    """Learning rate times ``factor`` every ``every`` iterations, regardless of the training length."""

    kind: Literal["step"] = "step"
    every: Iterations
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1


class Cosine(Spec):
    """Linear warm-up over a share of the schedule, then half a cosine down to zero."""

    kind: Literal["cosine"] = "cosine"
    warmup_share: WarmupShare = 0.02


class Polynomial(Spec):
    """Linear warm-up, then (1 - progress) ** power."""

    kind: Literal["polynomial"] = "polynomial"
    power: Ratio = 0.9
    warmup_share: WarmupShare = 0.0


ScheduleSpec = Annotated[StepDecay | Cosine | Polynomial, Field(discriminator="kind")]


class Augmentation(Spec):
    """Random changes of a training patch. Spatial changes are applied by one resampling."""

    rotation_deg: tuple[AngleDeg, AngleDeg, AngleDeg] = (0.0, 0.0, 0.0)
    """Maximum rotation about the R, A and S axes (about i, j and k if the recipe's ``orientation`` orders
    these otherwise)."""
    scale: Ratios = (1.0, 1.0)
    translation_vox: LengthVox = 0.0
    crop: Ratios = (1.0, 1.0)
    """For each axis of every patch, a random share is cropped at a random position (the whole axis from 1 on)
    and centred; beyond it, its edge is repeated (MONAI's ``RandScaleCrop``, before a transform of fixed
    size)."""
    elastic_vox: LengthVox = 0.0
    """Displacement of a B-spline control point along each axis, in voxels of the stage's grid: the maximum,
    or the standard deviation if ``elastic_distribution`` is ``normal``."""
    elastic_distribution: Literal["uniform", "normal"] = "uniform"
    """``normal`` has no maximum displacement (Cicek et al. 2016; Roth et al. 2018, Section 3.1)."""
    elastic_grid_vox: PitchVox = 32.0
    """Distance between control points, in voxels of the stage's grid."""
    flip_axes: Annotated[tuple[Literal["R", "A", "S"], ...], Field(max_length=3)] = ()
    """World axes that may be mirrored; along R, left/right label names are swapped with the image. Not with
    an ``orientation`` that orders R, A and S otherwise."""
    brightness: Strength = 0.0
    """Maximum additive change, in units of the normalised image's standard deviation."""
    contrast: Strength = 0.0
    """Maximum relative change of contrast: factor in [1 - contrast, 1 + contrast]."""
    shift_intensity: Strength = 0.0
    """Maximum value added to the normalised image (MONAI's ``RandShiftIntensity``)."""
    scale_intensity: Strength = 0.0
    """Maximum x of the factor in [1 - x, 1 + x] by which the normalised image is multiplied, relative to zero
    (MONAI's ``RandScaleIntensity``)."""
    gamma: Ratios = (1.0, 1.0)
    organ_brightness: Share = 0.0
    """Maximum relative change of each organ's own brightness: factor in [1 - x, 1 + x], relative to the
    patch's darkest voxel, drawn separately for every label."""
    noise: Strength = 0.0
    """Maximum standard deviation of Gaussian noise, in units of the image's standard deviation."""
    blur_vox: LengthVox = 0.0
    """Maximum standard deviation of a Gaussian blur."""
    probability: Share = 1.0
    """Probability of rotation, scale and translation together, of the elastic deformation, and of each
    intensity change; each is drawn by itself."""
    shorter_scan: Share = 0.0
    """Probability that a patch comes from a scan truncated to some of its slices along S, as if the rest were
    outside the field of view. Not with an ``orientation`` that orders R, A and S otherwise."""


STEPS_PER_EPOCH = 100
"""For recipes that do not state it."""


class Training(Spec):
    patch: Shape
    """Input shape of the network in training."""
    batch: Batch = 1
    iterations: Iterations
    """Length of the published (or planned) schedule, used when neither time nor epochs are given."""
    steps_per_epoch: Iterations = STEPS_PER_EPOCH
    """The unit of ``--epochs``, independent of the size of the data set."""
    budget_share: PositiveShare = 1.0
    """Share of the time budget relative to the other training units."""
    sampler: SamplerSpec = ClassBalanced()
    distinct_cases: bool = False
    """Patches of one batch come from different cases, if there are enough."""
    loss: LossSpec = DiceCrossEntropy()
    mask_loss: bool = False
    """Count only voxels of the stage's region in the loss."""
    optimiser: OptimiserSpec = AdamW()
    schedule: ScheduleSpec = Cosine()
    augmentation: Augmentation = Augmentation()
    ema_decay: Share = 0.0
    """Decay per step of the averaged weights that prediction uses; 0 = use the last iterate."""
    gradient_clip: GradientNorm = 0.0
    """Maximum gradient norm; 0 = no clipping."""


# --- a stage and a recipe -------------------------------------------------------------------------

FusionKind = Literal[
    "none", "replace_in_roi", "replace_times_atlas", "paste", "most_probable", "majority_vote"
]
"""``none``: only later stages read the prediction. ``replace_in_roi``: inside the region the label map
becomes the argmax. ``replace_times_atlas``: the same for the probabilities times the atlas prior. ``paste``:
the stage's labels are erased and its foreground is written over the label map. ``most_probable``: as paste,
but where such stages disagree the higher probability wins. ``majority_vote``: every voxel gets the label that
most of these stages predict. Stages of one kind are fused together if they follow each other among the stages
that are fused: one with ``none`` between them does not separate them."""
GridAxis = Literal["i", "j", "k"]
ArgmaxPlace = Literal["scan_grid", "stage_grid"]
MeanKind = Literal["arithmetic", "geometric"]
"""``geometric``: the normalised mean of the logarithms: equivalent to averaging or interpolating the
network's logits (nnU-Net)."""


class Stage(Spec):
    name: Name
    roi: RoiSpec = WholeVolume()
    grid: GridSpec
    intensity: IntensitySpec | None = None
    """Intensity normalisation of this stage; None: the recipe's."""
    inputs: Annotated[tuple[InputSpec, ...], Field(min_length=1, max_length=1000)] = (ImageInput(),)
    network: NetworkSpec
    training: Training
    labels: tuple[LabelName, ...] | Literal["all"] = "all"
    per_label: bool = False
    """A separate stage for each of the labels, named ``<name>-<label>``."""
    fusion: FusionKind = "replace_in_roi"
    argmax_on: ArgmaxPlace = "scan_grid"
    """Where labels are decided: after probabilities are resampled to the scan's grid (linear), or on the
    stage's grid, before labels are resampled (nearest)."""
    mean: MeanKind = "arithmetic"
    """Mean of probabilities: of overlapping tiles, of several models, and between voxels where labels are
    decided. ``geometric`` needs the fusion ``none``, ``replace_in_roi`` or ``paste``."""
    mirror_axes: Annotated[tuple[GridAxis, ...], Field(max_length=3)] = ()
    """Axes of the stage's grid along which ``predict --mirror`` also predicts every scan mirrored: those
    mirrored in its training (nnU-Net's ``inference_allowed_mirroring_axes``). Labels do not change sides."""
    labels_overlap: bool = False
    """Labels are regions that may contain each other: each is decided against background alone, and of the
    labels of a voxel the last one is used (nnU-Net's ``regions_class_order``). A network's odds of a label
    relative to background are then those of being inside it or not."""

    @property
    def reference_margin_mm(self) -> tuple[float, float] | None:
        """Margins of the boxes around the reference in which the stage is trained; None: it is trained in its
        region of prediction."""
        return self.roi.reference_margin_mm if isinstance(self.roi, BoxAround) else None

    @property
    def includes_reference(self) -> bool:
        """Whether the stage's region in training contains all voxels of its labels."""
        return isinstance(self.roi, BodyMask | DilatedForeground) and self.roi.include_reference

    @model_validator(mode="after")
    def _reads_the_image(self) -> Stage:
        if not any(isinstance(source, ImageInput) for source in self.inputs):
            raise ValueError("inputs needs at least one of kind image")
        return self

    @model_validator(mode="after")
    def _region_with_the_reference_is_a_mask(self) -> Stage:
        if self.includes_reference and isinstance(self.grid, FixedShape):
            raise ValueError("roi.include_reference means nothing on a grid of kind shape, which fills a box")
        return self

    @model_validator(mode="after")
    def _reference_box_is_one_patch(self) -> Stage:
        if self.reference_margin_mm is not None and not isinstance(self.grid, FixedShape):
            raise ValueError("roi.reference_margin_mm needs a grid of kind shape, which fills the box")
        return self


class PatchFusion(Spec):
    """Patch-based label fusion with augmented features: every atlas voxel of the search window votes with
    exp(-d / h), d the distance of patch intensities, gradients and contextual intensity differences (Bai et
    al. 2015)."""

    kind: Literal["patch"] = "patch"
    patch_radius_vox: NeighbourhoodVox = 1
    search_radius_vox: NeighbourhoodVox = 1


class IntensityFusion(Spec):
    """Every atlas votes with a weight that falls with its local intensity difference to the target."""

    kind: Literal["intensity"] = "intensity"
    patch_radius_vox: NeighbourhoodVox = 2


class MajorityFusion(Spec):
    """Every atlas has one vote."""

    kind: Literal["majority"] = "majority"


AtlasFusionSpec = Annotated[PatchFusion | IntensityFusion | MajorityFusion, Field(discriminator="kind")]


class AtlasSpec(Spec):
    """Labelled training scans, registered to the given scan, whose fused labels are a spatial prior."""

    number: Annotated[int, Field(ge=1, le=1000)] = 10
    """Atlases used per scan: this many training cases, evenly spread, if there are more."""
    spacing_mm: Spacing = (4.0, 4.0, 4.0)
    """Grid of registration and fusion; an axis whose own spacing is coarser keeps it."""
    registration: Literal["affine", "deformable"] = "deformable"
    """Affine only, or affine and then deformable."""
    fusion: AtlasFusionSpec = PatchFusion()


class Islands(Spec):
    """Small separate parts of ``labels`` are not organs but something similar: connected components of fewer
    than ``below`` times the voxels of the label's largest become background."""

    labels: tuple[LabelName, ...] | Literal["all"] = "all"
    below: PositiveShare = 0.25


class Presence(Spec):
    """Whether an organ is in the scan is decided by the stage ``of``, which sees the whole scan: each of
    ``labels`` whose probability it puts nowhere at ``at_least`` or more finally becomes background. In a part
    of the body that no training patch of a later stage shows, this one may find something similar."""

    of: str
    labels: tuple[LabelName, ...] | Literal["all"] = "all"
    at_least: PositiveShare = 0.1


class Recipe(Spec):
    """A complete recipe: it contains every number, nothing is planned later."""

    name: Name
    description: Text = ""
    source: Text = ""
    intensity: IntensitySpec
    """Of all stages without their own, of the atlas, and of the comparison with training scans."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=1000)]
    train_together: tuple[tuple[str, ...], ...] = ()
    """Groups of stages trained end to end: gradients flow from a stage into those whose priors it reads. A
    stage in several groups, of which one may hold it alone, is trained further in each."""
    prior_from: Literal["live", "out_of_fold", "predictions"] = "live"
    """Source of earlier stages' predictions in training: computed by the earlier networks on the same
    augmented case (``live``), or once on the unchanged case, by the finished stage (``predictions``) or by a
    copy of it that was trained on the other half of the training cases (``out_of_fold``: networks are
    over-confident on their training cases). Both copies are trained as long as the stage itself, or share its
    time budget. Stages trained with live priors have regions around the reference, as their predecessors
    change during training."""
    orientation: ScanOrientation = "canonical"
    """Orientation of scans as networks read them: RAS+, as stored in the file (nnU-Net does not reorient: a
    model is valid only for the orientation of its training scans), or with axes that run in these directions
    (``LAS``: i to the left, j to the front, k to the head)."""
    crop: Literal["none", "nonzero"] = "none"
    """``nonzero``: the scan is cropped to the box of voxels that are not zero in all channels, before
    anything else, including intensity statistics (nnU-Net's ``crop_to_nonzero``); the part outside is
    background."""
    on_missing: OnMissing = "whole_volume"
    """Region of a stage if the organ that defines it was not found."""
    roi_expansion: bool = True
    """Whether a stage is computed again, once, in a wider region, if the region given by earlier stages may
    have cut an organ. None of the published methods here has this step."""
    remove_misplaced: bool = True
    """Whether parts of organs that lie far from the organ's position in training are finally removed, where
    another part is in its place. None of the published methods here has this step."""
    atlas: AtlasSpec | None = None
    largest_component: tuple[LabelName, ...] | Literal["all"] = ()
    """Labels of which only the largest connected component is finally kept."""
    islands: Islands | None = None
    """Final removal of small separate parts; None: they are kept."""
    presence: Presence | None = None
    """Final removal of organs that a stage of the whole scan finds nowhere; None: they are kept. None of the
    published methods here has this step."""


class PlannedRecipe(Spec):
    """A recipe whose numbers are derived from the data and the device by ``planning.plan``."""

    plan: Literal["cascade"] = "cascade"
    name: Name
    description: Text = ""
    source: Text = ""
    fine_voxels: VoxelCount
    """The fine grid has about this many voxels in the median scan, and is never finer than the data."""
    coarse_voxels: VoxelCount
    """The coarse grid is chosen so that the median scan has about this many voxels."""
    fine_patch_voxels: VoxelCount
    """On a CPU, where larger patches mean fewer steps."""
    gpu_patch_factor: Annotated[int, Field(ge=1, le=1000)] = 1
    """On a GPU, fine patches have this many times as many voxels, as far as its memory allows."""
    base_channels: tuple[Channels, Channels]
    """Channels of the first level of the coarse and the fine network."""
    max_channels: Channels
    batch: Batch
    region_margin_mm: LengthMm
    region_threshold: Share | None = None
    learning_rate: LearningRate
    iterations: Iterations


def is_planned(data: object) -> bool:
    return isinstance(data, dict) and "plan" in data
