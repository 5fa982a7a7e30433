"""nnU-Net's networks: convert an architecture's numbers to a recipe's network, and its weights to that
network's names.

nnU-Net's arrays have a scan's axes as k, j, i, transposed; here they are i, j, k. The kernels are transposed,
instead of every scan. A network of slices, which lie across its first axis, has kernels of one voxel there.
Biases of convolutions followed by a norm, which subtracts them again, are omitted, and so are the heads of
deep supervision, which are only used in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoomseg.core.arrays import AnyNumpy
from zoomseg.core.errors import ModelError, quoted
from zoomseg.core.geometry import Index3
from zoomseg.importing.nnunet.plans import Architecture, ArchitectureNumbers, Sizes
from zoomseg.networks import build as networks
from zoomseg.networks.blocks import LEAKY_SLOPE
from zoomseg.recipe.spec import PlainConvUNet, ResEncUNet

LAST_LAYERS = ("last.", "heads.0.")
"""Prefixes of the tensors whose first axis corresponds to the classes."""

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
"""Supported networks."""

Axes = tuple[int, int, int]
"""For each axis of a scan here (i, j, k), the network's axis there."""


def axes_of(transpose_forward: Sequence[int]) -> Axes:
    """The network's axis n is the scan's axis ``transpose_forward[n]`` of k, j, i."""
    i, j, k = (list(transpose_forward).index(2 - a) for a in range(3))
    return (i, j, k)


def turned(values: Sequence[int], axes: Axes) -> Index3:
    """Numbers given by nnU-Net's axes, reordered to i, j, k."""
    return (int(values[axes[0]]), int(values[axes[1]]), int(values[axes[2]]))


def in_space(values: Sequence[int]) -> list[int]:
    """Numbers by nnU-Net's axes; for networks of slices, with a one across them."""
    return [1, *values] if len(values) == 2 else list(values)


def spec_of(architecture: Architecture, axes: Axes, dimensions: int = 3) -> PlainConvUNet | ResEncUNet:
    """The equivalent network of a recipe.

    Args:
        dimensions: of its convolutions, 2 or 3.

    Raises:
        ModelError: another class, or an unsupported norm, activation or block.
    """
    numbers = architecture.arch_kwargs
    if architecture.name not in NETWORKS:
        raise ModelError(
            f"network {quoted(architecture.network_class_name)}: supported are {' and '.join(NETWORKS)}"
        )
    _check_parts(numbers, dimensions)
    levels = numbers.n_stages
    channels = tuple(_per_level(numbers.features_per_stage, levels, "features_per_stage"))
    kernel_sizes = _per_axis(numbers.kernel_sizes, levels, dimensions, "kernel_sizes")
    step_sizes = _per_axis(numbers.strides, levels, dimensions, "strides")
    kernels = tuple(turned(in_space(size), axes) for size in kernel_sizes)
    strides = tuple(turned(in_space(size), axes) for size in step_sizes)
    decoder = _per_level(numbers.n_conv_per_stage_decoder, levels - 1, "n_conv_per_stage_decoder")
    if strides[0] != (1, 1, 1):
        raise ModelError(f"strides: the first level has {list(strides[0])}; supported is 1 along every axis")
    if architecture.name == "PlainConvUNet":
        return PlainConvUNet(
            channels=channels,
            strides=strides,
            kernels=kernels,
            convolutions=tuple(_per_level(numbers.n_conv_per_stage, levels, "n_conv_per_stage")),
            decoder_convolutions=tuple(reversed(decoder)),
        )
    if set(decoder) != {1} or numbers.stem_channels not in (None, channels[0]):
        raise ModelError(
            f"ResidualEncoderUNet with {decoder} decoder convolutions and {numbers.stem_channels} stem "
            "channels; supported are one per level, and as many as the first level's"
        )
    blocks = tuple(_per_level(numbers.n_blocks_per_stage, levels, "n_blocks_per_stage"))
    return ResEncUNet(
        channels=channels, strides=strides, kernels=kernels, blocks=blocks, deep_supervision=False
    )


