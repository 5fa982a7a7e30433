"""``fusion``: how a stage's prediction is written to the case's label map, on the scan's own grid.

This is done piece by piece: no array of (classes x scan voxels) ever exists. An interpolated probability lies
between the lowest and the highest of its neighbours, so that most classes cannot win in most pieces and are
not computed there. The result equals the naive full-size argmax.

Arrays are numpy's or torch's; those of the label map and of the probabilities belong to the same library and
device.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import array_api_compat
import numpy as np
import numpy.typing as npt

from zoomseg.anatomy.positions import Misplaced, OrganPlaces, misplaced
from zoomseg.core.arrays import Array, beside, memory_order, namespace, to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.morphology import Mask
from zoomseg.core.region import Region, class_boxes
from zoomseg.core.resample import (
    AxisWeights,
    Kernels,
    axis_weights,
    axiswise,
    contract,
    nearest_index,
    resample_data,
)
from zoomseg.core.tiling import logarithms, overlapping
from zoomseg.pipeline import grid as grids
from zoomseg.recipe.spec import ArgmaxPlace, FusionKind, Stage

BLOCK_VOXELS = 8_000_000
"""Number of scan voxels whose mask, or whose probabilities of several stages, are held at once."""

PIECE_SIDE = 48
"""Side of the pieces that are decided at once, in voxels: few classes are likely in a small piece; all others
cannot win there and cost nothing."""

ROUNDING = 1e-5
"""Interpolation distinguishes two probabilities if they differ by more than this."""

LINEAR: Kernels = ("linear", "linear", "linear")

PLANES_FIRST = (2, 1, 0)
"""Axes k, j, i: label maps are stored plane by plane, as they are filled and as in files."""


@dataclass(frozen=True, eq=False)
class FusedLabelMap:
    """The label map under construction: class indices ``[I, J, K]`` (uint8) on the scan's ``grid``."""

    grid: Grid
    schema: LabelSchema
    labels: Array

    @classmethod
    def blank(cls, grid: Grid, schema: LabelSchema, like: Array) -> FusedLabelMap:
        """A label map of background, of the library and on the device of ``like``."""
        return cls(grid, schema, _zeros(grid.shape, "uint8", like))


@dataclass(frozen=True, eq=False)
class FusionInput:
    """A stage's prediction, and the grid on which its labels are decided."""

    prediction: StagePrediction
    argmax_place: ArgmaxPlace = "scan_grid"
    kernels: Kernels = LINEAR
    geometric: bool = False
    """Whether the logarithms of probabilities are interpolated."""
    overlap: bool = False
    """Whether labels overlap."""

    @classmethod
    def of(cls, stage: Stage, prediction: StagePrediction, fused: FusedLabelMap) -> FusionInput:
        """A stage's prediction, to be fused into this label map as the stage says."""
        return cls(
            prediction.beside(fused.labels),
            stage.argmax_on,
            grids.answer_kernels(stage.grid, fused.grid),
            stage.mean == "geometric",
            stage.labels_overlap,
        )


def enter_alone(stage: Stage, prediction: StagePrediction, fused: FusedLabelMap) -> None:
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
                replace_in_roi(
                    fused, one.prediction, one.argmax_place, one.kernels, one.geometric, one.overlap
                )
        case "replace_times_atlas":
            assert atlas is not None  # a recipe without one is refused
            for one in inputs:
                replace_in_roi(fused, times_atlas(one.prediction, atlas), one.argmax_place)
        case "paste":
            for one in inputs:
                paste(fused, one.prediction, one.argmax_place, one.kernels, one.geometric, one.overlap)
        case "most_probable":
            most_probable(fused, inputs)
        case "majority_vote":
            majority_vote(fused, inputs)


def replace_in_roi(
    fused: FusedLabelMap,
    prediction: StagePrediction,
    argmax_place: ArgmaxPlace = "scan_grid",
    kernels: Kernels = LINEAR,
    geometric: bool = False,
    overlap: bool = False,
) -> None:
    """Set the label map inside the prediction's region to its argmax, or to the last of overlapping labels
    that is likelier than background; outside, it is unchanged."""
    _enter_whole(fused, prediction, argmax_place, kernels, geometric, False, overlap)


