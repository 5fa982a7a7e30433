"""What a recipe may say: one model per kind, discriminated by ``kind``, unknown keys forbidden.

A recipe is stages in order; each stage answers seven questions: ``roi`` where to look, ``grid``
sampled how, ``inputs`` what the network sees, ``network`` which one, ``training`` how it learns,
``labels`` what it predicts, ``fusion`` how its answer enters the label map.
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
    Factor,
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
    Norm,
    NormalisedIntensity,
    Overlap,
    OwnSpacing,
    PitchVox,
    PositiveShare,
    Ratio,
    Ratios,
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
"""Labels of another stage: names, all that it predicts, or those that the stage saying so predicts."""


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _apart(low: float, high: float) -> bool:
    """Whether two numbers ascend, and are two in float32, with which images are computed."""
    return high - low >= 1e-6 * max(1.0, abs(low), abs(high))


# --- intensity ------------------------------------------------------------------------------------


class Window(Spec):
    """Clip to ``[lower, upper]`` (the scan's own unit, HU for CT) and scale to ``output``: linearly, or with
    ``inner_share`` of the output for the intensities ``inner`` alone, where a few organs (bone, airways)
    would leave little contrast to all others."""

    kind: Literal["window"] = "window"
    lower: Intensity
    upper: Intensity
    output: tuple[NormalisedIntensity, NormalisedIntensity] = (0.0, 1.0)
    inner: tuple[Intensity, Intensity] | None = None
    inner_share: InnerShare = 0.6
    zero_mean: bool = False
    """Afterwards, the mean inside of a stage's region is subtracted, channel by channel (``ZERO_MEAN`` in the
    released ``deploy_cascade.py`` of Roth et al. 2018)."""

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
    """None: nothing is clipped, and mean and standard deviation are those of all voxels (nnU-Net's
    ``ZScoreNormalization``); percentiles of a large scan are those of a million of its voxels."""
    within: Literal["all", "nonzero"] = "all"
    """``nonzero``: mean and standard deviation are those of the voxels that are not zero in every channel
    and of what these enclose; all others become zero (nnU-Net's ``use_mask_for_norm``)."""

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
    """Intensities as they are (nnU-Net's ``NoNormalization``)."""

    kind: Literal["unchanged"] = "unchanged"


ChannelIntensity = Annotated[Window | ZScore | MinMax | Unchanged, Field(discriminator="kind")]


class PerChannel(Spec):
    """Every channel of the scan in a way of its own (nnU-Net's ``normalization_schemes``)."""

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
    """So many times the mask is eroded by a cube of 3 voxels of the stage's grid before its largest component
    is taken, and that dilated as many times: what touches the body in passing falls off (the released
    ``deploy_cascade.py`` of Roth et al. 2018: 2, with a threshold of -500 HU)."""
    include_reference: bool = False
    """In training, the reference's labels belong to the region, too (``prepare_data.py``, likewise)."""


class DilatedForeground(Spec):
    """The foreground that stage ``of`` predicts, dilated by a ball of ``radius_vox`` of this stage's grid.
    With a ``threshold``, background that the stage is not sure of is foreground here, too: where the
    probabilities of these labels sum to more than that."""

    kind: Literal["dilated_foreground"] = "dilated_foreground"
    of: str
    labels: Labels = "all"
    radius_vox: LengthVox = 3.0
    threshold: Share | None = None
    include_reference: bool = False
    """As in ``BodyMask``."""


class BoxAround(Spec):
    """The bounding box of some labels of stage ``of``, widened by ``margin_mm``."""

    kind: Literal["box"] = "box"
    of: str
    labels: Labels = "all"
    margin_mm: LengthMm = 20.0
    reference_margin_mm: tuple[LengthMm, LengthMm] | None = None
    """In training, the box lies around the reference instead, wherever stage ``of`` would put it: widened
    along each axis by a length between these, another for every patch (the released data sets of Chen et al.
    2022, FLARE). None: the box is that of prediction."""

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
"""How images are brought to a grid. ``linear``: with a kernel that widens where voxels grow. ``cubic``:
B-spline of order 3 through the voxels, which does not widen, within the image's lowest and highest value
(nnU-Net, by ``skimage.transform.resize``)."""


class _Tiled(Spec):
    """``tile`` is the network's INPUT shape; with ``valid`` padding its output is smaller.
    ``overlap`` is the share of the output tile that neighbours have in common along every axis, or along
    I, J and K (0 = side by side; 0.5 samples each voxel 8 times)."""

    tile: Shape
    padding: Literal["same", "valid"] = "same"
    overlap: Overlap | tuple[Overlap, Overlap, Overlap] = 0.0
    placement: Literal["spread", "lattice"] = "spread"
    """``spread``: tiles evenly over the region, which they do not leave: they share ``overlap`` or more.
    ``lattice``: tiles at multiples of one step from the grid's first voxel, so that each voxel is sampled
    equally often where the step divides the output tile (Roth et al. 2018, Fig. 5 and Section 2.4)."""
    importance: Literal["linear", "gaussian"] = "linear"
    """What a voxel's answer weighs where tiles overlap: falling linearly from the tile's middle, or as a
    Gaussian whose standard deviation is an eighth of the tile (Isensee et al. 2021)."""
    beyond: Literal["edge", "zero"] = "edge"
    """What tiles see of the image where they reach beyond the scan: its edge voxels again, or zeros."""


class Downsample(_Tiled):
    kind: Literal["downsample"] = "downsample"
    factor: tuple[Factor, Factor, Factor]


class FixedSpacing(_Tiled):
    kind: Literal["spacing"] = "spacing"
    mm: OwnSpacing
    """Along an axis that has none, the scan's own (across the slices of nnU-Net's configuration ``2d``)."""
    fit: Literal["cover", "round"] = "cover"
    """``cover``: exactly this spacing, in as many voxels as cover the field of view. ``round``: the field of
    view exactly, in the number of voxels that comes nearest (nnU-Net's ``compute_new_shape``)."""
    interpolation: Interpolation = "linear"
    slices_apart_above: Anisotropy | None = None
    """Where the longest side of a voxel, of the scan or else of this grid, is more than so many times its
    shortest, slices across it are interpolated each for itself, and the nearest one is taken: of images as of
    answers (3 in nnU-Net's ``default_resampling.py``). None: all axes are interpolated alike."""

    @model_validator(mode="after")
    def _sampled_anew(self) -> FixedSpacing:
        if self.mm == (None, None, None):
            raise ValueError(
                "mm gives no spacing for any axis; for the scan's own: kind downsample, factor 1"
            )
        return self


class FixedShape(_Tiled):
    """The region's box brought to exactly this shape (so that one tile holds it)."""

    kind: Literal["shape"] = "shape"
    shape: Shape


GridSpec = Annotated[Downsample | FixedSpacing | FixedShape, Field(discriminator="kind")]

# --- inputs: what the network sees ----------------------------------------------------------------


class ImageInput(Spec):
    """One channel of the scan, or all of them."""

    kind: Literal["image"] = "image"
    channel: ChannelIndex | Literal["all"] = "all"


class PriorInput(Spec):
    """Auto-context: what an earlier stage says, one channel per label."""

    kind: Literal["prior"] = "prior"
    of: str
    labels: Labels = "all"
    form: Literal["probabilities", "label_map"] = "probabilities"
    """``label_map``: of each label, 1 where the label map that the stage alone would give has it and 0
    elsewhere; brought to the grid label by label, linearly, and decided at a half (nnU-Net's cascade)."""


ATLAS = "atlas"
"""The atlas prior's name among the priors of a scan; no stage may have it."""


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
    """Channels that leave each encoder level; the level's first convolution has half of them."""


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
    """One per level, on the way down and on the way up."""
    convolutions: Annotated[tuple[Blocks, ...], Field(max_length=MAX_LEVELS)]
    """Per encoder level."""
    decoder_convolutions: Annotated[tuple[Blocks, ...], Field(max_length=MAX_LEVELS)]
    """Per level but the lowest, the highest resolution's first."""

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
    network per plane). The input is a stack of slices; along it nothing is convolved or pooled."""

    kind: Literal["unet2d"] = "unet2d"
    plane: Literal["axial", "coronal", "sagittal"]
    """The axis that is not convolved: S, A or R."""
    channels: ChannelsPerLevel = (64, 128, 256, 512)


ResidualFCNActivation = Literal["relu6", "leaky_relu"]


class ResidualFCN(Spec):
    """Residual FCN of DLTK (Pawlowski et al. 2017), as Valindria et al. 2018 use it: residual units, strided
    down-sampling, batch norm; the decoder adds linear upsampling to a projected skip."""

    kind: Literal["residual_fcn"] = "residual_fcn"
    channels: ChannelsPerLevel = (16, 32, 64, 128)
    strides: StridesPerLevel = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    """One per scale."""
    units: Blocks = 1
    """Residual units per scale."""
    activation: ResidualFCNActivation = "leaky_relu"
    """``relu6``: between 0 and 6, DLTK's since release 0.2.0; ``leaky_relu``: of slope 0.1, as in 0.1.1."""

    @model_validator(mode="after")
    def _same_length(self) -> ResidualFCN:
        if len(self.channels) != len(self.strides):
            raise ValueError("channels and strides must have one entry per scale each")
        return self


