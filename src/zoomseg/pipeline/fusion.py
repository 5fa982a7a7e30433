"""``fusion``: how a stage's prediction is written to the case's label map, on the scan's own grid.

This is done piece by piece (``pipeline.argmax``): no array of (classes x scan voxels) ever exists.

Arrays are numpy's or torch's; those of the label map and of the probabilities belong to the same library and
device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from zoomseg.anatomy.positions import Misplaced, TypicalPosition, misplaced
from zoomseg.core.arrays import Array, array_like, namespace, to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.morphology import Mask
from zoomseg.core.region import Region, class_boxes
from zoomseg.core.resample import nearest_index, resample_data
from zoomseg.core.tiling import logarithms, overlapping
from zoomseg.pipeline.argmax import (
    LINEAR,
    PLANES_FIRST,
    PROBABILITIES,
    LabelDecision,
    as_float32,
    max_on,
    plane_zeros,
    region_mask_on,
    set_where,
    write_argmax,
)
from zoomseg.recipe.spec import FusionKind, Stage

BLOCK_VOXELS = 8_000_000
"""Number of scan voxels whose mask, or whose probabilities of several stages, are held at once."""


@dataclass(frozen=True, eq=False)
class FusedLabelMap:
    """The label map under construction: class indices ``[I, J, K]`` (uint8) on the scan's ``grid``."""

    grid: Grid
    schema: LabelSchema
    labels: Array

    @classmethod
    def blank(cls, grid: Grid, schema: LabelSchema, like: Array) -> FusedLabelMap:
        """A label map of background, of the library and on the device of ``like``."""
        return cls(grid, schema, plane_zeros(grid.shape, "uint8", like))


@dataclass(frozen=True, eq=False)
class FusionInput:
    """A stage's prediction, and how its labels are decided."""

    prediction: StagePrediction
    how: LabelDecision = PROBABILITIES

    @classmethod
    def of(cls, stage: Stage, prediction: StagePrediction, fused: FusedLabelMap) -> FusionInput:
        """A stage's prediction, to be fused into this label map as the stage says."""
        return cls(prediction.on_device_of(fused.labels), LabelDecision.of(stage, fused.grid))


def write_stage_labels(stage: Stage, prediction: StagePrediction, fused: FusedLabelMap) -> None:
    """Set the label map inside the prediction's region to what the stage alone decides, regardless of its
    ``fusion``."""
    fuse("replace_in_roi", fused, [FusionInput.of(stage, prediction, fused)])


def as_probabilities(prediction: StagePrediction, stage: Stage) -> StagePrediction:
    """A stage's prediction with probabilities that sum to one: of overlapping labels, those that each one
    remains."""
    if not stage.labels_overlap:
        return prediction
    return replace(prediction, probabilities=overlapping(logarithms(prediction.probabilities)))


def fuse(
    kind: FusionKind,
    fused: FusedLabelMap,
    inputs: Sequence[FusionInput],
    atlas: StagePrediction | None = None,
) -> None:
    """Fuse the predictions of consecutive stages of one kind into the label map, in place.

    Args:
        atlas: needed for ``replace_times_atlas``.
    """
    match kind:
        case "none":
            return
        case "replace_in_roi":
            for one in inputs:
                replace_in_roi(fused, one)
        case "replace_times_atlas":
            assert atlas is not None  # a recipe without one is refused
            for one in inputs:
                product = times_atlas(one.prediction, atlas)
                replace_in_roi(fused, FusionInput(product, LabelDecision(one.how.argmax_on)))
        case "paste":
            for one in inputs:
                paste(fused, one)
        case "most_probable":
            most_probable(fused, inputs)
        case "majority_vote":
            majority_vote(fused, inputs)


def replace_in_roi(fused: FusedLabelMap, one: FusionInput) -> None:
    """Set the label map inside the prediction's region to its argmax, or to the last of overlapping labels
    that is likelier than background; outside, it is unchanged."""
    _write_prediction(fused, one, pasted=False)


