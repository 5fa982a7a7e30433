"""The highest of many channels that are interpolated from one grid to another, piece by piece: no array of
(classes x voxels of the target) ever exists.

An interpolated probability lies between the lowest and the highest of its neighbours, so that most classes
cannot win in most pieces and are not computed there. The result equals the naive full-size argmax.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import array_api_compat
import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import Array, array_like, memory_order, namespace, to_numpy
from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.region import Region
from zoomseg.core.resample import (
    AxisInterpolations,
    AxisWeights,
    axis_weights,
    axiswise,
    contract,
)
from zoomseg.pipeline import grid as grids
from zoomseg.recipe.spec import ArgmaxPlace, Stage

PIECE_SIDE = 48
"""Side of the pieces that are decided at once, in voxels: few classes are likely in a small piece; all others
cannot win there and cost nothing."""

ROUNDING = 1e-5
"""Interpolation distinguishes two probabilities if they differ by more than this."""

LINEAR: AxisInterpolations = ("linear", "linear", "linear")

PLANES_FIRST = (2, 1, 0)
"""Axes k, j, i: label maps are stored plane by plane, as they are filled and as in files."""


@dataclass(frozen=True)
class LabelDecision:
    """How the labels of the scan's voxels are decided from a stage's prediction."""

    argmax_on: ArgmaxPlace = "scan_grid"
    kernels: AxisInterpolations = LINEAR
    """Interpolation of the prediction along each axis."""
    logs: bool = False
    """Whether logarithms of probabilities are interpolated, up to a constant per voxel."""
    overlap: bool = False
    """Whether labels overlap."""

    @classmethod
    def of(cls, stage: Stage, scan: Grid) -> LabelDecision:
        """As the stage says, for a scan on this grid."""
        kernels = grids.prediction_kernels(stage.grid, scan)
        return cls(stage.argmax_on, kernels, stage.mean == "geometric", stage.labels_overlap)


PROBABILITIES = LabelDecision()
"""Probabilities, linearly interpolated to the scan's grid."""


def max_on(probabilities: Array, source: Grid, target: Grid, classes: Sequence[int]) -> tuple[Array, Array]:
    """Highest probability (float32) and the class (uint8) of its channel, each ``target.shape``, of ``[C,
    ...]`` on ``source`` linearly resampled to ``target``; ties go to the lower channel, as in argmax."""
    best, winner = (plane_zeros(target.shape, dtype, probabilities) for dtype in ("float32", "uint8"))
    for piece, channels in _contested(probabilities, source, target):
        label, lead = _winner(piece, channels, classes)
        winner[piece.box.slices] = label
        best[piece.box.slices] = lead + piece.blended(piece.near[channels[0]][None])[0]
    return best, winner


def write_argmax(
    labels: Array,
    probabilities: Array,
    source: Grid,
    target: Grid,
    classes: Sequence[int],
    region: Region | None = None,
    how: LabelDecision = PROBABILITIES,
    pasted: bool = False,
) -> None:
    """Set ``labels`` (uint8, ``target.shape``) to the classes of ``max_on``, inside ``region`` if given.
    Where only one channel can win, nothing is interpolated. ``pasted`` as in ``set_where``."""
    found = _contested(probabilities, source, target, how)
    for planes, row in itertools.groupby(found, key=lambda one: one[0].box.slices[2]):
        box = Box((0, 0, planes.start), (*target.shape[:2], planes.stop))
        asked = None if region is None else region_mask_on(region, target.crop(box))
        view = labels[box.slices]
        for piece, channels in row:
            i, j, _ = piece.box.slices
            if asked is not None and not asked[i, j].any():
                continue
            alone = len(channels) == 1
            label = classes[channels[0]] if alone else _winner(piece, channels, classes, how.overlap)[0]
            set_where(view[i, j], label, None if asked is None else asked[i, j], pasted)


