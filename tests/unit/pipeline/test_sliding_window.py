"""A stage's way over a scan: its parts, painted or whole, are heard alike; two passes make one record."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny import CPU, SCHEMA, tiny_case, tiny_recipe
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Box
from zoomseg.core.placing import Tile
from zoomseg.core.region import Region
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.fusion import FusedLabelMap
from zoomseg.pipeline.sliding_window import SlidingWindow, StageRecord, TileProgress
from zoomseg.pipeline.uncertainty import UncertaintyEstimator
from zoomseg.recipe.spec import ImageInput

RECIPE = tiny_recipe(together=True)
STAGE = RECIPE.stages[1].model_copy(update={"inputs": (ImageInput(),)})
CLOSED = ((False, False),) * 3


def bright(x_BCIJK: Tensor, tiles: tuple[Tile, ...]) -> Tensor:
    logits = torch.stack([0.4 - x_BCIJK[:, 0], x_BCIJK[:, 0] - 0.4, 0 * x_BCIJK[:, 0]], dim=1)
    return (4 * logits).softmax(dim=1)


def test_a_painted_answer_is_that_which_is_kept() -> None:
    scan = stage_input.prepare(Case("a", tiny_case(0)[0]), RECIPE)
    region = Region(scan.grid, Box((2, 0, 1), (22, 20, 15)))
    view = stage_input.StageView(STAGE, scan.grid, region)
    heard, told = [], []
    canvas = FusedLabelMap.blank(scan.grid, SCHEMA)
    for whole in (True, False):
        course = SlidingWindow(view, scan, {}, SCHEMA.names, bright, CPU, on_progress=told.append)
        hearing = UncertaintyEstimator(SCHEMA.names, region, CLOSED)
        if whole:
            prior = course.predict(hearing)
        else:
            course.fuse_into(canvas, hearing)
        heard.append(hearing.uncertainty())
    winner = prior.probabilities.argmax(dim=0).numpy()
    here = course.box.slices
    assert np.array_equal(canvas.labels[here].numpy() == 1, (winner == 1) & prior.answered)
    assert heard[0] == heard[1]
    assert heard[0]["left kidney"].voxels == int(((winner == 1) & prior.answered).sum()) > 100
    tiles = len(course.tiling.tiles)
    assert told[-1] == TileProgress("fine", tiles, tiles)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("whole", [True, False])
def test_numbers_that_overflow_are_no_answer(number: float, whole: bool) -> None:
    """In one voxel, and in one class but the background."""
    scan = stage_input.prepare(Case("a", tiny_case(0)[0]), RECIPE)
    region = Region(scan.grid, scan.grid.box)

    def overflowing(x_BCIJK: Tensor, tiles: tuple[Tile, ...]) -> Tensor:
        logits = torch.zeros(len(x_BCIJK), 3, *x_BCIJK.shape[2:])
        logits[-1, 1 if number > 0 else slice(None), 3, 4, 5] = number
        return logits.softmax(dim=1)

    course = SlidingWindow(
        stage_input.StageView(STAGE, scan.grid, region), scan, {}, SCHEMA.names, overflowing, CPU
    )
    hearing, canvas = (
        UncertaintyEstimator(SCHEMA.names, region, CLOSED),
        FusedLabelMap.blank(scan.grid, SCHEMA),
    )
    take = course.predict if whole else partial(course.fuse_into, canvas)
    with pytest.raises(ModelError, match="stage 'fine' answered with numbers that are not finite"):
        take(hearing)


def test_two_passes_make_one_record() -> None:
    first = StageRecord("fine", (8, 8, 8), 2.0, 1.5, 4, 1, 0.2)
    again = StageRecord("fine", (4, 8, 8), 3.0, 2.0, 6, 0, 0.3)
    assert first.and_then(again, ("liver",)) == StageRecord(
        "fine", (4, 8, 8), pytest.approx(5.0), pytest.approx(3.5), 10, 1, 0.3, 0, ("liver",)
    )