def paste(fused: FusedLabelMap, one: FusionInput) -> None:
    """Erase the prediction's labels from the whole label map, and write its foreground inside its region over
    the label map."""
    _write_prediction(fused, one, pasted=True)


def _write_prediction(fused: FusedLabelMap, one: FusionInput, pasted: bool) -> None:
    own = one.prediction
    slabs = SlabFusion(fused, own.grid, own.labels, own.region, one.how, pasted)
    slabs.add(logarithms(own.probabilities) if one.how.logs else own.probabilities)


class SlabFusion:
    """``replace_in_roi``, or ``paste``, for a prediction that arrives in slabs of planes. Each slab is
    written as soon as all planes needed for its interpolation have arrived: of a hundred classes on a fine
    grid, only one slab is held at a time."""

    def __init__(
        self,
        fused: FusedLabelMap,
        grid: Grid,
        labels: tuple[str, ...],
        region: Region,
        how: LabelDecision = PROBABILITIES,
        pasted: bool = False,
    ) -> None:
        """``grid`` is that of the whole prediction, parallel to the label map's and not rotated against it.

        Args:
            how: with ``logs``, the prediction consists of logarithms of probabilities.
            pasted: as in ``paste``: background leaves the label map unchanged.
        """
        self._how = how
        self._fused = fused
        # The voxel of certain background around a region would take almost half a voxel from every organ at
        # the region's end if it were interpolated in logarithms, of which it has by far the largest.
        self._read = grid.box_of(region.grid, region.box).intersect(grid.box) if how.logs else grid.box
        self._grid = grid.crop(self._read)
        self._region = region
        self._pasted = pasted
        self._classes = _classes(fused, labels)
        if pasted:
            _erase(fused, set(self._classes[1:]))
        self._box = region.box_on(fused.grid)
        self._next = self._box.start[2]
        """The first plane of the label map that is not yet decided."""
        self._arrived = 0
        """Planes of the whole prediction."""
        self._received = 0
        """Those of them that are read."""
        self._edge: Array | None = None

    def add(self, probabilities: Array) -> None:
        """Add the next planes ``[C, I, J, planes]``."""
        probabilities = self._part_read(probabilities)
        if probabilities.shape[3] == 0:
            return
        first = self._received
        self._received += probabilities.shape[3]
        last = self._received == self._grid.shape[2]
        xp = namespace(probabilities)
        if self._edge is not None:  # planes between the last slab and this one are interpolated from both
            seam = xp.concat([self._edge, probabilities[..., :1]], axis=3)
            self._decide(seam, first - 1, self._ready(first + 1, last and first + 1 == self._received))
        self._decide(probabilities, first, self._ready(self._received, last))
        self._edge = None if last else xp.asarray(probabilities[..., -1:], copy=True)

    def _part_read(self, probabilities: Array) -> Array:
        i, j, k = self._read.slices
        first, count = self._arrived, probabilities.shape[3]
        self._arrived += count
        low, high = (min(max(plane - first, 0), count) for plane in (k.start, k.stop))
        return probabilities[:, i, j, low:high]

    def _ready(self, received: int, last: bool) -> int:
        """The first plane of the label map that needs more than ``received`` planes of the prediction."""
        if last:
            return self._box.stop[2]
        matrix = self._fused.grid.to_index_of(self._grid)
        stop = math.floor(float((received - 1 - matrix[2, 3]) / matrix[2, 2])) + 1
        return min(max(stop, self._next), self._box.stop[2])

    def _decide(self, probabilities: Array, first: int, stop: int) -> None:
        """Decide the label map up to plane ``stop``, from planes of the prediction that begin with
        ``first``."""
        planes = Box((0, 0, first), (*self._grid.shape[:2], first + probabilities.shape[3]))
        box = Box((*self._box.start[:2], self._next), (*self._box.stop[:2], stop))
        self._next = stop
        if not box.empty:
            source = self._grid.crop(planes)
            if self._how.argmax_on == "stage_grid":
                self._write_nearest(probabilities, source, box)
            else:
                grid, view = self._fused.grid.crop(box), self._fused.labels[box.slices]
                write_argmax(
                    view, probabilities, source, grid, self._classes, self._region, self._how, self._pasted
                )

    def _write_nearest(self, probabilities: Array, source: Grid, box: Box) -> None:
        decided = plane_zeros(source.shape, "uint8", probabilities)
        how = replace(self._how, kernels=LINEAR)  # nothing is interpolated
        write_argmax(decided, probabilities, source, source, self._classes, how=how)
        for block in blocks(box):
            grid, view = self._fused.grid.crop(block), self._fused.labels[block.slices]
            set_where(
                view, nearest_index(decided, source, grid), region_mask_on(self._region, grid), self._pasted
            )


