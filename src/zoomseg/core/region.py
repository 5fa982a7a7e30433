"""The region of a stage: a box of a grid, optionally with a mask inside the box."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.resample import centres_inside, nearest_index

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Region:
    """``box`` of ``grid``; ``mask`` (bool, the box's shape) marks the voxels that belong to the region.

    The region places tiles *and* masks the loss. ``mask`` None means the whole box.
    """

    grid: Grid
    box: Box
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if self.box.empty or self.box.intersect(self.grid.box) != self.box:
            raise GeometryError(f"region {self.box} is empty or not inside a grid of shape {self.grid.shape}")
        if self.mask is not None and (
            tuple(self.mask.shape) != self.box.shape or self.mask.dtype != np.bool_
        ):
            raise GeometryError(
                f"region mask must be bool of shape {self.box.shape}, "
                f"got {self.mask.dtype} of shape {tuple(self.mask.shape)}"
            )

    @classmethod
    def whole(cls, grid: Grid) -> Region:
        return cls(grid, grid.box)

    @classmethod
    def of_mask(cls, grid: Grid, mask: Mask) -> Region | None:
        """The region of a full-size mask ``[I, J, K]``, cropped to its box; None if nothing is set."""
        box = bounding_box(mask)
        return None if box is None else cls(grid, box, np.ascontiguousarray(mask[box.slices]))

    @property
    def voxels(self) -> int:
        return self.box.voxels if self.mask is None else int(self.mask.sum())

    def mask_in(self, box: Box) -> Mask:
        """The region as a bool array of ``box``'s shape (False outside the region)."""
        out = np.zeros(box.shape, dtype=np.bool_)
        common = self.box.intersect(box)
        if common.empty:
            return out
        inside = common.relative_to(box.start).slices
        out[inside] = True if self.mask is None else self.mask[common.relative_to(self.box.start).slices]
        return out

    def box_on(self, grid: Grid) -> Box:
        """The box of another sampling of the same scan that contains the region there: for a mask, one that
        covers the mask's box; otherwise exactly the voxels whose centre lies in the box, but at least one
        along each axis. Empty if the region does not overlap the grid."""
        box = grid.box_of(self.grid, self.box).intersect(grid.box)
        if self.mask is not None or box.empty:
            return box
        inside = centres_inside(self.grid.crop(self.box), grid.crop(box))
        return inside.shift(box.start)

    def on(self, grid: Grid) -> Region:
        """This region on another sampling of the same scan: a voxel belongs if its centre falls on a voxel
        that belongs."""
        box = self.box_on(grid)
        if box.empty:
            raise GeometryError("the region does not overlap the requested grid")
        if self.mask is None:
            return Region(grid, box)
        padded = self.grid.crop(self.box)
        return Region(grid, box, nearest_index(self.mask, padded, grid.crop(box), outside=0))


def bounding_box(mask: Mask) -> Box | None:
    """The smallest box that contains every set voxel of ``mask [I, J, K]``; None if there is none."""
    start, stop = [0, 0, 0], [0, 0, 0]
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if hit.size == 0:
            return None
        start[axis], stop[axis] = int(hit[0]), int(hit[-1]) + 1
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def class_boxes(classes: npt.NDArray[np.uint8], wanted: Iterable[int]) -> dict[int, Box]:
    """The smallest box of each of these classes that is present. Works plane by plane within the processor's
    cache: for a dozen classes it takes a sixth of the time of ``scipy.ndimage.find_objects``."""
    as_they_lie = _as_they_lie(classes)
    planes = classes.transpose(as_they_lie)
    hits = {c: [np.zeros(n, dtype=np.bool_) for n in planes.shape] for c in wanted}
    for first, plane in enumerate(planes):
        rows = np.flatnonzero(plane.any(axis=1))
        if rows.size == 0:
            continue
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        for c, (hit_first, hit_row, hit_column) in hits.items():
            own = plane[part] == c
            along = own.any(axis=1)
            if along.any():
                hit_first[first] = True
                hit_row[part] |= along
                hit_column |= own.any(axis=0)
    back = np.argsort(as_they_lie)
    return {c: _spanned([hit[axis] for axis in back]) for c, hit in hits.items() if hit[0].any()}


def class_counts(classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Voxels ``[256]`` of each class of ``[I, J, K]``. Works plane by plane, in a tenth of the time of
    ``np.unique`` and without a copy."""
    counts = np.zeros(256, dtype=np.int64)
    for plane in classes.transpose(_as_they_lie(classes)):
        counts += np.bincount(plane.ravel(), minlength=256)
    return counts


def overlap_counts(
    one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8], classes: int
) -> npt.NDArray[np.int64]:
    """Voxels ``[3, classes - 1]`` of each class but background in ``one``, in ``other`` ``[I, J, K]``, and in
    both at the same place."""
    both = np.where(one == other, one, np.uint8(0))
    return np.stack([class_counts(part)[1:classes] for part in (one, other, both)])


def _as_they_lie(classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Axes, from the largest stride to the smallest."""
    return np.argsort(classes.strides)[::-1]


def _spanned(hits: list[npt.NDArray[np.bool_]]) -> Box:
    """The box from the first to the last true index along each axis."""
    (i, j, k) = (np.flatnonzero(hit) for hit in hits)
    return Box((int(i[0]), int(j[0]), int(k[0])), (int(i[-1]) + 1, int(j[-1]) + 1, int(k[-1]) + 1))
