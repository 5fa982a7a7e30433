"""The reference on a stage's grid, with the stage's labels."""

from __future__ import annotations

import numpy as np

from zoomseg.core.geometry import Grid
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.pipeline.reference import one_hot_labels, stage_labels

SCHEMA = LabelSchema(("liver", "spleen", "aorta"), (4, 5, 6))
GRID = Grid.from_spacing((4, 1, 1), (2.0, 2.0, 2.0))
REFERENCE = LabelMap(np.array([1, 2, 3, IGNORE], dtype=np.uint8).reshape(4, 1, 1), GRID, SCHEMA)


def test_other_labels_are_background_and_what_is_ignored_stays_so() -> None:
    found = stage_labels(REFERENCE, ("aorta", "liver"), GRID)
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == [2, 0, 1, IGNORE]


def test_a_finer_grid_takes_the_nearest() -> None:
    fine = GRID.with_spacing((1.0, 2.0, 2.0))
    assert stage_labels(REFERENCE, ("spleen",), fine).ravel().tolist() == [0, 0, 1, 1, 0, 0, IGNORE, IGNORE]


def test_certainties_sum_to_one_but_where_nothing_is_known() -> None:
    certain = one_hot_labels(REFERENCE, ("spleen",), GRID)
    assert certain[:, :, 0, 0].tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