def paste(
    fused: FusedLabelMap,
    prediction: StagePrediction,
    argmax_place: ArgmaxPlace = "scan_grid",
    kernels: Kernels = LINEAR,
    geometric: bool = False,
    overlap: bool = False,
) -> None:
    """Erase the prediction's labels from the whole label map, and write its foreground inside its region over
    the label map."""
    _enter_whole(fused, prediction, argmax_place, kernels, geometric, True, overlap)


def _enter_whole(
    fused: FusedLabelMap,
    prediction: StagePrediction,
    place: ArgmaxPlace,
    kernels: Kernels,
    geometric: bool,
    pasted: bool,
    overlap: bool,
) -> None:
    grid, labels, region = prediction.grid, prediction.labels, prediction.region
    slabs = SlabFusion(fused, grid, labels, region, place, kernels, geometric, pasted, overlap)
    slabs.add(logarithms(prediction.probabilities) if geometric else prediction.probabilities)


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
        place: ArgmaxPlace,
        kernels: Kernels = LINEAR,
        logs: bool = False,
        pasted: bool = False,
        overlap: bool = False,
    ) -> None:
        """``grid`` is that of the whole prediction, parallel to the label map's and not rotated against it.

        Args:
            kernels: interpolation of the prediction along each axis.
            logs: the prediction consists of logarithms of probabilities, up to a constant per voxel.
            pasted: as in ``paste``: background leaves the label map unchanged.
            overlap: its labels overlap.
        """
        self._overlap = overlap
        self._kernels = kernels
        self._logs = logs
        self._fused = fused
        # The voxel of certain background around a region would take almost half a voxel from every organ at
        # the region's end if it were interpolated in logarithms, of which it has by far the largest.
        self._read = grid.box_of(region.grid, region.box).intersect(grid.box) if logs else grid.box
        self._grid = grid.crop(self._read)
        self._region = region
        self._place = place
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
            if self._place == "stage_grid":
                self._enter_nearest(probabilities, source, box)
            else:
                grid, view = self._fused.grid.crop(box), self._fused.labels[box.slices]
                enter_argmax(
                    view,
                    probabilities,
                    source,
                    grid,
                    self._classes,
                    self._region,
                    self._kernels,
                    self._logs,
                    self._pasted,
                    self._overlap,
                )

    def _enter_nearest(self, probabilities: Array, source: Grid, box: Box) -> None:
        decided = _zeros(source.shape, "uint8", probabilities)
        enter_argmax(
            decided, probabilities, source, source, self._classes, logs=self._logs, overlap=self._overlap
        )
        for block in blocks(box):
            grid, view = self._fused.grid.crop(block), self._fused.labels[block.slices]
            _set(view, nearest_index(decided, source, grid), _asked(self._region, grid), self._pasted)


def times_atlas(prediction: StagePrediction, atlas: StagePrediction) -> StagePrediction:
    """``prediction`` times the atlas prior of the same labels, on the prediction's grid, normalised in every
    voxel. The background's atlas prior includes all labels that the prediction lacks. Where the product is
    zero for all labels, the voxel is background."""
    xp = namespace(prediction.probabilities)
    shares = resample_data(_float32(atlas.probabilities), atlas.grid, prediction.grid)
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
        best = _zeros(block.shape, "float32", fused.labels)
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
        best, view = _zeros(block.shape, "float32", fused.labels), fused.labels[block.slices]
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
        if one.argmax_place == "stage_grid":
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
        asked = _asked(self.prediction.region, grid)
        if asked is not None:
            best *= beside(asked, best)
        return winner, best


def _asked(region: Region, grid: Grid) -> npt.NDArray[np.bool_] | None:
    """Mask of the voxels of a grid inside a region's box that belong to the region; None if all do."""
    return None if region.mask is None else to_numpy(region.on(grid).mask_in(grid.box))


def _classes(fused: FusedLabelMap, labels: tuple[str, ...]) -> tuple[int, ...]:
    """Classes of the label map, by channel of a prediction of these labels."""
    return (0, *(fused.schema.class_of(name) for name in labels))