class ResUNetASPP(Spec):
    """Residual U-Net of four down-sampling and four up-sampling layers with atrous spatial pyramid pooling
    at the bottom (FLARE 2022, Section 2.2)."""

    kind: Literal["resunet_aspp"] = "resunet_aspp"
    channels: ChannelsPerLevel
    """One per level, the bottom's last."""
    dilations: Annotated[tuple[Dilation, ...], Field(min_length=1, max_length=16)]
    """Of the parallel convolutions at the bottom."""


NetworkSpec = Annotated[
    UNet3D | ResEncUNet | PlainConvUNet | UNet2D | ResidualFCN | ResUNetASPP, Field(discriminator="kind")
]

# --- training -------------------------------------------------------------------------------------


class UniformInRegion(Spec):
    """Patch centres anywhere in the stage's region."""

    kind: Literal["uniform"] = "uniform"


class ClassBalanced(Spec):
    """First a class (each equally likely over the whole data set, ``background_share`` of the draws
    anywhere in the region), then a case that has it, then one of its voxels."""

    kind: Literal["class_balanced"] = "class_balanced"
    background_share: Share = 0.2


class Foreground(Spec):
    """Patch centres on labelled voxels of the region, each equally likely."""

    kind: Literal["foreground"] = "foreground"


class ClassWeighted(Spec):
    """First a class, background included, with a probability proportional to its number of voxels to the
    power of ``exponent`` (below zero: small classes up), then a case that has it, then one of its voxels
    (Valindria et al. 2018, Section 2.2; 0 = all classes alike)."""

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
    """What the weighted sum over a patch is divided by: its N voxels that count (equation 4), or the sum of
    their weights (``softmax_loss_layer.cpp`` of the authors' released code, and PyTorch's cross-entropy).
    Background has a small weight, so that the second gives larger gradients where a patch has little else:
    learning rates of the one do not suit the other."""


