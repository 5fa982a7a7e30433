"""Voxels on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import Array, namespace
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import class_counts


def _reorient(data: Array, orientation: Orientation) -> Array:
    """Permute and flip the last three axes; of a numpy array it is a view."""
    lead = data.ndim - 3
    axes = [*range(lead), *(lead + a for a in orientation.order)]
    flips = [lead + a for a in range(3) if orientation.flip[a]]
    xp = namespace(data)
    turned = xp.permute_dims(data, tuple(axes))
    return xp.flip(turned, axis=tuple(flips)) if flips else turned


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities ``[C, I, J, K]`` on a grid: a numpy array, or a torch tensor during prediction on a GPU."""

    data: Array
    grid: Grid

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or tuple(self.data.shape[1:]) != self.grid.shape:
            raise GeometryError(
                f"volume of shape {tuple(self.data.shape)} on a grid of shape {self.grid.shape}"
            )

    @property
    def channels(self) -> int:
        return int(self.data.shape[0])

    def reoriented(self, orientation: Orientation) -> Volume:
        """The same voxels with permuted and reversed axes."""
        return Volume(_reorient(self.data, orientation), orientation.grid(self.grid))

    def crop(self, box: Box) -> Volume:
        """The part inside a box of voxel indices, with all channels."""
        return Volume(self.data[(slice(None), *box.slices)], self.grid.crop(box))


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Class indices ``[I, J, K]`` (uint8, 0 = background) on a grid, with the schema that names them.

    Class indices are not file values, which ``schema.decode`` returns. They are never interpolated linearly.
    """

    data: npt.NDArray[np.uint8]
    grid: Grid
    schema: LabelSchema

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or tuple(self.data.shape) != self.grid.shape:
            raise GeometryError(
                f"label map of shape {tuple(self.data.shape)} on a grid of shape {self.grid.shape}"
            )
        if self.data.dtype != np.uint8:
            raise GeometryError(f"label maps hold uint8 class indices, got {self.data.dtype}")

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the labels that have voxels, in class order."""
        counts = class_counts(self.data)[1 : self.schema.classes]
        return tuple(name for name, count in zip(self.schema.names, counts, strict=True) if count)

    def reoriented(self, orientation: Orientation) -> LabelMap:
        """The same voxels with permuted and reversed axes."""
        return LabelMap(_reorient(self.data, orientation), orientation.grid(self.grid), self.schema)

    def crop(self, box: Box) -> LabelMap:
        """The part inside a box of voxel indices."""
        return LabelMap(self.data[box.slices], self.grid.crop(box), self.schema)
