"""``inputs``: the input of the network. Normalised intensities, and earlier stages' probabilities."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import AnyNumpy, Array, array_like, memory_order, namespace
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import RecipeError, ScanError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.memory import require_ram_of
from zoomseg.core.morphology import Mask, filled
from zoomseg.core.region import bounding_box
from zoomseg.core.resample import AxisInterpolations, read_box, resample_data
from zoomseg.core.volume import Volume
from zoomseg.pipeline.label_priors import Numbers, numbers_on, one_hot
from zoomseg.recipe import graph
from zoomseg.recipe.spec import (
    AtlasInput,
    ChannelIntensity,
    ImageInput,
    InputSpec,
    IntensitySpec,
    MinMax,
    PerChannel,
    PriorInput,
    Recipe,
    Stage,
    Unchanged,
    Window,
    ZScore,
)

STATISTICS_VOXELS = 1_000_000
"""Approximate maximum number of voxels, evenly spread, from which a scan's percentiles and moments are
computed."""

MASKING_BYTES = 8
"""Memory for each voxel while the holes of a mask are filled: the mask, what is around it, and the number of
the connected component to which each voxel belongs."""

MIN_SPREAD = 1e-8
"""Divisor of intensities if all are equal, as in nnU-Net."""


@dataclass(frozen=True)
class Normalisation:
    """Per channel: clip to ``[lower, upper]``, then ``(x - shift) * scale``, plus ``gain`` for each of the
    intensities ``inner`` that lie below x. With ``zero_mean``, the mean inside the network's region is
    subtracted from its input: ``stage_input`` knows the region."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    inner: tuple[float, float] | None = None
    gain: float = 0.0
    zero_mean: bool = False
    masked: tuple[bool, ...] = ()
    """By channel: whether voxels outside of ``inside`` become zero. Empty: none do."""
    inside: Mask | None = field(default=None, compare=False)
    """Bool ``[I, J, K]`` of the whole scan."""

    @property
    def fills(self) -> bool:
        """Whether ``filled`` changes anything."""
        return self.inside is not None and any(self.masked)

    def filled(self, data: Array, box: Box) -> Array:
        """``[C, *box.shape]`` of a box of the scan in its own unit, where voxels outside ``inside`` have the
        values that ``apply`` maps to zero."""
        if self.inside is None or not self.fills:
            return data
        xp = namespace(data)
        inside, out = array_like(self.inside[box.slices], data), xp.astype(data, xp.float32)
        order = tuple(memory_order(out[0, ...]))
        masks = xp.permute_dims(inside, order)
        for own, shift, masked in zip(out, self.shift, self.masked, strict=True):
            if masked:
                for plane, mask in zip(xp.permute_dims(own, order), masks, strict=True):
                    plane[...] = xp.where(mask, plane, xp.full_like(plane, shift))
        return out

    def apply(self, data: Array) -> Array:
        """``[C, I, J, K]`` in the scan's own unit to normalised float32."""
        xp = namespace(data)
        out = xp.astype(data, xp.float32)
        if out is data:
            out = xp.asarray(data, copy=True)
        for c, (lo, hi, shift, scale) in enumerate(
            zip(self.lower, self.upper, self.shift, self.scale, strict=True)
        ):
            own = xp.clip(out[c, ...], lo, hi)
            own -= shift
            own *= scale
            if self.inner is not None:
                inner = xp.clip(out[c, ...], *self.inner)
                inner -= self.inner[0]
                inner *= self.gain
                own += inner
            out[c, ...] = own
        return out

    def of(self, channels: Sequence[int]) -> Normalisation:
        """The normalisation of some of the channels."""
        rows = (self.lower, self.upper, self.shift, self.scale)
        lower, upper, shift, scale = (tuple(row[c] for c in channels) for row in rows)
        masked = tuple(self.masked[c] for c in channels) if self.masked else ()
        return replace(self, lower=lower, upper=upper, shift=shift, scale=scale, masked=masked)


def normalisation(spec: IntensitySpec, image: Volume) -> Normalisation:
    """The parameters that normalise this scan: fixed for ``window``, measured for ``zscore`` and ``min_max``.

    Args:
        spec: of as many channels as the image, if there is one per channel (see ``input_channels``).
    """
    n = image.channels
    match spec:
        case Window():
            zero, slope, gain = line(spec.lower, spec.upper, spec.output, spec.inner, spec.inner_share)
            return Normalisation(
                (spec.lower,) * n,
                (spec.upper,) * n,
                (zero,) * n,
                (slope,) * n,
                spec.inner,
                gain,
                spec.zero_mean,
            )
        case ZScore() | MinMax() | Unchanged():
            return _by_channel((spec,) * n, image)
        case PerChannel():
            return _by_channel(spec.channels, image)