def _check_parts(numbers: ArchitectureNumbers, dimensions: int) -> None:
    known = f"InstanceNorm{dimensions}d"
    norm, activation = (str(part).rpartition(".")[2] for part in (numbers.norm_op, numbers.nonlin))
    options = numbers.norm_op_kwargs or {}
    if norm != known or options.get("eps", 1e-5) != 1e-5 or not options.get("affine", True):
        raise ModelError(f"norm_op {quoted(numbers.norm_op)} {quoted(options)}: supported is {known}, affine")
    slope = (numbers.nonlin_kwargs or {}).get("negative_slope", LEAKY_SLOPE)
    if activation != "LeakyReLU" or slope != LEAKY_SLOPE or numbers.nonlin_first:
        raise ModelError(
            f"nonlin {quoted(numbers.nonlin)} of slope {quoted(slope)}: supported is LeakyReLU of slope "
            f"{LEAKY_SLOPE}, after the norm"
        )
    if numbers.block is not None and numbers.block.rpartition(".")[2] != "BasicBlockD":
        raise ModelError(f"block {quoted(numbers.block)}: supported is BasicBlockD")


def _per_level(given: int | list[int] | None, levels: int, name: str) -> list[int]:
    values = [given] * levels if isinstance(given, int) else list(given or ())
    if len(values) != levels:
        raise ModelError(f"plans.json: {name} has {len(values)} entries, expected one per level ({levels})")
    return values


def _per_axis(given: Sizes, levels: int, dimensions: int, name: str) -> list[list[int]]:
    values: list[int] | list[list[int]] = [given] * levels if isinstance(given, int) else given
    sizes: list[list[int]] = [[value] * dimensions if isinstance(value, int) else value for value in values]
    if len(sizes) != levels or any(len(size) != dimensions for size in sizes):
        raise ModelError(f"plans.json: {name} must have one entry per level ({levels}), of {dimensions} axes")
    return sizes


@dataclass(frozen=True)
class _Place:
    """The source of a tensor, and whether its input channels are those of a decoder (upsampled first)."""

    source: str
    skip_last: bool = False


def weights_of(
    given: Mapping[str, Tensor],
    spec: PlainConvUNet | ResEncUNet,
    axes: Axes,
    channels: int,
    classes: int,
    regions: bool = False,
    trainer: str = "",
) -> dict[str, AnyNumpy]:
    """A checkpoint's weights as the state dict of the network of ``spec``.

    Args:
        channels: that the network reads.
        classes: that it predicts, background included.
        regions: whether the checkpoint has no background class and separate logits for regions: they become
            those of a region relative to a background of zero.
        trainer: that wrote the checkpoint, for messages.

    Raises:
        ModelError: a weight is missing, has another shape, or belongs to no such network.
    """
    own = {name.removeprefix("module.").removeprefix("_orig_mod."): t for name, t in given.items()}
    with networks.without_memory():
        expected = networks.build(spec, channels, classes, "same").state_dict()
    places = _places(spec)
    _check_known(own, places, trainer)
    found = {}
    for name, wanted in expected.items():
        place = places[name]
        tensor = own.get(place.source)
        if tensor is None:
            if name.startswith("up.") and name.endswith(".bias"):  # of networks without biases
                found[name] = np.zeros(wanted.shape, dtype=np.float32)
                continue
            raise ModelError(
                f"the checkpoint has no weight {place.source}, which the network of plans.json needs"
            )
        values = _array(tensor, axes, tuple(wanted.shape), regions and name.startswith(LAST_LAYERS), place)
        found[name] = _skip_first(values) if place.skip_last else values
    return found


