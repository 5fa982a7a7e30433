"""``grid``: the sampling of a stage."""

from __future__ import annotations

import numpy as np

from zoomseg.core.geometry import Box, Grid, Index3, Vector3
from zoomseg.core.resample import AxisInterpolation, AxisInterpolations
from zoomseg.recipe.spec import Downsample, FixedShape, FixedSpacing, GridSpec


def stage_grid(spec: GridSpec, scan: Grid, box: Box | None = None) -> Grid:
    """The stage's grid over the scan; for ``shape``, over ``box`` of the scan's grid (default: all).

    No voxels are sampled here: a region and tiles are placed on the grid first, and only what they
    read is ever computed.
    """
    match spec:
        case Downsample():
            return scan.downsampled(spec.factor)
        case FixedSpacing(fit="round"):
            return scan.with_shape(_rounded(_mm(spec, scan.spacing_mm), scan))
        case FixedSpacing():
            return scan.with_spacing(_mm(spec, scan.spacing_mm))
        case FixedShape():
            return scan.crop(box or scan.box).with_shape(spec.shape)


def _mm(spec: FixedSpacing, scan_mm: Vector3) -> Vector3:
    """The spacing on a scan of spacing ``scan_mm``, which is kept along some axes."""
    i, j, k = (own if mm is None else mm for mm, own in zip(spec.mm, scan_mm, strict=True))
    return (i, j, k)


def _rounded(mm: Vector3, scan: Grid) -> tuple[int, int, int]:
    """The shape with voxels closest to ``mm`` over the scan's field of view."""
    i, j, k = (
        max(1, round(own / wanted * size))
        for own, wanted, size in zip(scan.spacing_mm, mm, scan.shape, strict=True)
    )
    return (i, j, k)


def label_blocks(spec: GridSpec) -> Index3:
    """By axis, how many voxels of the scan one voxel of the stage's grid covers exactly: where the scan is
    downsampled by a whole factor; otherwise 1.

    The centre of such a voxel lies between the scan's if the factor is even, so that the nearest label would
    always be that of the same side, half a voxel of the scan beside the image. On other grids the nearest
    label is right on average, and small organs do not vanish on coarse ones.
    """
    if not isinstance(spec, Downsample):
        return (1, 1, 1)
    i, j, k = (int(factor) if factor >= 1 and factor == int(factor) else 1 for factor in spec.factor)
    return (i, j, k)


def image_kernels(spec: GridSpec, scan: Grid) -> AxisInterpolations:
    """Interpolation of a scan's images, by axis of its grid."""
    cubic = isinstance(spec, FixedSpacing) and spec.interpolation == "cubic"
    return _kernels("cubic" if cubic else "antialiased", _axis_apart(spec, scan.spacing_mm, first=True))


def label_kernels(spec: GridSpec, scan: Grid) -> AxisInterpolations:
    """Interpolation of label maps on a scan's grid, label by label."""
    return _kernels("linear", _axis_apart(spec, scan.spacing_mm, first=True))


def prediction_kernels(spec: GridSpec, scan: Grid) -> AxisInterpolations:
    """Interpolation of predictions back to the scan."""
    return _kernels("linear", _axis_apart(spec, scan.spacing_mm, first=False))


def _kernels(kernel: AxisInterpolation, apart: int | None) -> AxisInterpolations:
    i, j, k = ("nearest" if axis == apart else kernel for axis in range(3))
    return (i, j, k)


def _axis_apart(spec: GridSpec, scan_mm: Vector3, first: bool) -> int | None:
    """The axis across which slices are interpolated separately. The source's spacing is checked first: the
    scan's, or on the way back the grid's (nnU-Net's ``determine_do_sep_z_and_axis``)."""
    if not isinstance(spec, FixedSpacing) or spec.slices_apart_above is None:
        return None
    mm = _mm(spec, scan_mm)
    for spacing in (scan_mm, mm) if first else (mm, scan_mm):
        if max(spacing) / min(spacing) > spec.slices_apart_above:
            longest = np.flatnonzero(np.array(spacing) == max(spacing))
            return int(longest[0]) if len(longest) == 1 else None
    return None
