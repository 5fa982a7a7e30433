"""The effect of a network on shapes, from its spec alone, without building it."""

from __future__ import annotations

import math
from typing import Literal

from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Index3
from zoomseg.recipe import spec as specs

Padding = Literal["same", "valid"]

FLAT_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Axis of canonical (RAS+) scans along which the slices of a plane are stacked."""


INSTANCE_NORM = ("resenc_unet", "plain_conv_unet")
"""Kinds of network whose norm is computed over the voxels of one input."""


def check(spec: specs.NetworkSpec, padding: Padding) -> None:
    """Refuse numbers that give no valid network.

    Raises:
        RecipeError: names valid ones.
    """
    if len(spec.channels) < 2:
        raise RecipeError(f"{spec.kind} needs at least 2 levels, got channels {list(spec.channels)}")
    if padding == "valid" and not isinstance(spec, specs.UNet3D | specs.UNet2D):
        raise RecipeError(f"{spec.kind} keeps its input's shape: use padding 'same', got 'valid'")
    if isinstance(spec, specs.ResEncUNet | specs.PlainConvUNet):
        even = [kernel for kernel in spec.kernels if any(n % 2 == 0 for n in kernel)]
        if even:
            raise RecipeError(f"kernels must have odd sizes, got {list(even[0])}")


def halo(spec: specs.NetworkSpec, padding: Padding) -> Index3:
    """Number of voxels on each side by which the output is smaller than the input."""
    check(spec, padding)
    if padding == "same":
        return (0, 0, 0)
    return in_plane(valid_halo(len(spec.channels)), flat_axis(spec), flat=0)


def divisor(spec: specs.NetworkSpec) -> Index3:
    """Divisor of each side of an input with same padding."""
    match spec:
        case specs.UNet3D() | specs.UNet2D():
            return in_plane(2 ** (len(spec.channels) - 1), flat_axis(spec))
        case specs.ResEncUNet() | specs.PlainConvUNet() | specs.ResidualFCN():
            i, j, k = (math.prod(stride[a] for stride in spec.strides) for a in range(3))
            return (i, j, k)
        case specs.ResUNetASPP():
            return in_plane(2 ** len(spec.channels), None)


def check_input_shape(spec: specs.NetworkSpec, padding: Padding, shape: Index3) -> Index3:
    """The output shape for an input of ``shape``.

    Raises:
        RecipeError: the network does not accept this shape; names the nearest ones that it accepts.
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
    if spec.kind in INSTANCE_NORM and all(n == f for n, f in zip(shape, factors, strict=True)):
        raise RecipeError(
            f"{spec.kind} cannot take an input of {_times(shape)}: its lowest level would be a single voxel, "
            f"which instance norm makes zero; make one side at least twice as long"
        )
    return (shape[0] - 2 * lost[0], shape[1] - 2 * lost[1], shape[2] - 2 * lost[2])


def check_tile(stage: specs.Stage) -> None:
    """Refuse a stage whose network does not accept its tiles.

    Raises:
        RecipeError: names the nearest valid shapes.
    """
    _check_field(stage, "grid.tile", stage.grid.tile)


def check_patch(stage: specs.Stage) -> None:
    """Refuse a stage whose network does not accept its training patches.

    Raises:
        RecipeError: names the nearest valid shapes.
    """
    _check_field(stage, "training.patch", stage.training.patch)


def _check_field(stage: specs.Stage, field: str, shape: Index3) -> None:
    try:
        check_input_shape(stage.network, stage.grid.padding, shape)
    except RecipeError as error:
        raise RecipeError(f"stage '{stage.name}', {field}: {error}") from error


def readable(spec: specs.NetworkSpec, padding: Padding, shape: Index3) -> Index3:
    """The largest input shape not above ``shape`` that the network accepts, or the smallest one."""
    i, j, k = (_nearest(spec, padding, size, axis)[0] for axis, size in enumerate(shape))
    return (i, j, k)


def in_plane(size: int, flat_axis: int | None, flat: int = 1) -> Index3:
    """``size`` along every axis but ``flat_axis``, which has ``flat``."""
    i, j, k = (flat if axis == flat_axis else size for axis in range(3))
    return (i, j, k)


def valid_halo(levels: int) -> int:
    """Voxels lost on each side by valid convolutions: two per side, level and path, at the level's scale.

    44 for four levels: 2 * (1 + 2 + 4 + 8) on the way down, 2 * (4 + 2 + 1) on the way up.
    """
    coarsest: int = 2 ** (levels - 1)
    return 2 * (2 * coarsest - 1) + 2 * (coarsest - 1)


def flat_axis(spec: specs.NetworkSpec) -> int | None:
    """The axis along which the network has no extent; None if it is three-dimensional."""
    return FLAT_AXIS[spec.plane] if isinstance(spec, specs.UNet2D) else None


def _nearest(spec: specs.NetworkSpec, padding: Padding, size: int, axis: int) -> tuple[int, ...]:
    """The allowed size or sizes next to ``size`` along one axis; ``size`` alone if it is allowed.

    With valid padding an output has ``factor * n - 4 * (factor - 1)`` voxels for n voxels that leave the
    lowest level: upsampled level by level, with four lost at each.
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


def _times(shape: Index3) -> str:
    return "x".join(str(n) for n in shape)
