"""Measures of a prediction's reliability, by organ, accumulated during prediction: no probabilities are kept.

The Dice that probabilities ``p`` imply for the voxels ``won`` by an organ is, if they are calibrated, ``2
sum(p over won) / (sum(p) + |won|)``: the expected overlap over the sizes.

Probabilities are numpy's or torch's; the accumulated values are numpy's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import Array, array_like, memory_order, namespace, to_numpy
from zoomseg.core.geometry import Box, Index3
from zoomseg.core.morphology import Mask
from zoomseg.core.region import Region
from zoomseg.core.tiling import normalised, overlapping
from zoomseg.pipeline.argmax import contenders

ROUNDING = 1e-3
"""Maximum deviation of the sum of probabilities from one."""

CACHED_VOXELS = 2**16
"""Number of voxels processed at once: the results of one pass over them are still in the processor's cache
for the next."""

OpenSides = tuple[tuple[bool, bool], tuple[bool, bool], tuple[bool, bool]]
"""The sides of a grid (low and high, by axis) beyond which the scan continues."""
Indices = npt.NDArray[np.int64]
"""Voxel indices ``[N, 3]``."""


@dataclass(frozen=True)
class Uncertainty:
    """Of one organ, on the stage's grid, among the voxels of the stage's region."""

    voxels: int
    """Number of voxels won."""
    volume_ml: float
    expected_dice: float
    """See the module; 0 to 1."""
    at_end: int
    """Number of voxels won at the end of the region, where the scan continues."""


class UncertaintyEstimator:
    """Accumulates the measures of a prediction, part by part."""

    def __init__(
        self, labels: tuple[str, ...], region: Region, open_sides: OpenSides, overlap: bool = False
    ) -> None:
        """``overlap``: labels overlap, so that logarithms are added, whose differences to background's are
        the log-odds of a label. Its probability is then that it remains, and the voxel is won, as in fusion,
        by the last label that is likelier than background."""
        self._labels = labels
        self._overlap = overlap
        self._region = region
        self._open = open_sides
        classes = 1 + len(labels)
        self._soft, self._sure = np.zeros(classes), np.zeros(classes)
        self._counts, self._ends = (np.zeros(classes, dtype=np.int64) for _ in range(2))
        self._at_end: list[npt.NDArray[np.int64]] = []

    def add(self, probabilities: Array, box: Box, logs: bool = False) -> None:
        """Add ``[C, *box.shape]`` of a box of the region's grid, or with ``logs`` their logarithms, up to a
        constant per voxel; parts must not overlap."""
        axis = memory_order(probabilities[0])[0]
        size = box.shape[axis]
        thick = max(1, CACHED_VOXELS * size // box.voxels)
        ahead = (slice(None),) * (1 + axis)
        for low in range(0, size, thick):
            high = min(low + thick, size)
            start, stop = list(box.start), list(box.stop)
            start[axis], stop[axis] = box.start[axis] + low, box.start[axis] + high
            part = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
            values = probabilities[(*ahead, slice(low, high))]
            if self._overlap:
                self._add(overlapping(values), part, values)
            else:
                self._add(normalised(values) if logs else values, part)

    def _add(self, probabilities: Array, box: Box, odds: Array | None = None) -> None:
        """``odds``: of overlapping labels, the logarithms that decide them."""
        asked = to_numpy(self._region.mask_in(box))
        if not asked.any():
            return
        # All in memory order: in another order, numpy and torch take several times as long.
        order = memory_order(probabilities[0])
        asked = np.ascontiguousarray(asked.transpose(order))
        xp, size, axes = namespace(probabilities), len(self._soft), (0, *(1 + a for a in order))
        probabilities = xp.permute_dims(probabilities, axes)
        best, winner = self._won(probabilities, asked)
        if odds is not None:
            best, winner = _last_likelier(probabilities, xp.permute_dims(odds, axes))
        inside = array_like(asked, winner) & (winner > 0)
        if not bool(xp.any(inside)):
            return
        won, sure = winner[inside], best[inside]
        # The array API has no bincount, but both libraries have the same.
        self._sure += to_numpy(xp.bincount(won, xp.astype(sure, xp.float64), size))
        self._counts += to_numpy(xp.bincount(won, minlength=size))
        ends = region_ends(self._region, box, self._open)
        if ends is not None and ends.any():
            back = (order.index(0), order.index(1), order.index(2))
            self._add_ends(to_numpy(xp.permute_dims(winner * inside, back)), ends, box)

    def _add_ends(self, winner: npt.NDArray[np.uint8], ends: Mask, box: Box) -> None:
        at = np.argwhere(ends & (winner > 0))
        channels = winner[tuple(at.T)].astype(np.int64)
        self._ends += np.bincount(channels, minlength=len(self._ends))
        self._at_end.append(np.column_stack([channels, at + np.array(box.start)]))

    def _won(self, probabilities: Array, asked: Mask) -> tuple[Array, Array]:
        """The highest probability and its channel; sums of all are added to ``_soft``. Channel by channel, as
        numpy's and torch's own over the first axis take ten times as long."""
        xp = namespace(probabilities)
        best = xp.asarray(probabilities[0], copy=True)
        winner = xp.zeros_like(best, dtype=xp.uint8)
        weights = None
        if not asked.all():
            weights = xp.astype(array_like(asked, best), best.dtype)
        sums = [xp.sum(value if weights is None else value * weights) for value in probabilities]
        highest = [xp.max(value) for value in probabilities]
        found = to_numpy(xp.stack([*sums, *highest]))
        self._soft += found[: len(sums)]
        can_win = contenders(found[len(sums) :], ROUNDING)
        for c, value in enumerate(probabilities):
            if c > 0 and can_win[c]:
                winner += (value > best) * (c - winner)  # modulo 256
                best = xp.maximum(best, value)
        return best, winner

    def uncertainty(self) -> dict[str, Uncertainty]:
        """The uncertainty of the organs that were found."""
        found = {}
        voxel_ml = self._region.grid.voxel_volume_ml
        for c, name in enumerate(self._labels, start=1):
            voxels = int(self._counts[c])
            if voxels == 0:
                continue
            found[name] = Uncertainty(
                voxels,
                voxels * voxel_ml,
                min(1.0, 2 * float(self._sure[c]) / (self._soft[c] + voxels)),
                int(self._ends[c]),
            )
        return found

    def at_end(self, organs: Iterable[str]) -> Indices:
        """Where these organs reach the region's end: indices ``[N, 3]`` of its grid."""
        channels = [self._labels.index(name) + 1 for name in organs]
        found = np.concatenate([np.zeros((0, 4), dtype=np.int64), *self._at_end])
        at: Indices = found[np.isin(found[:, 0], channels), 1:]
        return at


