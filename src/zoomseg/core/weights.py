"""What linear interpolation weighs neighbours by, along one axis. Numpy alone: exported models carry it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import GeometryError

Float32Array = npt.NDArray[np.float32]

MAX_TAPS = 1 << 22
"""Neighbours that all points together may have. Where the source is wider than one voxel of the target, they
are no more than four times its voxels."""

TIE_TOLERANCE = 1e-4
"""A point this little before the middle between two voxels counts as in the middle."""


def linear_weights(size_in: int, size_out: int, scale: float, offset: float, antialias: bool) -> Float32Array:
    """``[size_out, size_in]`` float32 rows that sum to one: linear interpolation at
    ``scale * n + offset``, widened to a triangle of ``|scale|`` voxels when shrinking.

    A row's mean position is exactly where it samples, so that ramps stay ramps. Indices beyond the
    source count for its edge voxel.

    Raises:
        GeometryError: a voxel of the target is so much wider than the whole source that its weights would
            take ``MAX_TAPS``.
    """
    if size_out * (2 * abs(scale) + 4) > MAX_TAPS:
        wide = f"one voxel of the other grid covers {abs(scale):.3g} of its {size_in}"
        raise GeometryError(f"the scan is too small for the model's grid: {wide} along an axis")
    centre = scale * np.arange(size_out) + offset
    centre = np.clip(centre, 0, size_in - 1)
    width = max(1.0, abs(scale)) if antialias else 1.0
    reach = int(np.ceil(width))
    taps = np.floor(centre)[:, None].astype(int) + np.arange(-reach, reach + 2)[None, :]
    distance = taps - centre[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(distance) / width)
    weights[weights < 1e-7] = 0.0  # float noise must not turn a copy into a matrix product
    weights /= weights.sum(axis=1, keepdims=True)
    # Voxels meet a triangle of fractional width unevenly and pull its mean aside: tilt it back.
    first, second = ((weights * distance**n).sum(axis=1, keepdims=True) for n in (1, 2))
    leans = np.abs(first[:, 0]) > 1e-6
    weights[leans] *= ((second - first * distance)[leans]) / (second - first**2)[leans]
    out = np.zeros((size_out, size_in))
    rows = np.repeat(np.arange(size_out), taps.shape[1])
    np.add.at(out, (rows, np.clip(taps, 0, size_in - 1).ravel()), weights.ravel())
    return out.astype(np.float32)
