"""``fusion``: how a stage's answer enters the case's label map, on the scan's own grid.

Piece by piece: no array of (classes x scan voxels) ever exists. An interpolated probability lies between
the lowest and the highest of its neighbours, so that most classes cannot win in most pieces: there they are
not computed. The result equals the naive full-size argmax.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from zoomseg.anatomy.positions import Misplaced, OrganPlaces, misplaced
from zoomseg.core.case import StagePrediction
from zoomseg.core.components import Mask, components
from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region, class_boxes
from zoomseg.core.resample import nearest_index, resample_data
from zoomseg.recipe.spec import ArgmaxPlace, FusionKind

BLOCK_VOXELS = 8_000_000
"""Scan voxels computed at once."""

PIECE_SIDE = 48
"""Of these, so many a side are decided at once: few classes are likely in a small piece, all others cannot
win there and cost nothing."""

ROUNDING = 1e-5
"""Two probabilities are told apart by interpolation if they differ by more."""


@dataclass(frozen=True, eq=False)
class FusedLabelMap:
    """The label map in the making: class indices ``[I, J, K]`` on the scan's ``grid``."""

    grid: Grid
    schema: LabelSchema
    labels: Tensor

    @classmethod
    def blank(cls, grid: Grid, schema: LabelSchema, device: torch.device | str = "cpu") -> FusedLabelMap:
        """All background; plane by plane in memory, as it is filled, and as files have it."""
        planes = torch.zeros(grid.shape[::-1], dtype=torch.uint8, device=device)
        return cls(grid, schema, planes.permute(2, 1, 0))


@dataclass(frozen=True, eq=False)
class FusionInput:
    """What a stage says, and on which grid its labels are decided."""

    prior: StagePrediction
    argmax_place: ArgmaxPlace = "scan_grid"


def fuse(
    kind: FusionKind,
    canvas: FusedLabelMap,
    answers: Sequence[FusionInput],
    atlas: StagePrediction | None = None,
) -> None:
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


def replace_in_roi(
    canvas: FusedLabelMap, prior: StagePrediction, argmax_place: ArgmaxPlace = "scan_grid"
) -> None:
    """Inside the prior's region the canvas becomes the prior's argmax; outside it stays."""
    painter = SlabFusion(canvas, prior.grid, prior.labels, prior.region, argmax_place)
    painter.add(prior.probabilities)


class SlabFusion:
    """``replace_in_roi`` for an answer that comes in slabs of planes, each painted as soon as the planes that
    it is blended with are there: of a hundred classes on a fine grid no more than a slab is ever held."""

    def __init__(
        self, canvas: FusedLabelMap, grid: Grid, labels: tuple[str, ...], region: Region, place: ArgmaxPlace
    ) -> None:
        """``grid`` is that of the whole answer, parallel to the canvas's and not turned against it."""
        self._canvas = canvas
        self._grid = grid
        self._region = region
        self._place = place
        self._classes = _classes(canvas, labels)
        self._box = canvas.grid.box_of(region.grid, region.box).intersect(canvas.grid.box)
        self._painted = self._box.start[2]
        self._came = 0
        self._edge: Tensor | None = None

    def add(self, probabilities: Tensor) -> None:
        """The next planes ``[C, I, J, planes]``."""
        first = self._came
        self._came += probabilities.shape[3]
        last = self._came == self._grid.shape[2]
        if self._edge is not None:  # what lies between the last slab and this one is a blend of both
            seam = torch.cat([self._edge, probabilities[..., :1]], dim=3)
            self._paint(seam, first - 1, self._ready(first + 1, last and first + 1 == self._came))
        self._paint(probabilities, first, self._ready(self._came, last))
        self._edge = None if last else probabilities[..., -1:].clone()

    def _ready(self, came: int, last: bool) -> int:
        """The first plane of the canvas that needs more than ``came`` planes of the answer."""
        if last:
            return self._box.stop[2]
        matrix = self._canvas.grid.to_index_of(self._grid)
        stop = math.floor(float((came - 1 - matrix[2, 3]) / matrix[2, 2])) + 1
        return min(max(stop, self._painted), self._box.stop[2])

    def _paint(self, probabilities: Tensor, first: int, stop: int) -> None:
        """The canvas up to plane ``stop``, by planes of the answer that begin with ``first``."""
        planes = Box((0, 0, first), (*self._grid.shape[:2], first + probabilities.shape[3]))
        source, start = self._grid.crop(planes), (*self._box.start[:2], self._painted)
        self._painted = stop
        decided = probabilities.argmax(dim=0).byte() if self._place == "stage_grid" else None
        for block in blocks(Box(start, (*self._box.stop[:2], stop))):
            grid, view = self._canvas.grid.crop(block), self._canvas.labels[block.slices]
            winner = (
                argmax_on(probabilities, source, grid)
                if decided is None
                else nearest_index(decided, source, grid)
            )
            answer = _apply_table(self._classes, winner)
            if self._region.mask is not None:
                here = torch.from_numpy(self._region.on(grid).mask_in(grid.box)).to(view.device)
                answer = torch.where(here, answer, view)
            view.copy_(answer)