def _last_likelier(probabilities: Array, odds: Array) -> tuple[Array, Array]:
    """Of overlapping labels, the channel of the last one whose ``odds`` exceed background's, and its
    probability."""
    xp = namespace(probabilities)
    best = xp.asarray(probabilities[0], copy=True)
    winner = xp.zeros_like(best, dtype=xp.uint8)
    for c in range(1, probabilities.shape[0]):
        likelier = odds[c] > odds[0]
        winner += likelier * (c - winner)  # modulo 256
        best = xp.where(likelier, probabilities[c], best)
    return best, winner


def region_ends(region: Region, box: Box, open_sides: OpenSides) -> Mask | None:
    """Bool mask ``[*box.shape]``: voxels of the region that touch one outside it, where the scan continues.
    None if there are no such voxels at all."""
    if region.mask is None and region.box == region.grid.box and not any(itertools.chain(*open_sides)):
        return None
    wide = box.expand((1, 1, 1))
    mask = to_numpy(region.mask_in(wide))
    _close_sides(mask, wide, region.grid.shape, open_sides)
    middle = mask[1:-1, 1:-1, 1:-1]
    whole = middle.copy()
    for axis in range(3):
        for shift in (0, 2):
            part = [slice(1, -1)] * 3
            part[axis] = slice(shift, shift + box.shape[axis])
            whole &= mask[tuple(part)]
    ends: Mask = middle & ~whole
    return ends


def _close_sides(mask: Mask, box: Box, shape: Index3, open_sides: OpenSides) -> None:
    """Extend a mask by one voxel beyond the grid: the region continues as at the grid's last plane, and ends
    at open sides."""
    for axis, (low, high) in enumerate(open_sides):
        planes = np.moveaxis(mask, axis, 0)
        first, last = -box.start[axis], shape[axis] - 1 - box.start[axis]
        if first > 0 and not low:
            planes[:first] = planes[first]
        if last < len(planes) - 1 and not high:
            planes[last + 1 :] = planes[last]