def _by_channel(specs: Sequence[ChannelIntensity], image: Volume) -> Normalisation:
    masked = tuple(isinstance(spec, ZScore) and spec.within == "nonzero" for spec in specs)
    inside = nonzero_mask(image) if any(masked) else None
    rows = [_row(spec, channel, inside) for spec, channel in zip(specs, image.data, strict=True)]
    lower, upper, shift, scale = zip(*rows, strict=True)
    return Normalisation(lower, upper, shift, scale, masked=masked, inside=inside)


def _row(spec: ChannelIntensity, channel: AnyNumpy, inside: Mask | None) -> tuple[float, float, float, float]:
    """Lower, upper, shift and scale of one channel ``[I, J, K]``."""
    match spec:
        case Window():
            zero, slope, _ = line(spec.lower, spec.upper, spec.output, None, spec.inner_share)
            return spec.lower, spec.upper, zero, slope
        case ZScore():
            return _moments(channel, inside if spec.within == "nonzero" else None, spec)
        case MinMax():
            low, high = float(channel.min()), float(channel.max())
            return low, high, low, 1 / max(high - low, MIN_SPREAD)
        case Unchanged():
            return -math.inf, math.inf, 0.0, 1.0


def line(
    lower: float,
    upper: float,
    output: Sequence[float],
    inner: Sequence[float] | None,
    inner_share: float,
) -> tuple[float, float, float]:
    """Shift, scale and gain, so that ``(x - shift) * scale``, plus ``gain`` for each of the intensities
    ``inner`` that lie below x, maps ``lower`` to ``upper`` to ``output``.

    Args:
        inner: the part of the window that gets ``inner_share`` (above 0, below 1) of the output; None: no
            part, and the gain is zero.
    """
    height, whole = output[1] - output[0], upper - lower
    scale, gain = height / whole, 0.0
    if inner is not None:
        width = inner[1] - inner[0]
        scale = (1 - inner_share) * height / (whole - width)
        gain = inner_share * height / width - scale
    return lower - output[0] / scale, scale, gain


def check_seen(spec: IntensitySpec, image: Volume, name: str) -> None:
    """Raise an error if a scan shows nothing within the recipe's window; several channels count as one,
    unless each has its own.

    Raises:
        ScanError: with the scan's ``name``.
    """
    if isinstance(spec, Window):
        check_within(spec.lower, spec.upper, float(image.data.min()), float(image.data.max()), name)
    elif isinstance(spec, PerChannel):
        for c, (own, channel) in enumerate(zip(spec.channels, image.data, strict=True)):
            if isinstance(own, Window):
                low, high = float(channel.min()), float(channel.max())
                check_within(own.lower, own.upper, low, high, f"{name}, channel {c}")


def check_within(lower: float, upper: float, lowest: float, highest: float, name: str) -> None:
    """Raise an error if a scan shows nothing within a window: air alone, or values in another unit. The
    network's input would be constant, and its output arbitrary.

    Raises:
        ScanError: the scan's ``lowest`` and ``highest`` intensity lie on one side of the window.
    """
    if lowest < upper and highest > lower:
        return
    raise ScanError(
        f"no voxel of {name} lies inside the model's intensity window, {lower:g} to {upper:g}: they run "
        f"from {lowest:g} to {highest:g}; does the scan contain a body, in the model's unit (CT: HU)?"
    )


def _moments(channel: AnyNumpy, inside: Mask | None, spec: ZScore) -> tuple[float, float, float, float]:
    """Of the voxels of ``[I, J, K]``; without percentiles, of those that are ``inside``."""
    if spec.clip_percentiles is None:
        return _moments_of_all(channel, inside)
    ordered = np.sort(_sample(channel), axis=None).astype(np.float32)
    low, high = (float(ordered[round(q * (len(ordered) - 1))]) for q in spec.clip_percentiles)
    clipped = np.clip(ordered, low, high).astype(np.float64)
    return low, high, float(clipped.mean()), 1.0 / max(float(clipped.std(ddof=1)), 1e-6)