def times_atlas(prediction: StagePrediction, atlas: StagePrediction) -> StagePrediction:
    """``prediction`` times the atlas prior of the same labels, on the prediction's grid, normalised in every
    voxel. The background's atlas prior includes all labels that the prediction lacks. Where the product is
    zero for all labels, the voxel is background."""
    xp, atlas = namespace(prediction.probabilities), atlas.on_device_of(prediction.probabilities)
    shares = resample_data(as_float32(atlas.probabilities), atlas.grid, prediction.grid)
    wanted = xp.stack([shares[atlas.channel(name)] for name in prediction.labels])
    rest = xp.clip(xp.sum(shares, axis=0) - xp.sum(wanted, axis=0), min=0.0)
    product = prediction.probabilities * xp.concat([rest[None], wanted])
    product[0] += xp.sum(product, axis=0) == 0
    product /= xp.sum(product, axis=0)
    return replace(prediction, probabilities=product)


def most_probable(fused: FusedLabelMap, inputs: Sequence[FusionInput]) -> None:
    """Erase the labels that the predictions decide from the label map, and write their foreground over it. If
    several predict foreground, the highest probability wins, or the first of equal ones. Background never
    wins, so the order of the predictions does not matter otherwise."""
    candidates = [_Candidate.of(fused, one) for one in inputs]
    _erase(fused, {c for candidate in candidates for c in candidate.classes})
    xp = namespace(fused.labels)
    for block in blocks(_union(candidate.box for candidate in candidates)):
        best = plane_zeros(block.shape, "float32", fused.labels)
        for candidate in candidates:
            box = candidate.box.intersect(block)
            if box.empty:
                continue
            view, highest = fused.labels[box.slices], best[box.relative_to(block.start).slices]
            label, probability = candidate.on(fused.grid.crop(box))
            probability *= label > 0
            view[...] = xp.where(probability > highest, label, view)
            highest[...] = xp.maximum(probability, highest)