class DiceCrossEntropy(Spec):
    """Soft Dice over the batch plus cross-entropy, summed over deep-supervision levels.

    In the cross-entropy a class weighs its share of the region's voxels to the power of ``-class_balance``: 0
    plain, 1 all classes alike. It falls to zero over the training: rare classes must be found first, and
    boundaries be right in the end."""

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
    momentum: Share = 0.99
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


class StepDecay(Spec):
    """Learning rate times ``factor`` every ``every`` iterations, however long the training is."""

    kind: Literal["step"] = "step"
    every: Iterations
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1


class Cosine(Spec):
    """Linear warm-up over a share of the schedule, then half a cosine down to zero."""

    kind: Literal["cosine"] = "cosine"
    warmup_share: Share = 0.02


class Polynomial(Spec):
    """Linear warm-up, then (1 - progress) ** power."""

    kind: Literal["polynomial"] = "polynomial"
    power: Ratio = 0.9
    warmup_share: Share = 0.0


ScheduleSpec = Annotated[StepDecay | Cosine | Polynomial, Field(discriminator="kind")]


class Augmentation(Spec):
    """What may happen to a training patch. Spatial changes are one fused resample."""

    rotation_deg: tuple[AngleDeg, AngleDeg, AngleDeg] = (0.0, 0.0, 0.0)
    """Largest rotation about the R, A and S axes."""
    scale: Ratios = (1.0, 1.0)
    translation_vox: LengthVox = 0.0
    crop: Ratios = (1.0, 1.0)
    """Of each axis of every patch, such a share is cut out at a random place, all from 1 on, and moved to the
    middle; beyond it, its edge goes on (MONAI's ``RandScaleCrop``, before a transform of fixed size)."""
    elastic_vox: LengthVox = 0.0
    """Of a B-spline control point along each axis, in voxels of the stage's grid: the largest, or the
    standard deviation where ``elastic_distribution`` is ``normal``."""
    elastic_distribution: Literal["uniform", "normal"] = "uniform"
    """``normal`` has no largest displacement (Cicek et al. 2016; Roth et al. 2018, Section 3.1)."""
    elastic_grid_vox: PitchVox = 32.0
    """Distance between control points, in voxels of the stage's grid."""
    flip_axes: Annotated[tuple[Literal["R", "A", "S"], ...], Field(max_length=3)] = ()
    """World axes that may be mirrored; along R, left/right label names are swapped with the image."""
    brightness: Strength = 0.0
    """Largest additive change, in units of the normalised image's standard deviation."""
    contrast: Strength = 0.0
    """Largest relative change of contrast: factor in [1 - contrast, 1 + contrast]."""
    shift_intensity: Strength = 0.0
    """Largest number that is added to the normalised image (MONAI's ``RandShiftIntensity``)."""
    scale_intensity: Strength = 0.0
    """Largest x of the factor in [1 - x, 1 + x] that the normalised image is multiplied by, counted from zero
    (MONAI's ``RandScaleIntensity``)."""
    gamma: Ratios = (1.0, 1.0)
    organ_brightness: Share = 0.0
    """Largest relative change of each organ's own brightness: factor in [1 - x, 1 + x], counted from the
    patch's darkest voxel, another for every label."""
    noise: Strength = 0.0
    """Largest standard deviation of Gaussian noise, in units of the image's standard deviation."""
    blur_vox: LengthVox = 0.0
    """Largest standard deviation of a Gaussian blur."""
    probability: Share = 1.0
    """Chance of each of the spatial changes as a whole, and of each intensity change."""
    shorter_scan: Share = 0.0
    """Chance that a patch comes from a scan cut to some of its slices along S, as if the rest had never been
    in the field of view."""


