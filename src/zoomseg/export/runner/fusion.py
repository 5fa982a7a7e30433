"""How answers enter the label map, on the scan's own grid, block by block with a running maximum: no array of
(classes x scan voxels) ever exists. A class can only win where its interpolated probability reaches 1/C,
hence near where some stage voxel's does: elsewhere it is not computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.export.runner import resample
from zoomseg.export.runner.region import Answer, Mask, bounding_box
from zoomseg.export.runner.resample import FloatArray

BLOCK_VOXELS = 8_000_000
"""Scan voxels computed at once."""

Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Canvas:
    """The label map in the making: class indices ``[I, J, K]`` on the scan's ``grid``."""

    grid: Grid
    schema: LabelSchema
    labels: Classes

    @classmethod
    def blank(cls, grid: Grid, schema: LabelSchema) -> Canvas:
        return cls(grid, schema, np.zeros(grid.shape, dtype=np.uint8))


@dataclass(frozen=True, eq=False)
class Voice:
    """A stage's answer, to be heard block by block on the scan's grid. ``box`` of that grid holds all it
    says; ``classes`` are the canvas's, by the answer's channel."""

    answer: Answer
    box: Box
    classes: Classes
    reaches: tuple[Box | None, ...]
    """Per channel, the box of the stage's grid where it can win."""
    decided: tuple[FloatArray, Classes] | None
    """Probability and channel of the winner on the stage's grid, where labels are decided there."""

    @classmethod
    def of(cls, canvas: Canvas, answer: Answer, argmax_on: str) -> Voice:
        probabilities = answer.probabilities
        region = answer.region
        box = canvas.grid.box_of(region.grid, region.box).intersect(canvas.grid.box)
        names = (canvas.schema.class_of(name) for name in answer.labels)
        classes = np.array([0, *names], dtype=np.uint8)
        if argmax_on == "stage_grid":
            decided = probabilities.max(axis=0), probabilities.argmax(axis=0).astype(np.uint8)
            return cls(answer, box, classes, (), decided)
        # Rounding in the interpolation must not cut a voxel that reaches 1/C exactly.
        threshold = np.float32((1 - 1e-4) / len(probabilities))
        reaches = tuple(bounding_box(channel >= threshold) for channel in probabilities)
        return cls(answer, box, classes, reaches, None)

    def on(self, grid: Grid) -> tuple[Classes, FloatArray]:
        """On a block of the scan: the winning class, and its probability."""
        if self.decided is None:
            best, winner = self._max_on(grid)
        else:
            best, winner = (resample.nearest(x, self.answer.grid, grid) for x in self.decided)
        return self.classes[winner], best

    def inside(self, grid: Grid) -> Mask | None:
        """Voxels of a block that belong to the region; None if all do."""
        region = self.answer.region
        return None if region.mask is None else region.on(grid).mask_in(grid.box)

    def _max_on(self, grid: Grid) -> tuple[FloatArray, Classes]:
        """Highest probability and its channel; ties go to the lower channel, as in argmax."""
        probabilities, source = self.answer.probabilities, self.answer.grid
        best = resample.linear(probabilities[:1], source, grid, antialias=False)[0].copy()
        winner = np.zeros(grid.shape, dtype=np.uint8)
        whole = source.box_of(grid, grid.box)
        for c, reach in enumerate(self.reaches):
            if c == 0 or reach is None:
                continue
            box = grid.box_of(source, _open_at_edges(reach, source, whole)).intersect(grid.box)
            if box.empty:
                continue
            value = resample.linear(probabilities[c : c + 1], source, grid.crop(box), antialias=False)[0]
            view = best[box.slices]
            better = value > view
            np.copyto(view, value, where=better)
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


def fuse(kind: str, canvas: Canvas, voices: Sequence[Voice]) -> None:
    """Enter the answers of stages that follow each other and are of one kind into the canvas, in place."""
    match kind:
        case "replace_in_roi":
            for voice in voices:
                _replace(canvas, voice)
        case "paste":
            for voice in voices:
                _most_probable(canvas, [voice])
        case "most_probable":
            _most_probable(canvas, voices)
        case _:
            raise ValueError(f"fusion of kind '{kind}'")


def _replace(canvas: Canvas, voice: Voice) -> None:
    """Inside the region the canvas becomes the argmax; outside it stays."""
    for block in blocks(voice.box):
        grid = canvas.grid.crop(block)
        labels, _ = voice.on(grid)
        inside = voice.inside(grid)
        np.copyto(canvas.labels[block.slices], labels, where=True if inside is None else inside)


def _most_probable(canvas: Canvas, voices: Sequence[Voice]) -> None:
    """The labels that the answers decide about are erased, and what they found is written over what is there.
    Where several found something, the highest probability wins; of equal ones the first."""
    table = np.arange(256, dtype=np.uint8)
    for voice in voices:
        table[voice.classes] = 0
    for slab in canvas.labels:
        slab[...] = table[slab]
    for block in blocks(functools.reduce(Box.union, (voice.box for voice in voices))):
        best = np.zeros(block.shape, dtype=np.float32)
        for voice in voices:
            box = voice.box.intersect(block)
            if not box.empty:
                _speak(canvas, voice, box, best[box.relative_to(block.start).slices])


def _speak(canvas: Canvas, voice: Voice, box: Box, highest: FloatArray) -> None:
    """Write what one voice finds in ``box`` with more than the ``highest`` probability so far; update it."""
    grid = canvas.grid.crop(box)
    label, probability = voice.on(grid)
    found = (label > 0) & (probability > highest)
    inside = voice.inside(grid)
    if inside is not None:
        found &= inside
    np.copyto(canvas.labels[box.slices], label, where=found)
    np.copyto(highest, probability, where=found)


def keep_parts(canvas: Canvas, labels: Iterable[str], kept: Callable[[Mask], Mask]) -> None:
    """Of the voxels of each of these labels only those stay that are ``kept``."""
    found = ndimage.find_objects(canvas.labels)
    for c in (canvas.schema.class_of(name) for name in labels):
        where = found[c - 1] if c <= len(found) else None
        if where is not None:
            own = canvas.labels[where] == c
            canvas.labels[where][own & ~kept(own)] = 0


def blocks(box: Box) -> list[Box]:
    """Slabs of a box along its last axis with at most ``BLOCK_VOXELS`` voxels each (at least one slice)."""
    if box.empty:
        return []
    thick = max(1, BLOCK_VOXELS // (box.shape[0] * box.shape[1]))
    start, stop = box.start, box.stop
    return [
        Box((start[0], start[1], k), (stop[0], stop[1], min(k + thick, stop[2])))
        for k in range(start[2], stop[2], thick)
    ]
