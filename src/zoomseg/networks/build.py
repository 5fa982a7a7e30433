"""From a network's spec to the module, and what the module does to shapes.

Every network maps ``[B, in_channels, I, J, K]`` to a tuple of logits: first those at full
resolution, then, in training only, those of lower resolutions for deep supervision.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Index3
from zoomseg.networks.residual import ResEncUNet
from zoomseg.networks.unet import UNet3D, valid_halo
from zoomseg.recipe import spec as specs

Padding = Literal["same", "valid"]


def build(spec: specs.NetworkSpec, in_channels: int, classes: int, padding: Padding) -> nn.Module:
    """The module of ``spec``, He-initialised from torch's generator. ``classes`` counts background.

    Raises:
        RecipeError: the network cannot have this padding, or its numbers make no network.
    """
    _check(spec, padding)
    match spec:
        case specs.UNet3D():
            return UNet3D(in_channels, classes, spec.channels, padding=1 if padding == "same" else 0)
        case specs.ResEncUNet():
            return ResEncUNet(
                in_channels,
                classes,
                spec.channels,
                spec.strides,
                spec.kernels,
                spec.blocks,
                spec.deep_supervision,
            )


def halo(spec: specs.NetworkSpec, padding: Padding) -> Index3:
    """Voxels that the answer is smaller than the input by, on each side."""
    _check(spec, padding)
    if padding == "same":
        return (0, 0, 0)
    lost = valid_halo(len(spec.channels))
    return (lost, lost, lost)


def divisor(spec: specs.NetworkSpec) -> Index3:
    """What each side of an input must be a multiple of with same padding."""
    match spec:
        case specs.UNet3D():
            factor = 2 ** (len(spec.channels) - 1)
            return (factor, factor, factor)
        case specs.ResEncUNet():
            i, j, k = (math.prod(stride[a] for stride in spec.strides) for a in range(3))
            return (i, j, k)


def check_input_shape(spec: specs.NetworkSpec, padding: Padding, shape: Index3) -> Index3:
    """The output shape for an input of ``shape``.

    Raises:
        RecipeError: the network cannot take this shape; names the nearest ones it can take.
    """
    lost = halo(spec, padding)
    nearest = [_nearest(spec, padding, size, axis) for axis, size in enumerate(shape)]
    wrong = [a for a, size in enumerate(shape) if size not in nearest[a]]
    if wrong:
        parts = [f"axis {'ijk'[a]}: {shape[a]} (nearest: {' or '.join(map(str, nearest[a]))})" for a in wrong]
        raise RecipeError(
            f"{spec.kind} with {padding} padding cannot take an input of {_times(shape)}; {'; '.join(parts)}"
        )
    factors = divisor(spec)
    if spec.kind == "resenc_unet" and all(n == f for n, f in zip(shape, factors, strict=True)):
        raise RecipeError(
            f"{spec.kind} cannot take an input of {_times(shape)}: its lowest level would be a single voxel, "
            f"which instance norm makes zero; make one side at least twice as long"
        )
    return (shape[0] - 2 * lost[0], shape[1] - 2 * lost[1], shape[2] - 2 * lost[2])


def parameters(module: nn.Module) -> int:
    """Number of learnable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _nearest(spec: specs.NetworkSpec, padding: Padding, size: int, axis: int) -> tuple[int, ...]:
    """The allowed size or sizes next to ``size`` along one axis; ``size`` alone if it is allowed.

    With valid padding an answer is ``factor * n - 4 * (factor - 1)`` voxels for n voxels that leave
    the lowest level: upsampled level by level, four lost at each.
    """
    factor = divisor(spec)[axis]
    lost = 2 * halo(spec, padding)[axis]
    offset = (lost - 4 * (factor - 1)) % factor if padding == "valid" else 0
    smallest = factor + offset
    while smallest <= lost:
        smallest += factor
    if size <= smallest:
        return (smallest,)
    below = size - (size - smallest) % factor
    return (size,) if below == size else (below, below + factor)


def _check(spec: specs.NetworkSpec, padding: Padding) -> None:
    if len(spec.channels) < 2:
        raise RecipeError(f"{spec.kind} needs at least 2 levels, got channels {list(spec.channels)}")
    if isinstance(spec, specs.ResEncUNet):
        if padding == "valid":
            raise RecipeError("resenc_unet keeps its input's shape: use padding 'same', got 'valid'")
        even = [kernel for kernel in spec.kernels if any(n % 2 == 0 for n in kernel)]
        if even:
            raise RecipeError(f"kernels must have odd sizes, got {list(even[0])}")


def _times(shape: Index3) -> str:
    return "x".join(str(n) for n in shape)
