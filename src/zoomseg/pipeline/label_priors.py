"""Label maps of an earlier stage as input of a network, as nnU-Net's cascades read them: every label, and the
background, is interpolated by itself, and the highest value wins (``resize_segmentation`` of batchgenerators
0.25.5; earlier versions assigned labels that cover half of a voxel).

Where an edge runs through the middle of a voxel, rounding decides. It is that of ``scipy.ndimage.zoom`` on an
array whose first axis is the last one here, as everything is computed in the same order: otherwise, of a scan
of 256 columns on a grid of 224, every seventh column would differ along edges.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import AnyNumpy
from zoomseg.core.geometry import Box, FloatArray, Grid, Index3
from zoomseg.core.region import class_boxes
from zoomseg.core.resample import AxisInterpolation, AxisInterpolations, Axiswise, axiswise
from zoomseg.core.volume import LabelMap

Numbers = npt.NDArray[np.uint8]
Part = tuple[slice, slice, slice]

SAME_EXTENT = 1e-4
"""Largest difference, in voxels, between the ends of two grids of the same extent."""
PIECE_VOXELS = 2_000_000
"""Voxels computed at once: each needs a few numbers of 8 bytes."""


def numbers_on(
    labels: LabelMap, names: Sequence[str], grid: Grid, box: Box, kernels: AxisInterpolations
) -> Numbers:
    """``[*box.shape]`` of ``grid``: 1 + the index in ``names`` of the label with the largest share of a
    voxel, or 0. If two have the same, the nearest voxel's label is used or, if it is another one, that of the
    lower value.

    Args:
        box: may extend beyond the grid, where edge voxels are repeated.
        kernels: by axis of ``grid``: linear or nearest.
    """
    axes = axiswise(grid.to_index_of(labels.grid), grid.shape)
    assert axes is not None  # a stage's grid has the axes of the scan
    ordered = sorted(labels.schema.names, key=labels.schema.value_of.__getitem__)
    ranks, numbers = np.zeros(256, dtype=np.uint8), np.zeros(256, dtype=np.uint8)
    for rank, name in enumerate(ordered, start=1):
        ranks[labels.schema.class_of(name)] = rank
        numbers[rank] = 1 + names.index(name) if name in names else 0
    data = ranks[labels.data].transpose(axes.order)
    boxes = class_boxes(data, range(1, 1 + len(ordered)))
    found = np.zeros(box.shape, dtype=np.uint8)
    if boxes:
        taps = [
            _taps(kernels[a], _positions(axes, a, data.shape[a], grid.shape[a], box), data.shape[a])
            for a in range(3)
        ]
        for part in _pieces(_reading(taps, functools.reduce(Box.union, boxes.values()))):
            own = [along.part(rows) for along, rows in zip(taps, part, strict=True)]
            found[part] = numbers[_winners(data, boxes, own)]
    return found


def one_hot(numbers: Numbers, count: int) -> AnyNumpy:
    """``[count, I, J, K]`` float32."""
    wanted = np.arange(1, 1 + count).reshape(-1, 1, 1, 1)
    out: AnyNumpy = (numbers == wanted).astype(np.float32)
    return out


@dataclass(frozen=True, eq=False)
class _Taps:
    """Of positions along an axis: the two voxels of the source that each lies between, their weights, and the
    nearest voxel."""

    voxels: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    weights: tuple[FloatArray, FloatArray]
    nearest: npt.NDArray[np.int64]

    def reading(self, start: int, stop: int) -> slice:
        """The positions that read any of these voxels."""
        rows = np.flatnonzero((self.voxels[1] >= start) & (self.voxels[0] < stop))
        return slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0)

    def part(self, rows: slice) -> _Taps:
        (lower, upper), (lower_weight, upper_weight) = self.voxels, self.weights
        return _Taps((lower[rows], upper[rows]), (lower_weight[rows], upper_weight[rows]), self.nearest[rows])


def _positions(axes: Axiswise, axis: int, size_in: int, size_out: int, box: Box) -> FloatArray:
    """Of the box's voxels along an axis, in voxels of the source, of which the edge ones are repeated."""
    n: FloatArray = np.arange(box.start[axis], box.stop[axis], dtype=np.float64)
    scale, offset, ratio = axes.scale[axis], axes.offset[axis], size_in / size_out
    if abs(scale - ratio) * size_out < SAME_EXTENT and abs(offset - (ratio - 1) / 2) < SAME_EXTENT:
        return (n + 0.5) * ratio - 0.5
    return scale * n + offset


