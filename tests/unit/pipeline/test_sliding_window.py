"""Sliding window over a scan: fused slab by slab or held whole, the prediction is the same; two passes make
one record."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_recipe
from zoomseg.backends.device import give_back_memory, keep_memory
from zoomseg.core import tiling
from zoomseg.core.arrays import to_numpy
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.tiling import PointwiseHead, Tile
from zoomseg.core.volume import Volume
from zoomseg.inference.resource_usage import rise
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.fusion import FusedLabelMap
from zoomseg.pipeline.sliding_window import (
    SlidingWindow,
    SplitNetwork,
    StageRecord,
    TileProgress,
)
from zoomseg.pipeline.uncertainty import UncertaintyEstimator
from zoomseg.recipe.spec import ImageInput

RECIPE = tiny_recipe(together=True)
STAGE = RECIPE.stages[1].model_copy(update={"inputs": (ImageInput(),)})
CLOSED = ((False, False),) * 3


def softmax(logits_BCIJK: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        likely = np.exp(logits_BCIJK - logits_BCIJK.max(axis=1, keepdims=True))
        return likely / likely.sum(axis=1, keepdims=True)


def bright(x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
    image = x_BCIJK[:, 0]
    return softmax(4 * np.stack([0.4 - image, image - 0.4, 0 * image], axis=1))


def test_a_prediction_entered_slab_by_slab_is_that_which_is_kept() -> None:
    scan = stage_input.prepare(Case("a", tiny_case(0)[0]), RECIPE)
    region = Region(scan.grid, Box((2, 0, 1), (22, 20, 15)))
    view = stage_input.StageView(STAGE, scan.grid, region)
    gathered, told = [], []
    fused = FusedLabelMap.blank(scan.grid, SCHEMA, np.empty(0))
    for whole in (True, False):
        window = SlidingWindow(view, scan, {}, SCHEMA.names, bright, CPU, on_progress=told.append)
        estimator = UncertaintyEstimator(SCHEMA.names, region, CLOSED)
        if whole:
            prior = window.predict(estimator)
        else:
            window.fuse_into(fused, estimator)
        gathered.append(estimator.uncertainty())
    winner = to_numpy(prior.probabilities).argmax(axis=0)
    here = window.box.slices
    assert np.array_equal(to_numpy(fused.labels[here]) == 1, (winner == 1) & prior.in_region)
    assert gathered[0] == gathered[1]
    assert gathered[0]["left kidney"].voxels == int(((winner == 1) & prior.in_region).sum()) > 100
    tiles = len(window.tiling.tiles)
    assert told[-1] == TileProgress("fine", tiles, tiles)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("whole", [True, False])
def test_numbers_that_overflow_are_no_answer(number: float, whole: bool) -> None:
    """In one voxel, and in one class other than background."""
    scan = stage_input.prepare(Case("a", tiny_case(0)[0]), RECIPE)
    region = Region(scan.grid, scan.grid.box)

    def overflowing(x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
        logits = np.zeros((len(x_BCIJK), 3, *x_BCIJK.shape[2:]), dtype=np.float32)
        logits[-1, 1 if number > 0 else slice(None), 3, 4, 5] = number
        return softmax(logits)

    window = SlidingWindow(
        stage_input.StageView(STAGE, scan.grid, region), scan, {}, SCHEMA.names, overflowing, CPU
    )
    estimator, fused = (
        UncertaintyEstimator(SCHEMA.names, region, CLOSED),
        FusedLabelMap.blank(scan.grid, SCHEMA, np.empty(0)),
    )
    take = window.predict if whole else partial(window.fuse_into, fused)
    with pytest.raises(ModelError, match="stage 'fine' produced values that are not finite"):
        take(estimator)


def test_a_network_in_two_parts_is_entered_as_the_whole_one() -> None:
    """To rounding: of the labels, at most those of a few voxels whose classes are nearly alike."""
    scan = stage_input.prepare(Case("a", tiny_case(0)[0]), RECIPE)
    region = Region(scan.grid, Box((2, 0, 1), (22, 20, 15)))
    stage = STAGE.model_copy(update={"mean": "geometric"})
    head = PointwiseHead(np.array([[-4], [4], [0]], np.float32), np.array([1.6, -1.6, 0], np.float32))
    network = SplitNetwork(lambda x_BCIJK, tiles: x_BCIJK[:, :1], head)
    found = []
    for one in (network, partial(network)):  # the second is no SplitNetwork any more
        view = stage_input.StageView(stage, scan.grid, region)
        fused = FusedLabelMap.blank(scan.grid, SCHEMA, np.empty(0))
        estimator = UncertaintyEstimator(SCHEMA.names, region, CLOSED)
        SlidingWindow(view, scan, {}, SCHEMA.names, one, CPU).fuse_into(fused, estimator)
        whole = SlidingWindow(view, scan, {}, SCHEMA.names, one, CPU).predict()
        found.append((fused.labels, estimator.uncertainty(), whole.probabilities))
    (labels, uncertainty, probabilities), (labels_of_whole, of_whole, probabilities_of_whole) = found
    assert 100 < (labels == 1).sum() < labels.size - 100
    assert (labels != labels_of_whole).sum() <= 2
    np.testing.assert_allclose(probabilities, probabilities_of_whole, atol=1e-5)
    assert uncertainty["left kidney"].expected_dice == pytest.approx(
        of_whole["left kidney"].expected_dice, abs=1e-4
    )


def test_of_a_network_in_two_parts_no_row_of_tiles_is_held_for_every_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiling, "LOGITS_AT_ONCE", 2**20)
    names = tuple(f"organ {n}" for n in range(199))
    schema, grid = LabelSchema.consecutive(list(names)), Grid.from_spacing((64, 64, 48), (1.0, 1.0, 1.0))
    image = Volume(np.zeros((1, *grid.shape), np.float32), grid)
    sides = STAGE.grid.model_copy(update={"mm": (1.0, 1.0, 1.0), "tile": (64, 64, 48)})
    stage = STAGE.model_copy(update={"mean": "geometric", "grid": sides})
    scan = stage_input.prepare(Case("a", image), RECIPE)
    region = Region.whole(grid)
    weight = np.zeros((200, 1), np.float32)
    bias = np.where(np.arange(200) == 7, 20.0, 0.0).astype(np.float32)
    network = SplitNetwork(lambda x_BCIJK, tiles: x_BCIJK[:, :1], PointwiseHead(weight, bias))
    fused = FusedLabelMap.blank(grid, schema, np.empty(0))

    def fill() -> None:
        window = SlidingWindow(stage_input.StageView(stage, grid, region), scan, {}, names, network, CPU)
        window.fuse_into(fused, UncertaintyEstimator(names, region, CLOSED))

    fill()  # what libraries take when they are first used
    give_back_memory()
    row = 4 * 200 * grid.box.voxels
    try:
        assert rise(fill) < row / 3
    finally:
        keep_memory()
    assert (fused.labels == 7).all()


def test_two_passes_make_one_record() -> None:
    first = StageRecord("fine", (8, 8, 8), 2.0, 1.5, 4, 1, 0.2)
    again = StageRecord("fine", (4, 8, 8), 3.0, 2.0, 6, 0, 0.3)
    assert first.and_then(again, ("liver",)) == StageRecord(
        "fine", (4, 8, 8), pytest.approx(5.0), pytest.approx(3.5), 10, 1, 0.3, 0, ("liver",)
    )
