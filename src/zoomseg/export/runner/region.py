"""Regions and answers: where a stage looks, and what it says, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid
from zoomseg.export.runner import resample
from zoomseg.export.runner.resample import FloatArray

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Region:
    """``box`` of ``grid``; ``mask`` (the box's shape) says which of its voxels belong, None = all."""

    grid: Grid
    box: Box
    mask: Mask | None = None

    @classmethod
    def whole(cls, grid: Grid) -> Region:
        return cls(grid, grid.box)

    def mask_in(self, box: Box) -> Mask:
        """The region as a mask of ``box``'s shape (False outside the region)."""
        out = np.zeros(box.shape, dtype=bool)
        common = self.box.intersect(box)
        if not common.empty:
            inside = common.relative_to(box.start).slices
            out[inside] = True if self.mask is None else self.mask[common.relative_to(self.box.start).slices]
        return out

    def on(self, grid: Grid) -> Region:
        """This region on another sampling of the same scan: a voxel belongs if its centre falls on a voxel
        that belongs. The box covers the old one, so nothing is cut."""
        box = grid.box_of(self.grid, self.box).intersect(grid.box)
        if box.empty:
            raise GeometryError("the region does not meet the grid it is asked for on")
        if self.mask is None:
            return Region(grid, box)
        return Region(grid, box, resample.nearest(self.mask, self.grid.crop(self.box), grid.crop(box), False))


@dataclass(frozen=True, eq=False)
class Answer:
    """A finished stage's probabilities ``[1 + len(labels), I, J, K]`` (channel 0 = background) on ``grid``,
    and the region that it answered for. Outside ``grid`` the answer is background."""

    probabilities: FloatArray
    grid: Grid
    labels: tuple[str, ...]
    region: Region

    @property
    def answered(self) -> Mask:
        """The voxels of ``grid`` that belong to the region."""
        return self.region.on(self.grid).mask_in(self.grid.box)

    def channels(self, labels: tuple[str, ...]) -> list[int]:
        return [1 + self.labels.index(name) for name in labels]


def bounding_box(mask: Mask) -> Box | None:
    """The smallest box that holds every set voxel; None if there is none."""
    start, stop = [0, 0, 0], [0, 0, 0]
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if hit.size == 0:
            return None
        start[axis], stop[axis] = int(hit[0]), int(hit[-1]) + 1
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
