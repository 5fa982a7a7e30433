"""``fusion``: how a stage's answer enters the case's label map, on the scan's own grid.

Block by block with a running maximum: no array of (classes x scan voxels) ever exists. A class can
only win where its interpolated probability reaches 1/C, hence where some neighbouring coarse voxel
does: elsewhere it is not computed. The result equals the naive full-size argmax.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from zoomseg.core.case import Prior
from zoomseg.core.components import largest_component
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


@dataclass(frozen=True, eq=False)
class Answer:
    """What a stage says, and on which grid its labels are decided."""

    prior: Prior
    argmax_place: ArgmaxPlace = "scan_grid"


def fuse(kind: FusionKind, canvas: Canvas, answers: Sequence[Answer], atlas: Prior | None = None) -> None:
    """Enter the answers of stages that follow each other and are of one kind into the canvas, in place.

    Args:
        atlas: needed for ``replace_times_atlas``.
    """
    match kind:
        case "none":
            return
        case "replace_in_roi":
            for answer in answers:
                replace_in_roi(canvas, answer.prior, answer.argmax_place)
        case "replace_times_atlas":
            assert atlas is not None  # a recipe without one is refused
            for answer in answers:
                replace_in_roi(canvas, times_atlas(answer.prior, atlas), answer.argmax_place)
        case "paste":
            for answer in answers:
                most_probable(canvas, [answer])
        case "most_probable":
            most_probable(canvas, answers)
        case "majority_vote":
            majority_vote(canvas, answers)


def replace_in_roi(canvas: Canvas, prior: Prior, argmax_place: ArgmaxPlace = "scan_grid") -> None:
    """Inside the prior's region the canvas becomes the prior's argmax; outside it stays."""
    decided = prior.probabilities.argmax(dim=0).byte() if argmax_place == "stage_grid" else None
    classes = _classes(canvas, prior)
    for block in blocks(_box(canvas, prior)):
        grid = canvas.grid.crop(block)
        winner = (
            max_on(prior.probabilities, prior.grid, grid)[1]
            if decided is None
            else nearest_index(decided, prior.grid, grid)
        )
        answer = classes[winner.long()]
        if prior.region.mask is not None:
            here = prior.region.on(grid).mask_in(grid.box)
            answer = torch.where(here, answer, canvas.labels[block.slices])
        canvas.labels[block.slices] = answer


def times_atlas(prior: Prior, atlas: Prior) -> Prior:
    """``prior`` times the atlas prior of the same labels, on the prior's grid, summing to one in every
    voxel. The background's atlas prior is all that is none of the prior's labels. Where the two leave
    nothing possible it is background."""
    shares = resample_data(atlas.probabilities.float(), atlas.grid, prior.grid)
    wanted = shares[[atlas.channel(name) for name in prior.labels]]
    rest = (shares.sum(dim=0, keepdim=True) - wanted.sum(dim=0, keepdim=True)).clamp_min(0)
    product = prior.probabilities * torch.cat([rest, wanted])
    total = product.sum(dim=0)
    product[0][total == 0] = 1.0
    return replace(prior, probabilities=product / product.sum(dim=0))


def most_probable(canvas: Canvas, answers: Sequence[Answer]) -> None:
    """The labels that the answers decide about are erased from the canvas, and what they found is written
    over what is there. Where several found something, the highest probability wins; of equal ones the
    first. Background is no finding, so the order of the answers does not matter otherwise."""
    voices = [_Voice.of(canvas, answer) for answer in answers]
    _erase(canvas, {c for voice in voices for c in voice.classes.tolist()})
    for block in blocks(_union(voice.box for voice in voices)):
        best = torch.zeros(block.shape)
        for voice in voices:
            box = voice.box.intersect(block)
            if box.empty:
                continue
            view, highest = canvas.labels[box.slices], best[box.relative_to(block.start).slices]
            label, probability = voice.on(canvas.grid.crop(box))
            probability = torch.where(label > 0, probability, 0.0)
            view.copy_(torch.where(probability > highest, label, view))
            highest.copy_(torch.maximum(probability, highest))


def majority_vote(canvas: Canvas, answers: Sequence[Answer]) -> None:
    """Every voxel that any of the answers is about becomes the label, or background, that most of them give
    it. Among equally many votes the most probable single one decides; of equally probable ones the
    first. Zhou et al. 2016."""
    voices = [_Voice.of(canvas, answer) for answer in answers]
    for block in blocks(_union(voice.box for voice in voices), BLOCK_VOXELS // len(voices)):
        votes = [_vote(canvas, voice, block) for voice in voices]
        best, view = torch.zeros(block.shape), canvas.labels[block.slices]
        for label, probability in votes:
            alike = torch.zeros(block.shape, dtype=torch.uint8)
            for other, cast in votes:
                alike += (other == label) & (cast > 0)
            # Half a probability is less than a vote, so that it only decides between equal votes.
            score = torch.where(probability > 0, probability / 2 + alike, 0.0)
            view.copy_(torch.where(score > best, label, view))
            best = torch.maximum(score, best)


@dataclass(frozen=True, eq=False)
class _Voice:
    """An answer, to be heard block by block on the scan's grid. ``box`` of that grid holds all it says."""

    prior: Prior
    box: Box
    classes: Tensor
    decided: tuple[Tensor, Tensor] | None
    """Probability and channel of the winner on the stage's grid, where that is the place."""

    @classmethod
    def of(cls, canvas: Canvas, answer: Answer) -> _Voice:
        prior, decided = answer.prior, None
        if answer.argmax_place == "stage_grid":
            best, winner = prior.probabilities.max(dim=0)
            decided = best, winner.byte()
        return cls(prior, _box(canvas, prior), _classes(canvas, prior), decided)

    def on(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """On a block of the scan, each of its shape: the winning class (uint8), and its probability; zero
        outside the region that the stage answers for."""
        prior = self.prior
        if self.decided is None:
            best, winner = max_on(prior.probabilities, prior.grid, grid)
        else:
            best, winner = (nearest_index(x, prior.grid, grid) for x in self.decided)
        if prior.region.mask is not None:
            best = torch.where(prior.region.on(grid).mask_in(grid.box), best, 0.0)
        return self.classes[winner.long()], best


def _box(canvas: Canvas, prior: Prior) -> Box:
    """The box of the scan's grid that holds the prior's region."""
    return canvas.grid.box_of(prior.region.grid, prior.region.box).intersect(canvas.grid.box)


def _classes(canvas: Canvas, prior: Prior) -> Tensor:
    """Classes of the canvas (uint8), by the prior's channel."""
    return torch.tensor([0, *(canvas.schema.class_of(n) for n in prior.labels)], dtype=torch.uint8)


def _vote(canvas: Canvas, voice: _Voice, block: Box) -> tuple[Tensor, Tensor]:
    """As ``_Voice.on``, for a block that reaches beyond what the voice is about."""
    whole = torch.zeros(block.shape, dtype=torch.uint8), torch.zeros(block.shape)
    box = voice.box.intersect(block)
    if not box.empty:
        for out, said in zip(whole, voice.on(canvas.grid.crop(box)), strict=True):
            out[box.relative_to(block.start).slices] = said
    return whole


def _union(boxes: Iterable[Box]) -> Box:
    return functools.reduce(Box.union, boxes)


def _erase(canvas: Canvas, classes: Collection[int]) -> None:
    table = np.arange(256, dtype=np.uint8)
    table[list(classes)] = 0
    for slab in canvas.labels.numpy():
        # Slab by slab, as numpy takes by 8-byte indices; clipping needs no second buffer.
        np.take(table, slab, out=slab, mode="clip")


def keep_largest(canvas: Canvas, labels: Iterable[str]) -> None:
    """Of each of these labels only the largest connected component (26 neighbours) stays; the rest
    becomes background."""
    data = canvas.labels.numpy()
    found = ndimage.find_objects(data)
    for c in (canvas.schema.class_of(name) for name in labels):
        where = found[c - 1] if c <= len(found) else None
        if where is not None:
            own = data[where] == c
            data[where][own & ~largest_component(own)] = 0


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


def max_on(probabilities: Tensor, source: Grid, target: Grid) -> tuple[Tensor, Tensor]:
    """Highest probability and the channel (uint8) that has it, each ``target.shape``, of ``[C, ...]`` on
    ``source`` linearly resampled to ``target``; ties go to the lower channel, as in argmax."""
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
    return best, winner


def _open_at_edges(reach: Box, source: Grid, whole: Box) -> Box:
    """``reach`` and the voxels it is blended with; where it touches the source's edge it opens to all of
    ``whole`` (the target in source voxels), as edge values go on beyond the source."""
    start = [min(w, -1) if low == 0 else low - 1 for low, w in zip(reach.start, whole.start, strict=True)]
    stop = [
        max(w, n + 1) if high == n else high + 1
        for high, w, n in zip(reach.stop, whole.stop, source.shape, strict=True)
    ]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