def _vote(fused: FusedLabelMap, candidate: _Candidate, block: Box) -> tuple[Array, Array]:
    """As ``_Candidate.on``, for a block that extends beyond the prediction's box."""
    whole = tuple(_zeros(block.shape, dtype, fused.labels) for dtype in ("uint8", "float32"))
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
    fused.labels[...] = beside(data, fused.labels)


def find_misplaced(
    fused: FusedLabelMap, known: Mapping[str, OrganPlaces], remove: bool
) -> dict[str, Misplaced]:
    """Parts of organs that lie far from their positions in training, by organ (see ``anatomy.positions``);
    with ``remove``, they are removed from the label map."""
    data, names = to_numpy(fused.labels), fused.schema.names
    found = misplaced(data, fused.grid, names, known, remove)
    if found and remove:
        fused.labels[...] = beside(data, fused.labels)
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


# --- the highest of many interpolated channels ----------------------------------------------------


def max_on(probabilities: Array, source: Grid, target: Grid, classes: Sequence[int]) -> tuple[Array, Array]:
    """Highest probability (float32) and the class (uint8) of its channel, each ``target.shape``, of ``[C,
    ...]`` on ``source`` linearly resampled to ``target``; ties go to the lower channel, as in argmax."""
    best, winner = (_zeros(target.shape, dtype, probabilities) for dtype in ("float32", "uint8"))
    for piece, channels in _contested(probabilities, source, target):
        label, lead = _winner(piece, channels, classes)
        winner[piece.box.slices] = label
        best[piece.box.slices] = lead + piece.blended(piece.near[channels[0]][None])[0]
    return best, winner


def enter_argmax(
    labels: Array,
    probabilities: Array,
    source: Grid,
    target: Grid,
    classes: Sequence[int],
    region: Region | None = None,
    kernels: Kernels = LINEAR,
    logs: bool = False,
    pasted: bool = False,
    overlap: bool = False,
) -> None:
    """Set ``labels`` (uint8, ``target.shape``) to the classes of ``max_on``, inside ``region`` if given.
    Where only one channel can win, nothing is interpolated. ``kernels``, ``logs``, ``pasted`` and ``overlap``
    as in ``SlabFusion``."""
    found = _contested(probabilities, source, target, kernels, logs, overlap)
    for planes, row in itertools.groupby(found, key=lambda one: one[0].box.slices[2]):
        box = Box((0, 0, planes.start), (*target.shape[:2], planes.stop))
        asked = None if region is None else _asked(region, target.crop(box))
        view = labels[box.slices]
        for piece, channels in row:
            i, j, _ = piece.box.slices
            if asked is not None and not asked[i, j].any():
                continue
            label = (
                classes[channels[0]] if len(channels) == 1 else _winner(piece, channels, classes, overlap)[0]
            )
            _set(view[i, j], label, None if asked is None else asked[i, j], pasted)


def _set(view: Array, label: Array | int, asked: npt.NDArray[np.bool_] | None, pasted: bool = False) -> None:
    """Set ``view`` to ``label`` where ``asked``; None: everywhere. ``pasted``: except where the label is
    background."""
    if pasted and isinstance(label, int):
        if label:
            _set(view, label, asked)
    elif pasted:
        found = label > 0
        view += (found if asked is None else found & beside(asked, view)) * (label - view)  # modulo 256
    elif asked is None:
        view[...] = label
    else:
        view += beside(asked, view) * (label - view)  # modulo 256


@dataclass(frozen=True, eq=False)
class _Piece:
    """A part of a target."""

    box: Box
    near: Array
    """Voxels of the source, of all channels, that contribute to the piece, ``[C, ...]``."""
    blended: Callable[[Array], Array]
    """Interpolation of ``[n, ...]`` there to ``[n, *box.shape]``."""


