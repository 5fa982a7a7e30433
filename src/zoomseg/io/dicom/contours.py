"""Outlines of a mask in a slice, and masks of outlines.

Outlines run half-way between the centres of voxels inside and outside (marching squares), so that filling
them recovers the mask voxel by voxel, independent of a program's rule for voxels on an edge: there are none.
Their area is that of the voxels less half a voxel per outline.

A hole is connected by a keyhole: one polygon runs along the outer edge, crosses to the hole, runs around it
and returns the same way. Most systems fill such polygons correctly, while some make islands of separate
contours for holes. The connection never passes through a voxel's centre.

Contours drawn by other programs are combined by two rules (see ``xor_mask`` and ``fill_contours``): the
standard has one for those marked as CLOSEDPLANAR_XOR, and none for separate CLOSED_PLANAR ones.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
from contourpy import FillType, contour_generator

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import FloatArray

Mask = npt.NDArray[np.bool_]

KEYHOLE_OFFSET = 0.25
"""Distance in voxels between the connection to a hole and the centres of voxels; no horizontal edge lies
there either."""

_Filled = tuple[list[FloatArray], list[npt.NDArray[np.uint32]]]
"""Result of contourpy for ``FillType.OuterOffset``: points of each polygon, and where its rings start."""

_EDGES_AT_ONCE = 4096
"""Number of edges filled at once, so that contours of any number of points need bounded memory."""


def outlines(mask: Mask) -> Iterator[FloatArray]:
    """Polygons ``[N, 2]`` of indices (i, j) around a mask ``[I, J]``, one per connected part; the last point
    is connected to the first."""
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
    """One polygon for a ring and its holes. Starting with the rightmost hole, each is connected to the part
    to its right, which is complete by then."""
    for hole in sorted(holes, key=lambda ring: float(ring[:, 0].max()), reverse=True):
        rightmost = hole[np.argmax(hole[:, 0])]  # half-way between two columns, and therefore on a row
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
    """Crossings of a ring's edges with the line j = ``at``: the edges' first points, and i."""
    following = np.roll(ring, -1, axis=0)
    edges = np.flatnonzero((ring[:, 1] < at) != (following[:, 1] < at))
    a, b = ring[edges], following[edges]
    return edges, a[:, 0] + (at - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])


# --- filling --------------------------------------------------------------------------------------

MAX_IN_SLICE = 1_000
"""Maximum number of contours of one structure in one slice, as each is compared with all others."""

MAX_CROSSINGS = 2**22
"""Maximum number of crossings of one contour with the rows of its slice, as they are held in memory."""

TOUCHING_VOX = 0.02
"""Distance along a row of voxels below which a contour touches the one around it."""


@dataclass(frozen=True, eq=False)
class FilledContours:
    """The mask ``[I, J]`` of the contours in a slice; the number of repeated contours, and whether some
    overlapped or touched."""

    mask: Mask
    copies: int
    overlapping: bool


def xor_mask(polygons: Iterable[FloatArray], shape: tuple[int, int]) -> Mask:
    """The mask ``[I, J]`` of voxels whose centre lies in an odd number of polygons ``[N, 2]`` (indices,
    which may lie beyond the mask): CLOSEDPLANAR_XOR (PS3.3 C.8.8.6.3), and keyholes, whose connections
    cancel out."""
    mask = np.zeros(shape, dtype=bool)
    for polygon in polygons:
        contour = _Contour.of(polygon, shape)
        mask[contour.where] ^= contour.mask
    return mask


def fill_contours(polygons: Sequence[FloatArray], shape: tuple[int, int]) -> FilledContours:
    """The mask ``[I, J]`` of voxels that CLOSED_PLANAR contours surround, polygons ``[N, 2]`` of indices that
    may lie beyond the mask.

    The standard (PS3.3 C.8.8.6.3) has keyholes for holes, and does not define several contours in a slice.
    They nevertheless occur as rings, stored twice, and in overlapping parts. Therefore contours that surround
    the same voxels count once; one that lies completely in another without touching it is a hole, one in that
    an island, and so on; all others are added.
    """
    contours = [c for c in (_Contour.of(polygon, shape) for polygon in polygons) if c.mask.any()]
    kept = _without_copies(contours)
    around: list[list[int]] = [[] for _ in kept]
    overlapping = False
    for inner, outer in _near(kept):
        if kept[inner].lies_in(kept[outer]):
            around[inner].append(outer)
        elif not kept[outer].lies_in(kept[inner]):
            overlapping = overlapping or kept[inner].shares_voxels(kept[outer])
    return FilledContours(_nested(kept, around, shape), len(contours) - len(kept), overlapping)


def _nested(contours: Sequence[_Contour], around: Sequence[Sequence[int]], shape: tuple[int, int]) -> Mask:
    """The union of contours at even depths, each without the holes in it."""
    depth = [0] * len(contours)
    for one in sorted(range(len(contours)), key=lambda one: len(around[one])):
        depth[one] = 1 + max((depth[outer] for outer in around[one]), default=-1)
    holes: dict[int, list[_Contour]] = defaultdict(list)
    for one, outside in enumerate(around):
        for outer in (o for o in outside if depth[one] == depth[o] + 1):
            holes[outer].append(contours[one])
    found = np.zeros(shape, dtype=bool)
    for one in (n for n in range(len(contours)) if depth[n] % 2 == 0):
        solid = np.zeros(shape, dtype=bool)
        solid[contours[one].where] = contours[one].mask
        for hole in holes[one]:
            solid[hole.where] &= ~hole.mask
        found |= solid
    return found


def _without_copies(contours: Iterable[_Contour]) -> list[_Contour]:
    kept: dict[tuple[object, ...], _Contour] = {}
    for contour in contours:
        voxels = hashlib.sha256(np.packbits(contour.mask).tobytes()).digest()
        kept.setdefault((contour.low, contour.mask.shape, voxels), contour)
    return list(kept.values())


def _near(contours: Sequence[_Contour]) -> Iterator[tuple[int, int]]:
    """Pairs, in both orders, of which one might lie in or overlap the other."""
    low = np.array([c.low for c in contours]).reshape(-1, 2)
    high = low + np.array([c.mask.shape for c in contours]).reshape(-1, 2)
    for one in range(len(contours)):
        meet = ((low < high[one]) & (low[one] < high)).all(axis=1)
        yield from ((one, other) for other in np.flatnonzero(meet).tolist() if other != one)


@dataclass(frozen=True, eq=False)
class _Contour:
    """A closed polygon as its crossings with the rows of a slice: ``i`` of each, sorted within its row ``j``.
    Its inside lies between each odd crossing and the next."""

    i: FloatArray
    j: npt.NDArray[np.intp]
    length: int
    """Length of a row, in voxels."""

    @classmethod
    def of(cls, polygon: FloatArray, shape: tuple[int, int]) -> _Contour:
        """
        Raises:
            ScanError: it crosses the rows more often than anything drawn does.
        """
        following = np.roll(polygon, -1, axis=0)
        parts, count = [], 0
        for first in range(0, len(polygon), _EDGES_AT_ONCE):
            these = slice(first, first + _EDGES_AT_ONCE)
            parts.append(_row_crossings(polygon[these], following[these], shape[1]))
            count += len(parts[-1][0])
            if count > MAX_CROSSINGS:
                raise ScanError(f"a contour crosses the rows of its slice over {MAX_CROSSINGS} times")
        i, j = (np.concatenate(found) for found in zip(*parts, strict=True))
        order = np.lexsort((i, j))
        return cls(i[order], j[order], shape[0])

    @cached_property
    def _voxels(self) -> npt.NDArray[np.intp]:
        """The first voxel beyond each crossing."""
        return np.clip(np.ceil(self.i), 0, self.length).astype(np.intp)

    @cached_property
    def low(self) -> tuple[int, int]:
        """The first voxel of ``mask``."""
        return (int(self._voxels.min()), int(self.j[0])) if self.i.size else (0, 0)

    @cached_property
    def mask(self) -> Mask:
        """Voxels whose centres lie inside, in the part of the slice that contains them."""
        if not self.i.size:
            return np.zeros((0, 0), dtype=bool)
        at, row = self._voxels - self.low[0], self.j - self.low[1]
        changes = np.zeros((int(at.max()) + 1, int(row[-1]) + 1), dtype=np.uint8)
        np.add.at(changes, (at, row), 1)
        inside: Mask = (np.cumsum(changes[:-1], axis=0, dtype=np.uint8) & 1).astype(bool)
        return inside

    @cached_property
    def where(self) -> tuple[slice, slice]:
        (i, j), (n, m) = self.low, self.mask.shape
        return slice(i, i + n), slice(j, j + m)

    def lies_in(self, other: _Contour) -> bool:
        """Whether each of its intervals lies within one of the other's, without touching either end."""
        before = np.tile((-TOUCHING_VOX, TOUCHING_VOX), len(self.i) // 2)
        left, right = other.crossings_before(self.i + before, self.j).reshape(-1, 2).T
        return bool((left == right).all() and (left % 2 == 1).all())

    def crossings_before(self, i: FloatArray, j: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The number of crossings before each position in its row."""
        starts = np.searchsorted(self.j, j)
        # Complex numbers are sorted by real part, then by imaginary part: by row, then along it.
        return np.searchsorted(self.j + 1j * self.i, j + 1j * i) - starts

    def shares_voxels(self, other: _Contour) -> bool:
        low = np.maximum(self.low, other.low)
        high = np.minimum(np.add(self.low, self.mask.shape), np.add(other.low, other.mask.shape))
        mine, its = (
            c.mask[tuple(slice(a, b) for a, b in zip(low - c.low, high - c.low, strict=True))]
            for c in (self, other)
        )
        return bool((mine & its).any())


def _row_crossings(a: FloatArray, b: FloatArray, rows: int) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Crossings of edges from ``a`` to ``b`` with the rows: i, and row j; an edge's upper end does not
    count."""
    low = np.clip(np.ceil(np.minimum(a[:, 1], b[:, 1])), 0, rows).astype(np.intp)
    high = np.clip(np.ceil(np.maximum(a[:, 1], b[:, 1])), 0, rows).astype(np.intp)
    counts = high - low
    edge = np.repeat(np.arange(len(a)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + low[edge]
    slope = (b[edge, 0] - a[edge, 0]) / (b[edge, 1] - a[edge, 1])
    return a[edge, 0] + (row - a[edge, 1]) * slope, row
