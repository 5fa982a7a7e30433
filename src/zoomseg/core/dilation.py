"""Masks grown by a ball. Numpy alone: exported models carry it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def dilated(mask: Mask, radius_vox: float) -> Mask:
    """Voxels no farther than ``radius_vox`` from a set voxel, by exact squared distance, axis by axis:
    the work grows with the radius and not with its cube."""
    far = 4 * math.floor(radius_vox + 1) ** 2
    kind = np.int16 if far < 2**14 else np.int32
    squared: npt.NDArray[np.signedinteger] = np.where(mask, kind(0), kind(far))
    # Three arrays for all steps: new ones would cost more than the arithmetic.
    nearest, shifted = np.empty_like(squared), np.empty_like(squared)
    for axis, size in enumerate(mask.shape):
        given, best, farther = (np.moveaxis(array, axis, 0) for array in (squared, nearest, shifted))
        best[...] = given
        for step in range(1, min(math.floor(radius_vox), size - 1) + 1):
            np.add(given, step**2, out=farther)
            np.minimum(best[:-step], farther[step:], out=best[:-step])
            np.minimum(best[step:], farther[:-step], out=best[step:])
        squared, nearest = nearest, squared
    near: Mask = squared <= radius_vox**2
    return near