def majority_vote(fused: FusedLabelMap, inputs: Sequence[FusionInput]) -> None:
    """Set every voxel of any prediction's region to the label, or background, that most of them predict. Ties
    are decided by the highest single probability, and equal probabilities by the first prediction. Zhou et
    al. 2016."""
    candidates = [_Candidate.of(fused, one) for one in inputs]
    xp = namespace(fused.labels)
    for block in blocks(_union(one.box for one in candidates), BLOCK_VOXELS // len(candidates)):
        votes = [_vote(fused, candidate, block) for candidate in candidates]
        best, view = plane_zeros(block.shape, "float32", fused.labels), fused.labels[block.slices]
        for label, probability in votes:
            score = probability / 2
            for other, cast in votes:
                score += (other == label) & (cast > 0)
            # Half a probability is less than a vote, so it only decides between equal votes.
            score *= probability > 0
            view[...] = xp.where(score > best, label, view)
            best = xp.maximum(score, best)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A prediction that is resampled to the scan's grid block by block."""

    prediction: StagePrediction
    box: Box
    """Box of the scan's grid around the prediction's region."""
    classes: tuple[int, ...]
    """Classes of the label map, by channel of the prediction."""
    decided: tuple[Array, Array] | None
    """Probability and class of the winner on the stage's grid, if labels are decided there."""

    @classmethod
    def of(cls, fused: FusedLabelMap, one: FusionInput) -> _Candidate:
        prediction, decided = one.prediction, None
        classes = _classes(fused, prediction.labels)
        if one.how.argmax_on == "stage_grid":
            decided = max_on(prediction.probabilities, prediction.grid, prediction.grid, classes)
        return cls(prediction, prediction.region.box_on(fused.grid), classes, decided)

    def on(self, grid: Grid) -> tuple[Array, Array]:
        """On a block of the scan, each of its shape: the winning class (uint8) and its probability, which is
        zero outside the region for which the prediction is valid."""
        source = self.prediction.grid
        if self.decided is None:
            best, winner = max_on(self.prediction.probabilities, source, grid, self.classes)
        else:
            best, winner = (nearest_index(x, source, grid) for x in self.decided)
        asked = region_mask_on(self.prediction.region, grid)
        if asked is not None:
            best *= array_like(asked, best)
        return winner, best


def _classes(fused: FusedLabelMap, labels: tuple[str, ...]) -> tuple[int, ...]:
    """Classes of the label map, by channel of a prediction of these labels."""
    return (0, *(fused.schema.class_of(name) for name in labels))


def _vote(fused: FusedLabelMap, candidate: _Candidate, block: Box) -> tuple[Array, Array]:
    """As ``_Candidate.on``, for a block that extends beyond the prediction's box."""
    whole = tuple(plane_zeros(block.shape, dtype, fused.labels) for dtype in ("uint8", "float32"))
    box = candidate.box.intersect(block)
    if not box.empty:
        for out, found in zip(whole, candidate.on(fused.grid.crop(box)), strict=True):
            out[box.relative_to(block.start).slices] = found
    return whole[0], whole[1]


def _union(boxes: Iterable[Box]) -> Box:
    return functools.reduce(Box.union, boxes)


def _erase(fused: FusedLabelMap, classes: Collection[int]) -> None:
    """Set these classes to background."""
    for plane in namespace(fused.labels).permute_dims(fused.labels, PLANES_FIRST):
        for c in classes:
            plane *= plane != c


def keep_only(fused: FusedLabelMap, labels: Collection[str]) -> None:
    """Set all other labels to background."""
    keep = {fused.schema.class_of(name) for name in labels}
    _erase(fused, {fused.schema.class_of(name) for name in fused.schema.names} - keep)


def keep_parts(fused: FusedLabelMap, labels: Iterable[str], kept: Callable[[Mask], Mask]) -> None:
    """Set voxels of these labels to background unless they are in ``kept``."""
    classes = [fused.schema.class_of(name) for name in labels]
    if not classes:
        return
    data = to_numpy(fused.labels)
    for c, box in class_boxes(data, classes).items():
        own = data[box.slices] == c
        data[box.slices][own & ~kept(own)] = 0
    fused.labels[...] = array_like(data, fused.labels)


def remove(fused: FusedLabelMap, labels: Iterable[str]) -> tuple[str, ...]:
    """Set all voxels of these labels to background; returns those that had any."""
    classes = [fused.schema.class_of(name) for name in labels]
    if not classes:
        return ()
    found = class_boxes(to_numpy(fused.labels), classes)
    _erase(fused, found.keys())
    return tuple(fused.schema.names[c - 1] for c in found)


def find_misplaced(
    fused: FusedLabelMap, known: Mapping[str, TypicalPosition], remove: bool
) -> dict[str, Misplaced]:
    """Parts of organs that lie far from their positions in training, by organ (see ``anatomy.positions``);
    with ``remove``, they are removed from the label map."""
    data, names = to_numpy(fused.labels), fused.schema.names
    found = misplaced(data, fused.grid, names, known, remove)
    if found and remove:
        fused.labels[...] = array_like(data, fused.labels)
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