def _taps(kernel: AxisInterpolation, positions: FloatArray, size: int) -> _Taps:
    nearest = np.floor(positions + 0.5)
    lower = nearest if kernel == "nearest" else np.floor(positions)
    weight = np.ones(len(lower)) if kernel == "nearest" else 1.0 - (positions - lower)
    first, second, closest = (at.astype(np.int64).clip(0, size - 1) for at in (lower, lower + 1, nearest))
    return _Taps((first, second), (weight, 1.0 - weight), closest)


def _reading(taps: Sequence[_Taps], box: Box) -> Part:
    """The positions that read any of these voxels of the source."""
    i, j, k = (along.reading(*ends) for along, *ends in zip(taps, box.start, box.stop, strict=True))
    return i, j, k


def _pieces(part: Part) -> Iterator[Part]:
    """The part in pieces along its first axis."""
    first, *others = part
    if any(rows.stop == rows.start for rows in part):
        return
    each = max(1, PIECE_VOXELS // math.prod(rows.stop - rows.start for rows in others))
    for start in range(first.start, first.stop, each):
        yield slice(start, min(start + each, first.stop)), part[1], part[2]


def _winners(data: Numbers, boxes: Mapping[int, Box], taps: Sequence[_Taps]) -> Numbers:
    """The rank with the highest share: 0, the background's, or one of those with a box, which contains all of
    it."""
    nearest = data[np.ix_(*(along.nearest for along in taps))]
    read = Box(*zip(*((int(a.voxels[0].min()), int(a.voxels[1].max()) + 1) for a in taps), strict=True))
    best = _shares(data[read.slices] == 0, read.start, taps)
    won = np.zeros(best.shape, dtype=np.uint8)
    of_nearest = np.where(nearest == 0, best, 0.0)
    for rank, box in sorted(boxes.items()):
        inside = box.intersect(read)
        if inside.empty:
            continue
        part = _reading(taps, inside)
        share = _shares(
            data[inside.slices] == rank,
            inside.start,
            [a.part(rows) for a, rows in zip(taps, part, strict=True)],
        )
        np.copyto(of_nearest[part], share, where=nearest[part] == rank)
        won[part][share > best[part]] = rank
        np.maximum(best[part], share, out=best[part])
    return np.where(of_nearest == best, nearest, won)


def _shares(inside: npt.NDArray[np.bool_], start: Index3, taps: Sequence[_Taps]) -> FloatArray:
    """The share of these voxels, which begin at ``start`` of the source, at every position."""
    share = np.zeros(tuple(len(along.nearest) for along in taps))
    sides = [(0, 1) if along.weights[1].any() else (0,) for along in taps]
    for corner in itertools.product(*reversed(sides)):  # of the last axis, the second, and the first
        weights: FloatArray | float = 1.0
        picked = inside
        for a in (2, 1, 0):
            side = corner[2 - a]
            voxels = taps[a].voxels[side] - start[a]
            there = (voxels >= 0) & (voxels < inside.shape[a])
            weight = np.where(there, taps[a].weights[side], 0.0)
            picked = picked.take(voxels.clip(0, inside.shape[a] - 1), axis=a)
            weights = weights * weight.reshape([-1 if axis == a else 1 for axis in range(3)])
        share += picked * weights
    return share