def region_mask_on(region: Region, grid: Grid) -> npt.NDArray[np.bool_] | None:
    """Mask of the voxels of a grid inside a region's box that belong to the region; None if all do."""
    return None if region.mask is None else to_numpy(region.on(grid).mask_in(grid.box))


def set_where(
    view: Array, label: Array | int, asked: npt.NDArray[np.bool_] | None, pasted: bool = False
) -> None:
    """Set ``view`` to ``label`` where ``asked``; None: everywhere. ``pasted``: except where the label is
    background."""
    if pasted and isinstance(label, int):
        if label:
            set_where(view, label, asked)
    elif pasted:
        found = label > 0
        view += (found if asked is None else found & array_like(asked, view)) * (label - view)  # modulo 256
    elif asked is None:
        view[...] = label
    else:
        view += array_like(asked, view) * (label - view)  # modulo 256


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
    first, *others = (as_float32(piece.near[c]) for c in channels)
    lead = plane_zeros(piece.box.shape, "float32", piece.near)
    winner = plane_zeros(piece.box.shape, "uint8", piece.near)
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
    how: LabelDecision = PROBABILITIES,
) -> Iterator[tuple[_Piece, list[int]]]:
    """The pieces of a target, row by row of planes, and the channels that may be the highest somewhere in
    each. The highest values of all pieces are computed before any is read, as reading makes a GPU finish all
    its pending work.

    Raises:
        ValueError: the axes of the grids are not parallel. Those of stages are parallel to the scan's.
    """
    axes = axiswise(target.to_index_of(source), target.shape)
    if axes is None:
        raise ValueError(f"the axes of the grids are not parallel: {source}, {target}")
    xp = namespace(probabilities)
    planes = xp.permute_dims(probabilities, (0, *(1 + axes.order[a] for a in PLANES_FIRST)))
    weights = [
        axis_weights(
            how.kernels[a], source.shape[axes.order[a]], target.shape[a], axes.scale[a], axes.offset[a]
        )
        for a in PLANES_FIRST
    ]
    cuts = [_cuts(own, probabilities) for own in weights]
    pieces, highest = _pieces(planes, cuts), _maxima(planes, cuts)
    # Overlapping labels only have to exceed background, which is among the contenders everywhere.
    surest = np.zeros(len(highest), dtype=np.intp) if how.overlap else highest.argmax(axis=1)
    can_win = np.ones(highest.shape, dtype=np.bool_) if how.logs else contenders(highest)
    undecided = np.flatnonzero(can_win.sum(axis=1) > 1)
    if undecided.size:
        # The winner is also no lower than the lowest value of the most certain channel.
        lowest = _lowest([pieces[n].near[int(surest[n])] for n in undecided])
        can_win[undecided] &= highest[undecided] >= lowest[:, None] - ROUNDING
        can_win[:, 0] |= how.overlap
    for piece, mine in zip(pieces, can_win, strict=True):
        yield piece, np.flatnonzero(mine).tolist()


def _lowest(parts: Sequence[Array]) -> npt.NDArray[np.float32]:
    """The lowest value of each part."""
    xp = namespace(parts[0])
    return to_numpy(as_float32(xp.stack([xp.min(xp.reshape(part, (-1,))) for part in parts])))


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
        found.append(_Cut(start, stop, read, None if copies else array_like(own, like)))
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
    return to_numpy(as_float32(data)).transpose(*(1 + n for n in back), 0).reshape(-1, planes.shape[0])


def plane_zeros(shape: Index3, dtype: str, like: Array) -> Array:
    """Zeros ``[I, J, K]``, plane by plane in memory, of the library and on the device of ``like``."""
    xp = namespace(like)
    planes = xp.zeros(shape[::-1], dtype=getattr(xp, dtype), device=array_api_compat.device(like))
    return xp.permute_dims(planes, PLANES_FIRST)


def as_float32(array: Array) -> Array:
    xp = namespace(array)
    return xp.astype(array, xp.float32, copy=False)