def _moments_of_all(channel: AnyNumpy, inside: Mask | None) -> tuple[float, float, float, float]:
    count, total, low, high = 0, 0.0, math.inf, -math.inf
    for plane in _planes(channel, inside):
        if plane.size:
            count, total = count + plane.size, total + float(plane.sum())
            low, high = min(low, float(plane.min())), max(high, float(plane.max()))
    if not count:  # no voxel of the scan is inside the mask
        return 0.0, 0.0, 0.0, 1.0
    mean = total / count
    squares = sum(float(np.square(plane - mean).sum()) for plane in _planes(channel, inside))
    return low, high, mean, 1 / max(math.sqrt(squares / count), MIN_SPREAD)


def _planes(channel: AnyNumpy, inside: Mask | None) -> Iterator[npt.NDArray[np.float64]]:
    """The voxels of ``[I, J, K]``, or those ``inside``, plane by plane as they lie in memory: as a whole they
    would take several times the scan's memory."""
    axis = memory_order(channel)[0]
    planes = np.moveaxis(channel, axis, 0)
    masks: Iterable[Mask | None] = [None] * len(planes)
    if inside is not None:
        turned: Mask = np.moveaxis(inside, axis, 0)
        masks = turned
    for plane, mask in zip(planes, masks, strict=True):
        yield (plane if mask is None else plane[mask]).astype(np.float64)


def _sample(channel: AnyNumpy) -> AnyNumpy:
    """A scan's voxels, or for a large one an evenly spread sample: the same voxels for any memory layout and
    any flip."""
    # Every step-th from either end, so that up to twice as many are taken along each axis.
    step = math.ceil((8 * channel.size / STATISTICS_VOXELS) ** (1 / 3))
    if channel.size <= STATISTICS_VOXELS:
        return channel
    for axis, size in enumerate(channel.shape):
        index = np.arange(0, size, step)
        channel = channel.take(np.union1d(index, size - 1 - index), axis)
    return channel


def nonzero_box(image: Volume) -> Box:
    """The box of the voxels that are not zero in every channel; the whole image if there are none."""
    found = [bounding_box(channel != 0) for channel in image.data]
    boxes = [box for box in found if box is not None]
    return functools.reduce(Box.union, boxes) if boxes else image.grid.box


def nonzero_mask(image: Volume) -> Mask:
    """Bool ``[I, J, K]``: the voxels that are not zero in every channel, and those that they enclose
    (nnU-Net's ``create_nonzero_mask``).

    Raises:
        MemoryLimitError: too little memory is free.
    """
    require_ram_of(image.grid.shape, MASKING_BYTES, "the mask of a scan")
    found = image.data[0] != 0
    for channel in image.data[1:]:
        found |= channel != 0
    return filled(found)


def masking_bytes(specs: Iterable[IntensitySpec], channels: int) -> int:
    """Memory, for each voxel of a scan, of the mask of its normalisation and of what is filled by it; 0 if
    none of these has one."""
    for spec in specs:
        own = spec.channels if isinstance(spec, PerChannel) else (spec,)
        if any(isinstance(one, ZScore) and one.within == "nonzero" for one in own):
            return max(MASKING_BYTES, 1 + 4 * channels)
    return 0


def image_channels(specs: Sequence[InputSpec], channels: int) -> tuple[int, ...]:
    """Indices of the scan's channels that the network reads, in order."""
    out: list[int] = []
    for spec in specs:
        if isinstance(spec, ImageInput):
            out.extend(range(channels) if spec.channel == "all" else [spec.channel])
    return tuple(out)


def prior_specs(specs: Sequence[InputSpec]) -> tuple[PriorInput | AtlasInput, ...]:
    """The inputs that read a prior: an earlier stage's, or the atlas's."""
    return tuple(spec for spec in specs if not isinstance(spec, ImageInput))