STEPS_PER_EPOCH = 100
"""Of a recipe that does not say."""


class Training(Spec):
    patch: Shape
    """Input shape of the network in training."""
    batch: Batch = 1
    iterations: Iterations
    """Length of the published (or planned) schedule, used when neither time nor epochs are given."""
    steps_per_epoch: Iterations = STEPS_PER_EPOCH
    """What ``--epochs`` counts, whatever the size of the data set."""
    budget_share: PositiveShare = 1.0
    """Share of the time budget relative to the other training units."""
    sampler: SamplerSpec = ClassBalanced()
    distinct_cases: bool = False
    """Patches of one batch come from different cases, as far as there are enough."""
    loss: LossSpec = DiceCrossEntropy()
    mask_loss: bool = False
    """Count only voxels of the stage's region in the loss."""
    optimiser: OptimiserSpec = AdamW()
    schedule: ScheduleSpec = Cosine()
    augmentation: Augmentation = Augmentation()
    ema_decay: Share = 0.0
    """Decay per step of the averaged weights that prediction uses; 0 = use the last iterate."""
    gradient_clip: Norm = 0.0
    """Largest gradient norm; 0 = not clipped."""


# --- a stage and a recipe -------------------------------------------------------------------------

FusionKind = Literal[
    "none", "replace_in_roi", "replace_times_atlas", "paste", "most_probable", "majority_vote"
]
"""``none``: only later stages read the answer. ``replace_in_roi``: inside the region the label map becomes
the argmax. ``replace_times_atlas``: the same of the probabilities times the atlas prior. ``paste``: the
stage's labels are erased and its foreground written over what is there. ``most_probable``: as paste, but
where such stages disagree the higher probability wins. ``majority_vote``: every voxel gets the label most
of these stages give it."""
GridAxis = Literal["i", "j", "k"]
ArgmaxPlace = Literal["scan_grid", "stage_grid"]
MeanKind = Literal["arithmetic", "geometric"]
"""``geometric``: the mean of the logarithms, normalised: what comes of averaging or interpolating the
network's logits (nnU-Net)."""


