"""Masks: their connected components, and masks grown by a ball."""

from __future__ import annotations

import math
from typing import Literal

import cc3d
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def largest_component(mask: Mask, connectivity: Literal[6, 18, 26] = 26) -> Mask:
    """The largest connected component of ``mask [I, J, K]``; of equally large ones the first in memory.
    Nothing stays nothing."""
    components, sizes = _components(mask, connectivity)
    largest: Mask = components == int(np.argmax(sizes)) if sizes.any() else np.zeros_like(mask)
    return largest


def without_islands(mask: Mask, below: float) -> Mask:
    """``mask [I, J, K]`` without its connected components (26 neighbours) of fewer than ``below`` times the
    voxels of the largest."""
    components, sizes = _components(mask, 26)
    kept: Mask = ((sizes >= below * sizes.max()) & (sizes > 0))[components]
    return kept


def components(mask: Mask) -> npt.NDArray[np.unsignedinteger]:
    """Every voxel's connected component (26 neighbours), from 1; 0 for those that are not set."""
    return _components(mask, 26)[0]


def _components(
    mask: Mask, connectivity: Literal[6, 18, 26]
) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int64]]:
    """Every voxel's component, from 1, and their numbers of voxels; what is not set is none."""
    components = cc3d.connected_components(mask, connectivity=connectivity)
    sizes = cc3d.statistics(components)["voxel_counts"].astype(np.int64)
    sizes[0] = 0
    return components, sizes


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
