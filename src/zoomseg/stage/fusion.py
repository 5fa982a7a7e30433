"""``fusion``: how a stage's answer enters the case's label map, on the scan's own grid.

Block by block with a running maximum: no array of (classes x scan voxels) ever exists. A class can
only win where its interpolated probability reaches 1/C, hence where some neighbouring coarse voxel
does: elsewhere it is not computed. The result equals the naive full-size argmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoomseg.core.case import Prior
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import bounding_box
from zoomseg.core.resample import nearest_index, resample_data
from zoomseg.recipe.spec import ArgmaxPlace, FusionKind

BLOCK_VOXELS = 8_000_000
"""Scan voxels computed at once."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """The label map in the making: class indices ``[I, J, K]`` on the scan's ``grid``."""

    grid: Grid
    schema: LabelSchema
    labels: Tensor

    @classmethod
    def blank(cls, grid: Grid, schema: LabelSchema) -> Canvas:
        return cls(grid, schema, torch.zeros(grid.shape, dtype=torch.uint8))


def fuse(kind: FusionKind, argmax_place: ArgmaxPlace, canvas: Canvas, prior: Prior) -> None:
    """Enter a stage's answer into the canvas, in place."""
    match kind:
        case "none":
            return
        case "replace_in_roi":
            replace_in_roi(canvas, prior, argmax_place)


def replace_in_roi(canvas: Canvas, prior: Prior, argmax_place: ArgmaxPlace = "scan_grid") -> None:
    """Inside the prior's region the canvas becomes the prior's argmax; outside it stays."""
    decided = prior.probabilities.argmax(dim=0).byte() if argmax_place == "stage_grid" else None
    target = canvas.grid.box_of(prior.region.grid, prior.region.box).intersect(canvas.grid.box)
    classes = torch.tensor([0, *(canvas.schema.class_of(n) for n in prior.labels)], dtype=torch.uint8)
    for block in blocks(target):
        grid = canvas.grid.crop(block)
        winner = (
            argmax_on(prior.probabilities, prior.grid, grid)
            if decided is None
            else nearest_index(decided, prior.grid, grid)
        )
        answer = classes[winner.long()]
        if prior.region.mask is not None:
            here = prior.region.on(grid).mask_in(grid.box)
            answer = torch.where(here, answer, canvas.labels[block.slices])
        canvas.labels[block.slices] = answer


def confidence(prior: Prior) -> dict[str, float]:
    """Mean winning probability (0 to 1) over each organ's voxels in the region, on the stage's grid."""
    best, winner = (x[prior.answered] for x in prior.probabilities.max(dim=0))
    sums = torch.bincount(winner, best.double(), minlength=1 + len(prior.labels))
    counts = torch.bincount(winner, minlength=1 + len(prior.labels))
    return {name: float(sums[c] / counts[c]) for c, name in enumerate(prior.labels, start=1) if counts[c]}


def blocks(box: Box, voxels: int = BLOCK_VOXELS) -> list[Box]:
    """Slabs of a box along its last axis with at most ``voxels`` voxels each (at least one slice)."""
    if box.empty:
        return []
    thick = max(1, voxels // max(1, box.shape[0] * box.shape[1]))
    start, stop = box.start, box.stop
    return [
        Box((start[0], start[1], k), (stop[0], stop[1], min(k + thick, stop[2])))
        for k in range(start[2], stop[2], thick)
    ]


def argmax_on(probabilities: Tensor, source: Grid, target: Grid) -> Tensor:
    """Winning channel (uint8 ``target.shape``) of ``[C, ...]`` on ``source`` linearly resampled to
    ``target``; ties go to the lower channel, as in argmax."""
    count = probabilities.shape[0]
    best = resample_data(probabilities[:1].float(), source, target, antialias=False)[0].clone()
    winner = torch.zeros(target.shape, dtype=torch.uint8)
    # Rounding in the interpolation must not cut a voxel that reaches 1/C exactly.
    threshold = (1 - 1e-4) / count
    whole = source.box_of(target, target.box)
    for c in range(1, count):
        reach = bounding_box(probabilities[c] >= threshold)
        if reach is None:
            continue
        box = target.box_of(source, _open_at_edges(reach, source, whole)).intersect(target.box)
        if box.empty:
            continue
        value = resample_data(probabilities[c : c + 1].float(), source, target.crop(box), antialias=False)[0]
        view = best[box.slices]
        better = value > view
        view[better] = value[better]
        winner[box.slices][better] = c
    return winner


def _open_at_edges(reach: Box, source: Grid, whole: Box) -> Box:
    """``reach`` and the voxels it is blended with; where it touches the source's edge it opens to all of
    ``whole`` (the target in source voxels), as edge values go on beyond the source."""
    start = [min(w, -1) if low == 0 else low - 1 for low, w in zip(reach.start, whole.start, strict=True)]
    stop = [
        max(w, n + 1) if high == n else high + 1
        for high, w, n in zip(reach.stop, whole.stop, source.shape, strict=True)
    ]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