class Stage(Spec):
    name: Name
    roi: RoiSpec = WholeVolume()
    grid: GridSpec
    intensity: IntensitySpec | None = None
    """How this stage's network sees intensities; None: as the recipe says."""
    inputs: Annotated[tuple[InputSpec, ...], Field(min_length=1, max_length=1000)] = (ImageInput(),)
    network: NetworkSpec
    training: Training
    labels: tuple[LabelName, ...] | Literal["all"] = "all"
    per_label: bool = False
    """One stage of its own for each of the labels, named ``<name>-<label>``."""
    fusion: FusionKind = "replace_in_roi"
    argmax_on: ArgmaxPlace = "scan_grid"
    """Where labels are decided: probabilities brought to the scan's grid (linear) first, or labels
    decided on the stage's grid and brought over (nearest)."""
    mean: MeanKind = "arithmetic"
    """How probabilities are averaged: of tiles that overlap, of several models, and between voxels where
    labels are decided."""
    mirror_axes: Annotated[tuple[GridAxis, ...], Field(max_length=3)] = ()
    """Of the stage's grid, along which ``predict --mirror`` shows the network every scan mirrored, too: those
    along which its training did (nnU-Net's ``inference_allowed_mirroring_axes``). Labels do not change
    sides."""
    labels_overlap: bool = False
    """Labels are regions that may lie in one another: each is decided against background alone, and of those
    that a voxel has, the last one stays (nnU-Net's ``regions_class_order``). A network's odds of a label to
    background are then those of having it or not."""

    @property
    def reference_margin_mm(self) -> tuple[float, float] | None:
        """Of the boxes around the reference that the stage is trained in; None: it is trained where it looks
        in prediction."""
        return self.roi.reference_margin_mm if isinstance(self.roi, BoxAround) else None

    @property
    def includes_reference(self) -> bool:
        """Whether the region that the stage is trained in holds all voxels of its labels."""
        return isinstance(self.roi, BodyMask | DilatedForeground) and self.roi.include_reference

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
    """Labelled training scans, registered to the scan at hand, whose fused labels are a spatial prior."""

    number: Annotated[int, Field(ge=1, le=1000)] = 10
    """Atlases used per scan: of more training cases, these many, evenly spread."""
    spacing_mm: Spacing = (4.0, 4.0, 4.0)
    """Grid of registration and fusion; an axis whose own spacing is coarser keeps that."""
    registration: Literal["affine", "deformable"] = "deformable"
    """Affine only, or affine and then deformable."""
    fusion: AtlasFusionSpec = PatchFusion()


class Islands(Spec):
    """Parts of ``labels`` that lie apart and are small are no organ but something that looks like it:
    connected components of fewer than ``below`` times the voxels of the label's largest become background.
    """

    labels: tuple[LabelName, ...] | Literal["all"] = "all"
    below: PositiveShare = 0.25


class Recipe(Spec):
    """A complete, concrete recipe: every number is here, nothing is planned later."""

    name: Name
    description: Text = ""
    source: Text = ""
    intensity: IntensitySpec
    """Of all stages that have none of their own, of the atlas, and of the comparison with training scans."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=1000)]
    train_together: tuple[tuple[str, ...], ...] = ()
    """Groups of stages trained end to end: gradients flow from a stage into those whose priors it reads."""
    prior_from: Literal["live", "out_of_fold", "predictions"] = "live"
    """Where training takes earlier stages' answers from: computed by the earlier networks on the same
    augmented case (``live``), or once on the case as it is, by the finished stage (``predictions``) or by a
    copy of it that was trained on the other half of the training cases (``out_of_fold``: networks are
    over-confident on cases they learned from). Both copies are trained as long as the stage itself, or share
    its time budget. Regions of stages that are trained with live priors lie around the reference, as their
    predecessors change while they learn."""
    orientation: Literal["canonical", "stored"] = "canonical"
    """How scans lie when networks see them: turned to RAS+, or as their files have them (nnU-Net does not
    turn them: a model knows its training scans' orientation, and no other)."""
    crop: Literal["none", "nonzero"] = "none"
    """``nonzero``: the scan is cut to the box of voxels that are not zero in all channels, before anything
    else, intensity statistics included (nnU-Net's ``crop_to_nonzero``); what is cut off is background."""
    on_missing: Literal["whole_volume", "empty"] = "whole_volume"
    """What a region of an organ that was not found becomes."""
    roi_expansion: bool = True
    """Whether a stage is computed again, once, where the region that earlier stages gave it may have cut an
    organ: in a region that goes on there. No published method here does that."""
    atlas: AtlasSpec | None = None
    largest_component: tuple[LabelName, ...] | Literal["all"] = ()
    """Labels of which only the largest connected component is kept in the end."""
    islands: Islands | None = None
    """What becomes of small parts that lie apart, in the end; None: they stay."""


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
    """On a CPU, where a larger patch takes time from the number of steps."""
    gpu_patch_factor: Annotated[int, Field(ge=1, le=1000)] = 1
    """On a GPU, fine patches hold this many times as many voxels, as far as its memory allows."""
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
