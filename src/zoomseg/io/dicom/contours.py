"""Outlines of a mask in a slice, and the mask of an outline.

Outlines run half-way between the centres of voxels inside and outside (marching squares), so that filling
them gives back the mask voxel by voxel, whatever rule a program has for voxels on an edge: none is. Their
area is that of the voxels less half a voxel per outline.

A hole is cut out by a keyhole: one polygon runs along the outer edge, crosses to the hole, runs around it and
returns on the same way. Most systems fill such polygons right, while of separate contours for holes some make
islands. The way never passes through a voxel's centre.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
from contourpy import FillType, contour_generator

from zoomseg.core.geometry import FloatArray

Mask = npt.NDArray[np.bool_]

KEYHOLE_OFFSET = 0.25
"""Voxels by which the way to a hole misses the centres of voxels; no horizontal edge lies there either."""

_Filled = tuple[list[FloatArray], list[npt.NDArray[np.uint32]]]
"""What contourpy returns for ``FillType.OuterOffset``: points of each polygon, and where its rings start."""

_EDGES_AT_ONCE = 4096
"""Edges that are filled at once, so that contours of any number of points take bounded memory."""


def outlines(mask: Mask) -> Iterator[FloatArray]:
    """Polygons ``[N, 2]`` of indices (i, j) around a mask ``[I, J]``, one per connected part; the last point
    is joined to the first."""
    where = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    if not where[0].size:
        return
    low = [int(w[0]) for w in where]
    part = mask[low[0] : int(where[0][-1]) + 1, low[1] : int(where[1][-1]) + 1]
    padded = np.pad(part, 1).astype(np.float64)
    generator = contour_generator(z=padded.T, fill_type=FillType.OuterOffset)  # z is [y, x]
    points, offsets = cast("_Filled", generator.filled(0.5, 2.0))
    for polygon, starts in zip(points, offsets, strict=True):
        rings = [_corners(polygon[a : b - 1]) for a, b in itertools.pairwise(starts)]
        yield _keyholed(rings[0], rings[1:]) + (np.array(low) - 1)


def _corners(ring: FloatArray) -> FloatArray:
    """A ring without the points that lie on a straight line between their neighbours (exact: coordinates are
    halves)."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corners: FloatArray = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return corners


def _keyholed(outer: FloatArray, holes: Iterable[FloatArray]) -> FloatArray:
    """One polygon for a ring and its holes. From the rightmost hole on, each is joined to what lies right of
    it: that is finished by then."""
    for hole in sorted(holes, key=lambda ring: float(ring[:, 0].max()), reverse=True):
        rightmost = hole[np.argmax(hole[:, 0])]  # half-way between two columns, so on a row
        at = float(rightmost[1]) + KEYHOLE_OFFSET
        leave, exits = _crossings(hole, at)
        last = int(np.argmax(exits))
        enter, entries = _crossings(outer, at)
        beyond = np.where(entries > exits[last], entries, np.inf)
        first = int(np.argmin(beyond))
        door, gate = np.array([[beyond[first], at]]), np.array([[exits[last], at]])
        after = int(leave[last]) + 1
        around = np.concatenate([gate, hole[after:], hole[:after], gate])
        edge = int(enter[first]) + 1
        outer = np.concatenate([outer[:edge], door, around, door, outer[edge:]])
    return outer


def _crossings(ring: FloatArray, at: float) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """Where a ring's edges cross the line j = ``at``: the edges' first points, and i."""
    following = np.roll(ring, -1, axis=0)
    edges = np.flatnonzero((ring[:, 1] < at) != (following[:, 1] < at))
    a, b = ring[edges], following[edges]
    return edges, a[:, 0] + (at - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])


def filled(polygons: Iterable[FloatArray], shape: tuple[int, int]) -> Mask:
    """The mask ``[I, J]`` of voxels whose centre lies in an odd number of polygons ``[N, 2]`` (indices, which
    may lie beyond the mask): a polygon within another is a hole."""
    changes = np.zeros((shape[0] + 1, shape[1]), dtype=np.uint8)
    for polygon in polygons:
        following = np.roll(polygon, -1, axis=0)
        for first in range(0, len(polygon), _EDGES_AT_ONCE):
            these = slice(first, first + _EDGES_AT_ONCE)
            _toggle(changes, polygon[these], following[these])
    inside: Mask = (np.cumsum(changes[:-1], axis=0, dtype=np.uint8) & 1).astype(bool)
    return inside


def _toggle(changes: npt.NDArray[np.uint8], a: FloatArray, b: FloatArray) -> None:
    """Inside and outside change from where an edge crosses row j on; its upper end does not count."""
    length, rows = changes.shape[0] - 1, changes.shape[1]
    low = np.clip(np.ceil(np.minimum(a[:, 1], b[:, 1])), 0, rows).astype(np.intp)
    high = np.clip(np.ceil(np.maximum(a[:, 1], b[:, 1])), 0, rows).astype(np.intp)
    counts = high - low
    edge = np.repeat(np.arange(len(a)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + low[edge]
    slope = (b[edge, 0] - a[edge, 0]) / (b[edge, 1] - a[edge, 1])
    crossing = a[edge, 0] + (row - a[edge, 1]) * slope
    np.add.at(changes, (np.clip(np.ceil(crossing), 0, length).astype(np.intp), row), 1)