def prior_names(spec: PriorInput | AtlasInput, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of one prior input; ``labels`` are those of the stage that it reads."""
    return labels if isinstance(spec.labels, str) else spec.labels


def select_prior(spec: PriorInput | AtlasInput, probabilities: Array, labels: tuple[str, ...]) -> Array:
    """The channels that a prior input names, from ``[..., 1 + labels, I, J, K]``."""
    names = prior_names(spec, labels)
    index = array_like(np.array([labels.index(n) + 1 for n in names]), probabilities)
    return namespace(probabilities).take(probabilities, index, axis=probabilities.ndim - 4)


def label_maps_on(
    specs: Sequence[InputSpec],
    priors: Mapping[str, StagePrediction],
    grid: Grid,
    box: Box,
    kernels: AxisInterpolations,
) -> dict[int, Numbers]:
    """The label maps ``[*box.shape]`` of ``grid`` that these inputs read, by index among the prior inputs
    (see ``label_priors.numbers_on``)."""
    found: dict[int, Numbers] = {}
    for n, spec in enumerate(prior_specs(specs)):
        if isinstance(spec, PriorInput) and spec.form == "label_map":
            decided = priors[spec.of].decided
            assert decided is not None  # the caller checks ``graph.label_map_is_read``
            found[n] = numbers_on(decided, prior_names(spec, priors[spec.of].labels), grid, box, kernels)
    return found


def image_on(
    specs: Sequence[InputSpec],
    image: Volume,
    normalisation: Normalisation,
    grid: Grid,
    kernels: AxisInterpolations | None = None,
) -> Array:
    """The image channels ``[C, *grid.shape]`` of these inputs, normalised; ``kernels`` as in
    ``resample_data``. Only the part of the scan that is read is filled."""
    channels = list(image_channels(specs, image.channels))
    own = normalisation.of(channels)
    seen = image.data if channels == list(range(image.channels)) else image.data[channels]
    source = image.grid
    if own.fills:
        box = read_box(source, grid, kernels=kernels)
        seen, source = own.filled(seen[(slice(None), *box.slices)], box), source.crop(box)
    return resample_data(seen, source, grid, change=own.apply, kernels=kernels)


def priors_on(
    specs: Sequence[InputSpec],
    priors: Mapping[str, StagePrediction],
    grid: Grid,
    label_maps: Mapping[int, Numbers],
) -> list[Array]:
    """The channels ``[C, *grid.shape]`` of every prior of these inputs.

    Args:
        label_maps: ``[*grid.shape]``, by index of the prior inputs that read label maps.
    """
    parts: list[Array] = []
    for n, spec in enumerate(prior_specs(specs)):
        prior = priors[spec.of]
        if n in label_maps:
            count = len(prior_names(spec, prior.labels))
            parts.append(array_like(one_hot(label_maps[n], count), prior.probabilities))
            continue
        chosen = select_prior(spec, prior.probabilities, prior.labels)
        parts.append(resample_data(chosen, prior.grid, grid))
    return parts


def window_of(spec: IntensitySpec) -> tuple[float, float] | None:
    """The fixed window of a recipe's first channel, if there is one."""
    spec = spec.channels[0] if isinstance(spec, PerChannel) else spec
    return (spec.lower, spec.upper) if isinstance(spec, Window) else None


def limits_of(spec: IntensitySpec) -> tuple[float, float] | None:
    """The limits of the values that a network reads in every image, if they are fixed."""
    return spec.output if isinstance(spec, Window) and not spec.zero_mean else None


def network_channels(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> tuple[int, int]:
    """Numbers of input and output channels of a stage's network, for scans of ``channels``.

    Raises:
        RecipeError: as ``input_channels``.
    """
    classes = 1 + len(graph.resolve_labels(stage, schema))
    return input_channels(stage, recipe, schema, channels), classes


def input_channels(stage: Stage, recipe: Recipe, schema: LabelSchema, channels: int) -> int:
    """Number of channels that a stage's network reads.

    Raises:
        RecipeError: the stage needs an image channel that the scans do not have, or the recipe's intensities
            are for more or fewer channels.
    """
    intensity = graph.intensity_of(recipe, stage)
    if isinstance(intensity, PerChannel) and len(intensity.channels) != channels:
        raise RecipeError(
            f"stage '{stage.name}', intensity: of {len(intensity.channels)} channels, but scans have "
            f"{channels}"
        )
    shown = image_channels(stage.inputs, channels)
    for channel in shown:
        if not 0 <= channel < channels:
            raise RecipeError(
                f"stage '{stage.name}', inputs: scans have no channel {channel}; allowed: 0 to {channels - 1}"
            )
    count = len(shown)
    for spec in prior_specs(stage.inputs):
        count += len(prior_names(spec, graph.prior_labels(recipe, spec.of, schema)))
    return count