def _winner(
    piece: _Piece, channels: Sequence[int], classes: Sequence[int], overlap: bool = False
) -> tuple[Array, Array]:
    """Among some channels, in their order: the class (uint8) of the highest, and its difference to the first;
    for overlapping labels, the class of the last one that exceeds the first. The differences to the first are
    interpolated: one channel less, and equal channels stay equal. A running maximum is used because numpy's
    and torch's own over an array's first axis take ten times as long."""
    xp = namespace(piece.near)
    first, *others = (_float32(piece.near[c]) for c in channels)
    lead = _zeros(piece.box.shape, "float32", piece.near)
    winner = _zeros(piece.box.shape, "uint8", piece.near)
    winner += classes[channels[0]]
    if others:
        ahead = piece.blended(xp.stack([other - first for other in others]))
        for c, value in zip(channels[1:], ahead, strict=True):
            winner += (value > lead) * (classes[c] - winner)  # modulo 256
            if not overlap:
                lead = xp.maximum(lead, value)
    return winner, lead


def _contested(
    probabilities: Array,
    source: Grid,
    target: Grid,
    kernels: Kernels = LINEAR,
    logs: bool = False,
    overlap: bool = False,
) -> Iterator[tuple[_Piece, list[int]]]:
    """The pieces of a target, row by row of planes, and the channels that may be the highest somewhere in
    each. The highest values of all pieces are computed before any is read, as reading makes a GPU finish all
    its pending work."""
    axes = axiswise(target.to_index_of(source), target.shape)
    if axes is None:
        pieces, highest = _oblique_pieces(probabilities, source, target)
    else:
        xp = namespace(probabilities)
        planes = xp.permute_dims(probabilities, (0, *(1 + axes.order[a] for a in PLANES_FIRST)))
        weights = [
            axis_weights(
                kernels[a], source.shape[axes.order[a]], target.shape[a], axes.scale[a], axes.offset[a]
            )
            for a in PLANES_FIRST
        ]
        cuts = [_cuts(own, probabilities) for own in weights]
        pieces, highest = _pieces(planes, cuts), _maxima(planes, cuts)
    # Overlapping labels only have to exceed background, which is among the contenders everywhere.
    surest = np.zeros(len(highest), dtype=np.intp) if overlap else highest.argmax(axis=1)
    can_win = np.ones(highest.shape, dtype=np.bool_) if logs else contenders(highest)
    undecided = np.flatnonzero(can_win.sum(axis=1) > 1)
    if undecided.size:
        # The winner is also no lower than the lowest value of the most certain channel.
        lowest = _lowest([pieces[n].near[int(surest[n])] for n in undecided])
        can_win[undecided] &= highest[undecided] >= lowest[:, None] - ROUNDING
        can_win[:, 0] |= overlap
    for piece, mine in zip(pieces, can_win, strict=True):
        yield piece, np.flatnonzero(mine).tolist()


def _lowest(parts: Sequence[Array]) -> npt.NDArray[np.float32]:
    """The lowest value of each part."""
    xp = namespace(parts[0])
    return to_numpy(_float32(xp.stack([xp.min(xp.reshape(part, (-1,))) for part in parts])))


def contenders(highest: npt.NDArray[np.float32], rounding: float = ROUNDING) -> npt.NDArray[np.bool_]:
    """Channels that may be the highest somewhere among voxels and their interpolated values, given the
    channels' highest values there ``[..., C]``. Channels sum to one in every voxel, up to ``rounding``. An
    interpolated value is no higher than its channel's highest; so the winner is no lower than what all but
    the k highest channels leave to these, divided by k."""
    falling = -np.sort(-highest.astype(np.float64), axis=-1)
    left = 1 - (falling.sum(axis=-1, keepdims=True) - falling.cumsum(axis=-1))
    needed = (left / np.arange(1, highest.shape[-1] + 1)).max(axis=-1, keepdims=True)
    able: npt.NDArray[np.bool_] = highest >= needed - rounding
    return able


@dataclass(frozen=True, eq=False)
class _Cut:
    """A part of one axis of a target, the part of the source that it reads, and the weights ``[out, in]``;
    None if each voxel equals one of the source."""

    start: int
    stop: int
    read: slice
    weights: Array | None


def _cuts(weights: AxisWeights, like: Array) -> list[_Cut]:
    found = []
    for start, stop in _edges(len(weights)):
        read, own = weights.part(start, stop)
        copies = np.array_equal(own, np.eye(len(own), dtype=own.dtype))
        found.append(_Cut(start, stop, read, None if copies else beside(own, like)))
    return found