def times_atlas(prior: StagePrediction, atlas: StagePrediction) -> StagePrediction:
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


def most_probable(canvas: FusedLabelMap, answers: Sequence[FusionInput]) -> None:
    """The labels that the answers decide about are erased from the canvas, and what they found is written
    over what is there. Where several found something, the highest probability wins; of equal ones the
    first. Background is no finding, so the order of the answers does not matter otherwise."""
    voices = [_Candidate.of(canvas, answer) for answer in answers]
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


def majority_vote(canvas: FusedLabelMap, answers: Sequence[FusionInput]) -> None:
    """Every voxel that any of the answers is about becomes the label, or background, that most of them give
    it. Among equally many votes the most probable single one decides; of equally probable ones the
    first. Zhou et al. 2016."""
    voices = [_Candidate.of(canvas, answer) for answer in answers]
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
class _Candidate:
    """An answer, to be heard block by block on the scan's grid. ``box`` of that grid holds all it says."""

    prior: StagePrediction
    box: Box
    classes: Tensor
    decided: tuple[Tensor, Tensor] | None
    """Probability and channel of the winner on the stage's grid, where that is the place."""

    @classmethod
    def of(cls, canvas: FusedLabelMap, answer: FusionInput) -> _Candidate:
        prior, decided = answer.prior, None
        if answer.argmax_place == "stage_grid":
            best, winner = prior.probabilities.max(dim=0)
            decided = best, winner.byte()
        return cls(prior, _box(canvas, prior), _classes(canvas, prior.labels), decided)

    def on(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """On a block of the scan, each of its shape: the winning class (uint8), and its probability; zero
        outside the region that the stage answers for."""
        prior = self.prior
        if self.decided is None:
            best, winner = max_on(prior.probabilities, prior.grid, grid)
        else:
            best, winner = (nearest_index(x, prior.grid, grid) for x in self.decided)
        if prior.region.mask is not None:
            best = torch.where(
                torch.from_numpy(prior.region.on(grid).mask_in(grid.box)).to(best.device), best, 0.0
            )
        return _apply_table(self.classes, winner), best


def _box(canvas: FusedLabelMap, prior: StagePrediction) -> Box:
    """The box of the scan's grid that holds the prior's region."""
    return canvas.grid.box_of(prior.region.grid, prior.region.box).intersect(canvas.grid.box)


def _classes(canvas: FusedLabelMap, labels: tuple[str, ...]) -> Tensor:
    """Classes of the canvas (uint8), by channel of an answer for these labels."""
    classes = [0, *(canvas.schema.class_of(name) for name in labels)]
    return torch.tensor(classes, dtype=torch.uint8, device=canvas.labels.device)


def _apply_table(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` of uint8, where torch would need indices of 8 bytes."""
    if torch.equal(table, torch.arange(len(table), dtype=table.dtype, device=table.device)):
        return index
    return table.index_select(0, index.flatten().int()).reshape(index.shape)


def _vote(canvas: FusedLabelMap, voice: _Candidate, block: Box) -> tuple[Tensor, Tensor]:
    """As ``_Candidate.on``, for a block that reaches beyond what the voice is about."""
    whole = torch.zeros(block.shape, dtype=torch.uint8), torch.zeros(block.shape)
    box = voice.box.intersect(block)
    if not box.empty:
        for out, said in zip(whole, voice.on(canvas.grid.crop(box)), strict=True):
            out[box.relative_to(block.start).slices] = said
    return whole


def _union(boxes: Iterable[Box]) -> Box:
    return functools.reduce(Box.union, boxes)


def _erase(canvas: FusedLabelMap, classes: Collection[int]) -> None:
    """These become background."""
    for plane in canvas.labels.permute(2, 0, 1):
        for c in classes:
            plane.masked_fill_(plane == c, 0)


def keep_only(canvas: FusedLabelMap, labels: Collection[str]) -> None:
    """All other labels become background."""
    keep = {canvas.schema.class_of(name) for name in labels}
    _erase(canvas, {canvas.schema.class_of(name) for name in canvas.schema.names} - keep)


def keep_parts(canvas: FusedLabelMap, labels: Iterable[str], kept: Callable[[Mask], Mask]) -> None:
    """Of the voxels of each of these labels only those ``kept`` stay; the rest becomes background."""
    classes = [canvas.schema.class_of(name) for name in labels]
    if not classes:
        return
    data = canvas.labels.cpu().numpy()
    for c, box in class_boxes(data, classes).items():
        own = data[box.slices] == c
        data[box.slices][own & ~kept(own)] = 0
    canvas.labels.copy_(torch.from_numpy(data))


def take_out_misplaced(canvas: FusedLabelMap, known: Mapping[str, OrganPlaces]) -> dict[str, Misplaced]:
    """Take parts of organs that lie far from where training had them out of the label map; by organ, what was
    found (see ``anatomy.positions``)."""
    data, names = canvas.labels.cpu().numpy(), canvas.schema.names
    found = misplaced(data, canvas.grid, names, known, components)
    if found:
        canvas.labels.copy_(torch.from_numpy(data))
    return {names[c - 1]: own for c, own in found.items()}


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
    best = torch.empty(target.shape, device=probabilities.device)
    winner = torch.empty(target.shape, dtype=torch.uint8, device=probabilities.device)
    for piece in _pieces(target.shape):
        grid = target.crop(piece)
        near, data = _around(probabilities, source, grid)
        best[piece.slices], winner[piece.slices] = _highest(data, _contenders(data), near, grid)
    return best, winner


def argmax_on(probabilities: Tensor, source: Grid, target: Grid) -> Tensor:
    """The winning channel of ``max_on`` alone: where only one can win, nothing is computed."""
    winner = torch.empty(target.shape, dtype=torch.uint8, device=probabilities.device)
    for piece in _pieces(target.shape):
        grid = target.crop(piece)
        near, data = _around(probabilities, source, grid)
        channels = _contenders(data)
        winner[piece.slices] = channels[0] if len(channels) == 1 else _highest(data, channels, near, grid)[1]
    return winner


def _highest(data: Tensor, channels: list[int], source: Grid, target: Grid) -> tuple[Tensor, Tensor]:
    """As ``max_on``, among some channels in their order. A running maximum, as torch's own over an array's
    first axis takes ten times as long."""
    values = resample_data(data[channels].float(), source, target, antialias=False)
    best = values[0].clone()
    winner = torch.full(target.shape, channels[0], dtype=torch.uint8, device=data.device)
    for c, value in zip(channels[1:], values[1:], strict=True):
        winner.masked_fill_(value > best, c)
        torch.maximum(best, value, out=best)
    return best, winner


def _pieces(shape: Index3) -> Iterator[Box]:
    """A grid in cubes of at most ``PIECE_SIDE`` voxels a side, of about one size."""
    counts = [math.ceil(n / PIECE_SIDE) for n in shape]
    edges = [[n * i // count for i in range(count + 1)] for n, count in zip(shape, counts, strict=True)]
    for i, j, k in itertools.product(*(itertools.pairwise(axis) for axis in edges)):
        yield Box((i[0], j[0], k[0]), (i[1], j[1], k[1]))


def _around(data: Tensor, source: Grid, target: Grid) -> tuple[Grid, Tensor]:
    """What of ``[C, ...]`` on ``source`` is blended into ``target``, and its grid; a target beyond the source
    reads the source's edge."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(target.shape) - 1)
    index = source.index(target.world(corners))
    # A voxel of air on either side, so that rounding loses nothing.
    low, high = np.floor(index.min(axis=0)) - 1, np.ceil(index.max(axis=0)) + 2
    last = np.array(source.shape) - 1
    start, stop = np.clip(low, 0, last).astype(int), np.clip(high, 1, last + 1).astype(int)
    box = Box(tuple(start.tolist()), tuple(np.maximum(stop, start + 1).tolist()))
    return source.crop(box), data[(slice(None), *box.slices)]


def _contenders(data: Tensor) -> list[int]:
    """The channels of ``[C, ...]`` that may be the highest somewhere between its voxels, those that sum to
    one in every voxel. A blend of voxels is no higher in any channel than the channel's highest; so the
    winner of a blend is no lower than the most certain channel's lowest value, and than what all but the
    k highest channels leave to these, divided by k."""
    highest = data.amax(dim=(1, 2, 3))
    falling, order = highest.sort(descending=True)
    left = 1 - (falling.sum() - falling.cumsum(0))
    needed = max(
        float((left / torch.arange(1, len(falling) + 1, device=data.device)).max()),
        float(data[order[0]].amin()),
    )
    return [int(c) for c in torch.nonzero(highest >= needed - ROUNDING).flatten()]