def _array(tensor: Tensor, axes: Axes, shape: tuple[int, ...], background: bool, place: _Place) -> AnyNumpy:
    """A weight of this shape. ``background``: its first class, of zeros, is to be added."""
    if not _is_plain(tensor):
        raise ModelError(
            f"the checkpoint's {place.source} is no array of real numbers that are in the file; get the "
            "model anew"
        )
    view = _turned(tensor.detach(), axes)
    given = tuple(view.shape)
    if background:
        given = tuple(n + 1 for n in given[:1]) + given[1:]
    if given != shape:
        raise ModelError(
            f"the checkpoint's {place.source} has shape {list(given)}, the network of plans.json and "
            f"dataset.json {list(shape)}: they belong to different models"
        )
    values: AnyNumpy = np.ascontiguousarray(view.float().numpy())
    return np.concatenate([np.zeros_like(values[:1]), values]) if background else values


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary array of real numbers, each stored: a file of a few bytes may declare any
    size."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and not tensor.is_nested
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _turned(values: Tensor, axes: Axes) -> Tensor:
    """A view."""
    values = values[:, :, None] if values.ndim == 4 else values  # a kernel of slices
    return values if values.ndim != 5 else values.permute(0, 1, *(2 + axis for axis in axes))


def _skip_first(kernel: AnyNumpy) -> AnyNumpy:
    """Swap the halves: nnU-Net has a decoder's upsampled features first, followed by the skip with as many
    channels."""
    half = kernel.shape[1] // 2
    return np.ascontiguousarray(np.concatenate([kernel[:, half:], kernel[:, :half]], axis=1))


def _check_known(given: Mapping[str, Tensor], places: Mapping[str, _Place], trainer: str) -> None:
    """Refuse a checkpoint with other modules than the network's, or with other tensors in them: a trainer may
    have changed the network without changing the plans."""
    known = {place.source.rpartition(".")[0] for place in places.values()}
    for name in given:
        module, _, part = name.rpartition(".")
        doubled = ".all_modules." in name or name.startswith("decoder.encoder.")
        if not (doubled or module in known or module.startswith("decoder.seg_layers.")):
            raise ModelError(
                f"the checkpoint has a weight {quoted(name)}, which no {' or '.join(NETWORKS)} has: its "
                f"trainer{_called(trainer)} built another network, which is not supported"
            )
        if part not in ("weight", "bias"):
            raise ModelError(
                f"the checkpoint has {quoted(name)}, which belongs to batch norm or another norm with stored "
                f"statistics: its trainer{_called(trainer)} changed the norm of plans.json; supported is "
                "instance norm, as nnUNetTrainer has"
            )


def _called(trainer: str) -> str:
    return f" {quoted(trainer)}" if trainer else ""


def _places(spec: PlainConvUNet | ResEncUNet) -> dict[str, _Place]:
    """Sources by the names of weights here."""
    out: dict[str, _Place] = {}

    def block(own: str, theirs: str, skip_last: bool = False) -> None:
        out[f"{own}.0.weight"] = _Place(f"{theirs}.conv.weight", skip_last)
        for part in ("weight", "bias"):
            out[f"{own}.1.{part}"] = _Place(f"{theirs}.norm.{part}")

    def plain(own: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            out[f"{own}.{part}"] = _Place(f"{theirs}.{part}")

    levels = len(spec.channels)
    for n in range(levels - 1):
        plain(f"up.{n}", f"decoder.transpconvs.{levels - 2 - n}")
    match spec:
        case PlainConvUNet():
            for level, count in enumerate(spec.convolutions):
                for c in range(count):
                    block(f"encoder.{level}.{c}", f"encoder.stages.{level}.0.convs.{c}")
            for n, count in enumerate(spec.decoder_convolutions):
                for c in range(count):
                    block(f"decoder.{n}.{c}", f"decoder.stages.{levels - 2 - n}.convs.{c}", c == 0)
            plain("last", f"decoder.seg_layers.{levels - 2}")
        case ResEncUNet():
            block("stem", "encoder.stem.convs.0")
            for level, count in enumerate(spec.blocks):
                for b in range(count):
                    own, theirs = f"encoder.{level}.{b}", f"encoder.stages.{level}.blocks.{b}"
                    block(f"{own}.first", f"{theirs}.conv1")
                    block(f"{own}.second", f"{theirs}.conv2")
                    for part in (0, 1):  # the projection; after the pooling, if there is one
                        block(f"{own}.skip.{part}", f"{theirs}.skip.{part}")
            for n in range(levels - 1):
                block(f"decoder.{n}", f"decoder.stages.{levels - 2 - n}.convs.0", True)
            plain("heads.0", f"decoder.seg_layers.{levels - 2}")
    return out
