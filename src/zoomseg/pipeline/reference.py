"""References as targets of a stage: on its grid, with its labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Grid
from zoomseg.core.labels import IGNORE
from zoomseg.core.resample import resample_labels
from zoomseg.core.volume import LabelMap


def stage_labels(reference: LabelMap, labels: tuple[str, ...], grid: Grid) -> npt.NDArray[np.uint8]:
    """The reference on ``grid``, nearest neighbour, as class indices of a stage that predicts ``labels``."""
    table = np.zeros(256, dtype=np.uint8)
    table[IGNORE] = IGNORE
    for own, name in enumerate(labels, start=1):
        table[reference.schema.class_of(name)] = own
    out: npt.NDArray[np.uint8] = table[resample_labels(reference, grid).data]
    return out


def one_hot_labels(reference: LabelMap, labels: tuple[str, ...], grid: Grid) -> npt.NDArray[np.float32]:
    """``stage_labels`` as probabilities ``[1 + labels, *grid.shape]`` of 0 and 1."""
    classes = stage_labels(reference, labels, grid)
    return np.stack([(classes == c).astype(np.float32) for c in range(1 + len(labels))])
