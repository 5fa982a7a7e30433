"""Masks grown by a ball. Numpy alone: exported models carry it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def dilated(mask: Mask, radius_vox: float) -> Mask:
    """Voxels no farther than ``radius_vox`` from a set voxel, by exact squared distance, axis by axis."""
    far = 4 * math.floor(radius_vox + 1) ** 2
    kind = np.int16 if far < 2**14 else np.int32
    squared: npt.NDArray[np.signedinteger] = np.where(mask, 0, far).astype(kind)
    for axis, size in enumerate(mask.shape):
        lines = np.moveaxis(squared, axis, 0)
        best = lines.copy()
        for step in range(1, min(math.floor(radius_vox), size - 1) + 1):
            np.minimum(best[:-step], lines[step:] + step**2, out=best[:-step])
            np.minimum(best[step:], lines[:-step] + step**2, out=best[step:])
        squared = np.moveaxis(best, 0, axis)
    near: Mask = squared <= radius_vox**2
    return near
