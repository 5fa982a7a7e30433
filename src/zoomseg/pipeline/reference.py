"""References as targets of a stage: on its grid, with its labels."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Grid, Index3
from zoomseg.core.labels import IGNORE
from zoomseg.core.region import class_boxes, class_counts
from zoomseg.core.resample import resample_labels
from zoomseg.core.volume import LabelMap

Classes = npt.NDArray[np.uint8]


def stage_labels(reference: LabelMap, labels: tuple[str, ...], grid: Grid, blocks: Index3) -> Classes:
    """The reference on ``grid``, as class indices of a stage that predicts ``labels``: of each voxel the most
    frequent one of its block of the reference's voxels, or the nearest one. Beyond the reference its edge is
    repeated.

    Args:
        blocks: voxels of the reference in one of ``grid``, by axis; 1: the nearest (see
            ``grid.label_blocks``).
    """
    table = np.zeros(256, dtype=np.uint8)
    table[IGNORE] = IGNORE
    for own, name in enumerate(labels, start=1):
        table[reference.schema.class_of(name)] = own
    i, j, k = (n * block for n, block in zip(grid.shape, blocks, strict=True))
    out: Classes = table[resample_labels(reference, grid.with_shape((i, j, k))).data]
    return out if math.prod(blocks) == 1 else most_frequent(out, blocks)


def one_hot_labels(
    reference: LabelMap, labels: tuple[str, ...], grid: Grid, blocks: Index3
) -> npt.NDArray[np.float32]:
    """``stage_labels`` as probabilities ``[1 + labels, *grid.shape]`` of 0 and 1."""
    classes = stage_labels(reference, labels, grid, blocks)
    return np.stack([(classes == c).astype(np.float32) for c in range(1 + len(labels))])


def most_frequent(classes: Classes, blocks: Index3) -> Classes:
    """The most frequent class of each block of ``[I, J, K]``, whose sides are multiples of ``blocks``. Of
    equally frequent ones it is IGNORE, otherwise the lowest organ, and background last: a rule without a
    direction, by which an organ as thin as half a block remains."""
    a, b, d = (n // block for n, block in zip(classes.shape, blocks, strict=True))
    winner = np.zeros((a, b, d), dtype=np.uint8)
    most = np.zeros((a, b, d), dtype=np.int32)
    background = np.full((a, b, d), math.prod(blocks), dtype=np.int32)
    present = np.flatnonzero(class_counts(classes)[1:]) + 1
    boxes = class_boxes(classes, present.tolist())
    for c in sorted(boxes, key=lambda c: (c != IGNORE, c)):
        start = [n // block for n, block in zip(boxes[c].start, blocks, strict=True)]
        stop = [-(-n // block) for n, block in zip(boxes[c].stop, blocks, strict=True)]
        i, j, k = (slice(m, n) for m, n in zip(start, stop, strict=True))
        voxels = tuple(slice(m * block, n * block) for m, n, block in zip(start, stop, blocks, strict=True))
        found = _block_sums(classes[voxels] == c, blocks)
        background[i, j, k] -= found
        more = found > most[i, j, k]
        winner[i, j, k][more] = c
        most[i, j, k][more] = found[more]
    winner[background > most] = 0
    return winner


def _block_sums(mask: npt.NDArray[np.bool_], blocks: Index3) -> npt.NDArray[np.int32]:
    """Voxels of a mask ``[I, J, K]`` in each block."""
    i, j, k = mask.shape
    out = mask.reshape(i // blocks[0], blocks[0], j, k).sum(axis=1, dtype=np.int32)
    out = out.reshape(len(out), j // blocks[1], blocks[1], k).sum(axis=2)
    total: npt.NDArray[np.int32] = out.reshape(*out.shape[:2], k // blocks[2], blocks[2]).sum(axis=3)
    return total
