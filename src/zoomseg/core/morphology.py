"""Connected components, and erosion and dilation of masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Vector3

ROUNDING = 1e-5
"""Relative tolerance of squared distances that are not whole numbers."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Components:
    """The connected components of a mask ``[I, J, K]``. Component ``n`` (from 0) has ``voxels[n]`` voxels,
    and ``low[n]`` to ``high[n]`` (``[3]``, the latter excluded) is the smallest box around it."""

    numbered: npt.NDArray[np.unsignedinteger]
    """``[I, J, K]``: component of every voxel, plus one; 0 for voxels that are not set."""
    voxels: npt.NDArray[np.int64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]

    @classmethod
    def of(cls, mask: Mask, connectivity: Literal[6, 18, 26] = 26) -> Components:
        numbered = cc3d.connected_components(mask, connectivity=connectivity)
        found = cc3d.statistics(numbered, no_slice_conversion=True)
        boxes = found["bounding_boxes"][1:].astype(np.int64)
        return cls(numbered, found["voxel_counts"][1:].astype(np.int64), boxes[:, ::2], boxes[:, 1::2] + 1)

    def those(self, chosen: npt.NDArray[np.bool_]) -> Mask:
        """The voxels of these components."""
        kept = np.concatenate([[False], chosen])
        mask: Mask = np.empty_like(self.numbered, dtype=np.bool_)
        order = np.argsort(mask.strides)[::-1]
        planes = zip(mask.transpose(order), self.numbered.transpose(order), strict=True)
        for plane, numbers in planes:  # as indices, those of all voxels would take 8 bytes each
            plane[...] = kept[numbers]
        return mask


def largest_component(mask: Mask, connectivity: Literal[6, 18, 26] = 26) -> Mask:
    """The largest connected component of ``mask [I, J, K]``; of equally large ones the first in memory. An
    empty mask remains empty."""
    found = Components.of(mask, connectivity)
    if not len(found.voxels):
        return np.zeros_like(mask)
    largest: Mask = found.numbered == 1 + int(np.argmax(found.voxels))
    return largest


def without_islands(mask: Mask, below: float) -> Mask:
    """``mask [I, J, K]`` without its connected components (26 neighbours) of fewer than ``below`` times the
    voxels of the largest."""
    found = Components.of(mask)
    return found.those(found.voxels >= below * found.voxels.max(initial=0))


def filled(mask: Mask) -> Mask:
    """``mask [I, J, K]`` with holes filled: voxels that are not connected to its border over faces."""
    return ~reaching_border(~mask)


def filled_by_slice(mask: Mask) -> Mask:
    """``mask [I, J, K]`` with holes filled in each slice across K: voxels that are not connected to the
    slice's border over faces."""
    return np.stack([~reaching_border(~mask[:, :, k]) for k in range(mask.shape[2])], axis=2)


def eroded_by_cube(mask: Mask, steps: int) -> Mask:
    """``mask [I, J, K]`` eroded ``steps`` times by a cube of 3 voxels; nothing is set beyond its ends."""
    return ~dilated_by_cube(~np.pad(mask, 1), steps)[1:-1, 1:-1, 1:-1]


def dilated_by_cube(mask: Mask, steps: int) -> Mask:
    """``mask [I, J, K]`` dilated ``steps`` times by a cube of 3 voxels: axis by axis."""
    grown = mask.copy()
    for axis in range(3):
        for _ in range(steps):
            line = np.moveaxis(grown, axis, 0)
            before = line.copy()
            line[1:] |= before[:-1]
            line[:-1] |= before[1:]
    return grown


def reaching_border(mask: Mask) -> Mask:
    """The parts of ``mask [I, J]`` or ``[I, J, K]`` that are connected to its border over faces."""
    padded = np.pad(mask, 1, constant_values=True)  # The border joins all of them.
    parts = cc3d.connected_components(padded, connectivity=4 if mask.ndim == 2 else 6)
    outer: Mask = parts[(slice(1, -1),) * mask.ndim] == parts.flat[0]
    return outer


def dilated(mask: Mask, radius_vox: float | Vector3) -> Mask:
    """``mask [I, J, K]`` dilated by a ball, or an ellipsoid of these semi-axes: by squared distance (exact
    for a ball), axis by axis, so that the cost grows with the radius and not with its cube."""
    radii = np.broadcast_to(np.asarray(radius_vox, dtype=np.float64), 3).tolist()
    longest = max(radii)
    if set(radii) <= {0, longest}:  # a ball that holds every mask of this size is large enough
        longest = min(longest, math.hypot(*mask.shape))
        radii = [min(radius, longest) for radius in radii]
    # Along shorter semi-axes, squared distances count more.
    weights = [1 if r in (0, longest) else (longest / r) ** 2 for r in radii]
    far = 4 * math.floor(longest + 1) ** 2
    whole = set(weights) == {1}
    kind = np.float32 if not whole else np.int16 if far < 2**14 else np.int32
    squared: npt.NDArray[np.number] = np.where(mask, kind(0), kind(far))
    # Three arrays for all steps: allocating new ones would cost more than the arithmetic.
    nearest, shifted = np.empty_like(squared), np.empty_like(squared)
    for axis, size in enumerate(mask.shape):
        given, best, farther = (np.moveaxis(array, axis, 0) for array in (squared, nearest, shifted))
        best[...] = given
        for step in range(1, min(math.floor(radii[axis]), size - 1) + 1):
            np.add(given, weights[axis] * step**2, out=farther)
            np.minimum(best[:-step], farther[step:], out=best[:-step])
            np.minimum(best[step:], farther[:-step], out=best[step:])
        squared, nearest = nearest, squared
    near: Mask = squared <= longest**2 * (1 if whole else 1 + ROUNDING)
    return near