def _edges(size: int) -> list[tuple[int, int]]:
    count = math.ceil(size / PIECE_SIDE)
    return list(itertools.pairwise(size * n // count for n in range(count + 1)))


def _blended(values: Array, weights: Sequence[Array | None]) -> Array:
    """``[n, k, j, i]`` to ``[n, I, J, K]`` by the weights of k, j and i. The axis that grows least goes
    first, which leaves less data for the others."""
    steps = [(w.shape[0] / w.shape[1], axis, w) for axis, w in enumerate(weights, start=1) if w is not None]
    for _, axis, own in sorted(steps, key=lambda step: step[0]):
        values = contract(values, own, axis)
    return namespace(values).permute_dims(values, (0, 3, 2, 1))


def _pieces(planes: Array, cuts: Sequence[Sequence[_Cut]]) -> list[_Piece]:
    """The pieces of ``[C, k, j, i]``, along the target's axes, each of which is cut."""
    found = []
    for k, j, i in itertools.product(*cuts):
        box = Box((i.start, j.start, k.start), (i.stop, j.stop, k.stop))
        blended = functools.partial(_blended, weights=(k.weights, j.weights, i.weights))
        found.append(_Piece(box, planes[:, k.read, j.read, i.read], blended))
    return found


def _maxima(planes: Array, cuts: Sequence[Sequence[_Cut]]) -> npt.NDArray[np.float32]:
    """The highest value ``[pieces, C]`` of every channel in the same pieces. The slowest axis in memory goes
    first, all the others as one; all at once, or in another order, takes ten times as long."""
    xp = namespace(planes)
    order = [axis for axis in memory_order(planes) if axis != 0]
    data = xp.permute_dims(planes, (0, *order))
    for axis, a in enumerate(order, start=1):
        ahead = (slice(None),) * axis
        data = xp.stack([xp.max(data[(*ahead, cut.read)], axis=axis) for cut in cuts[a - 1]], axis=axis)
    back = [order.index(axis) for axis in (1, 2, 3)]
    return to_numpy(_float32(data)).transpose(*(1 + n for n in back), 0).reshape(-1, planes.shape[0])


def _oblique_pieces(
    probabilities: Array, source: Grid, target: Grid
) -> tuple[list[_Piece], npt.NDArray[np.float32]]:
    """As ``_pieces`` and ``_maxima``, for grids whose axes are not parallel."""
    xp, found = namespace(probabilities), []
    for k, j, i in itertools.product(*(_edges(target.shape[a]) for a in PLANES_FIRST)):
        box = Box((i[0], j[0], k[0]), (i[1], j[1], k[1]))
        grid = target.crop(box)
        near = _around(source, grid)
        blended = functools.partial(resample_data, source=source.crop(near), target=grid, antialias=False)
        found.append(_Piece(box, probabilities[(slice(None), *near.slices)], blended))
    flat = (xp.reshape(piece.near, (len(probabilities), -1)) for piece in found)
    return found, to_numpy(_float32(xp.stack([xp.max(part, axis=1) for part in flat])))


def _around(source: Grid, target: Grid) -> Box:
    """The voxels of ``source`` that contribute to ``target``; a target beyond the source reads the source's
    edge."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(target.shape) - 1)
    index = source.index(target.world(corners))
    # A margin of one voxel on either side, so that rounding loses nothing.
    low, high = np.floor(index.min(axis=0)) - 1, np.ceil(index.max(axis=0)) + 2
    last = np.array(source.shape) - 1
    start, stop = np.clip(low, 0, last).astype(int), np.clip(high, 1, last + 1).astype(int)
    return Box(tuple(start.tolist()), tuple(np.maximum(stop, start + 1).tolist()))


def _zeros(shape: Index3, dtype: str, like: Array) -> Array:
    """Zeros ``[I, J, K]``, plane by plane in memory, of the library and on the device of ``like``."""
    xp = namespace(like)
    planes = xp.zeros(shape[::-1], dtype=getattr(xp, dtype), device=array_api_compat.device(like))
    return xp.permute_dims(planes, PLANES_FIRST)


def _float32(array: Array) -> Array:
    xp = namespace(array)
    return xp.astype(array, xp.float32, copy=False)
