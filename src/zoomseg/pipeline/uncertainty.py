"""Signs of how right an answer is, organ by organ, gathered while it comes: no probabilities are kept.

The Dice that probabilities ``p`` promise to the voxels ``won`` by an organ is, if they are honest,
``2 sum(p over won) / (sum(p) + |won|)``: the overlap that is to be expected over the sizes that are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoomseg.core import widening
from zoomseg.core.geometry import Box
from zoomseg.core.region import Region
from zoomseg.core.widening import OpenSides

UNSURE = 0.75
"""A voxel won with less is a doubtful one."""

ROUNDING = 1e-3
"""By less, probabilities may fail to sum to one."""

CACHED_VOXELS = 2**16
"""So many are heard at once: what one pass over them leaves, the next one finds in the processor's cache."""


@dataclass(frozen=True)
class Uncertainty:
    """Of one organ, on the stage's grid, among the voxels that the stage was asked about."""

    voxels: int
    """Those that it won."""
    volume_ml: float
    expected_dice: float
    """0 to 1."""
    winning: float
    """Mean probability of the voxels won, 0 to 1."""
    unsure: float
    """Share of these with a probability below ``UNSURE``."""
    at_end: int
    """How many of these lie where the region ends, though the scan goes on."""


class UncertaintyEstimator:
    """Gathers an answer's signs, part by part."""

    def __init__(self, labels: tuple[str, ...], region: Region, open_sides: OpenSides) -> None:
        self._labels = labels
        self._region = region
        self._open = open_sides
        classes = 1 + len(labels)
        self._soft = [0.0] * classes
        self._sure = torch.zeros(classes, dtype=torch.float64)
        self._counts, self._doubtful, self._ends = (torch.zeros(classes, dtype=torch.int64) for _ in range(3))
        self._at_end: list[Tensor] = []

    def add(self, probabilities: Tensor, box: Box) -> None:
        """``[C, *box.shape]`` of a box of the region's grid; parts must not overlap."""
        rows = max(1, CACHED_VOXELS // (box.shape[1] * box.shape[2]))
        for start in range(box.start[0], box.stop[0], rows):
            part = Box((start, *box.start[1:]), (min(start + rows, box.stop[0]), *box.stop[1:]))
            self._add(probabilities[:, start - box.start[0] :][:, : part.shape[0]], part)

    def _add(self, probabilities: Tensor, box: Box) -> None:
        answered = torch.from_numpy(self._region.mask_in(box)).to(probabilities.device)
        if not bool(answered.any()):
            return
        best, winner = self._won(probabilities, answered)
        inside = answered & (winner > 0)
        if not bool(inside.any()):
            return
        size = len(self._soft)
        won, sure = winner[inside].int(), best[inside]
        self._sure += torch.bincount(won, sure.double(), minlength=size).cpu()
        self._counts += torch.bincount(won, minlength=size).cpu()
        self._doubtful += torch.bincount(won[sure < UNSURE], minlength=size).cpu()
        ends = region_ends(self._region, box, self._open)
        if ends is not None:
            hit = inside & ends.to(inside.device)
            self._ends += torch.bincount(winner[hit].int(), minlength=size).cpu()
            at = torch.nonzero(hit).cpu() + torch.tensor(box.start)
            self._at_end.append(torch.cat([winner[hit].cpu()[:, None].long(), at], dim=1))

    def _won(self, probabilities: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        """The highest probability and its channel; sums of all go to ``_soft``. Channel by channel, as
        torch's own over the first axis takes ten times as long."""
        best = probabilities[0].clone()
        winner = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
        asked, product = answered.float(), torch.empty_like(best)
        for c, value in enumerate(probabilities[1:], start=1):
            self._soft[c] += float(torch.mul(value, asked, out=product).sum())
            if float(value.max()) * len(probabilities) < 1 - ROUNDING:  # the highest of all is no lower
                continue
            winner.masked_fill_(value > best, c)
            torch.maximum(best, value, out=best)
        return best, winner

    def uncertainty(self) -> dict[str, Uncertainty]:
        """Of the organs that were found."""
        found = {}
        voxel_ml = self._region.grid.voxel_volume_ml
        for c, name in enumerate(self._labels, start=1):
            voxels = int(self._counts[c])
            if voxels == 0:
                continue
            sure = float(self._sure[c])
            found[name] = Uncertainty(
                voxels,
                voxels * voxel_ml,
                min(1.0, 2 * sure / (self._soft[c] + voxels)),
                sure / voxels,
                int(self._doubtful[c]) / voxels,
                int(self._ends[c]),
            )
        return found

    def at_end(self, organs: Iterable[str]) -> Tensor:
        """Where these organs reach the region's end: indices ``[N, 3]`` of its grid."""
        channels = torch.tensor([self._labels.index(name) + 1 for name in organs], dtype=torch.int64)
        if not self._at_end:
            return torch.zeros((0, 3), dtype=torch.int64)
        found = torch.cat(self._at_end)
        return found[torch.isin(found[:, 0], channels), 1:]


def region_ends(region: Region, box: Box, open_sides: OpenSides) -> Tensor | None:
    """Bool mask ``[*box.shape]``: voxels of the region that touch one outside it, where the scan goes on.
    None if the region has no such end at all."""
    if region.mask is None and region.box == region.grid.box and not any(itertools.chain(*open_sides)):
        return None
    wide = region.mask_in(box.expand((1, 1, 1)))
    return torch.from_numpy(widening.region_ends(wide, box, region.grid.shape, open_sides))
