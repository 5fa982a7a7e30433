"""``grid``: the sampling a stage works at."""

from __future__ import annotations

from zoomseg.core.geometry import Box, Grid
from zoomseg.recipe.spec import Downsample, FixedShape, FixedSpacing, GridSpec


def stage_grid(spec: GridSpec, scan: Grid, box: Box | None = None) -> Grid:
    """The stage's grid over the scan; for ``shape``, over ``box`` of the scan's grid (default: all).

    No voxels are sampled here: a region and tiles are placed on the grid first, and only what they
    read is ever computed.
    """
    match spec:
        case Downsample():
            return scan.downsampled(spec.factor)
        case FixedSpacing():
            return scan.with_spacing(spec.mm)
        case FixedShape():
            return scan.crop(box or scan.box).with_shape(spec.shape)
