"""The reference on a stage's grid, with the stage's labels."""

from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.resample import resample_data
from zoomseg.core.volume import LabelMap
from zoomseg.pipeline.reference import most_frequent, one_hot_labels, stage_labels

SCHEMA = LabelSchema(("liver", "spleen", "aorta"), (4, 5, 6))
GRID = Grid.from_spacing((4, 1, 1), (2.0, 2.0, 2.0))
ONE = (1, 1, 1)
REFERENCE = LabelMap(np.array([1, 2, 3, IGNORE], dtype=np.uint8).reshape(4, 1, 1), GRID, SCHEMA)


def test_other_labels_are_background_and_what_is_ignored_stays_so() -> None:
    found = stage_labels(REFERENCE, ("aorta", "liver"), GRID, ONE)
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == [2, 0, 1, IGNORE]


def test_a_finer_grid_takes_the_nearest() -> None:
    fine = GRID.with_spacing((1.0, 2.0, 2.0))
    found = stage_labels(REFERENCE, ("spleen",), fine, ONE)
    assert found.ravel().tolist() == [0, 0, 1, 1, 0, 0, IGNORE, IGNORE]


def test_certainties_sum_to_one_but_where_nothing_is_known() -> None:
    certain = one_hot_labels(REFERENCE, ("spleen",), GRID, ONE)
    assert certain[:, :, 0, 0].tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]


# --- a scan downsampled by whole factors ------------------------------------------------------------


@pytest.mark.parametrize(
    ("voxels", "most"),
    [
        ([0, 0, 0, 0, 0, 0, 1, 1], 0),
        ([0, 0, 0, 1, 1, 1, 2, 2], 1),
        ([0, 0, 1, 1, 1, 2, 2, 2], 1),
        ([0, 0, 2, 2, 2, 2, 0, 0], 2),
        ([0, 0, 0, 1, 1, 2, 2, 2], 2),
        ([IGNORE, IGNORE, IGNORE, IGNORE, 1, 1, 1, 1], IGNORE),
        ([IGNORE, IGNORE, IGNORE, 1, 1, 1, 1, 0], 1),
        ([IGNORE, IGNORE, IGNORE, 0, 0, 0, 0, 0], 0),
    ],
)
def test_of_equally_frequent_classes_what_is_ignored_goes_first_and_background_last(
    voxels: list[int], most: int
) -> None:
    """In whatever order the voxels lie."""
    for order in (voxels, voxels[::-1]):
        block = np.array(order, dtype=np.uint8).reshape(2, 2, 2)
        assert most_frequent(block, (2, 2, 2)).ravel().tolist() == [most]


@pytest.mark.parametrize("blocks", [(2, 2, 2), (3, 1, 2), (4, 4, 1), (1, 1, 5)])
def test_every_block_is_counted_by_itself(blocks: Index3) -> None:
    shape = tuple(3 * block for block in blocks)
    classes = np.random.default_rng(0).choice(np.array([0, 0, 1, 2, 7, IGNORE], dtype=np.uint8), shape)
    found = most_frequent(classes, blocks)
    assert found.shape == (3, 3, 3)
    order = [IGNORE, 1, 2, 7, 0]
    for at in np.ndindex(3, 3, 3):
        own = classes[tuple(slice(n * b, (n + 1) * b) for n, b in zip(at, blocks, strict=True))]
        assert found[at] == max(order, key=lambda c: (int((own == c).sum()), -order.index(c)))


def ball(grid: Grid, middle: np.ndarray, radius: float) -> LabelMap:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    inside = ((index - middle) ** 2).sum(axis=-1) < radius**2
    return LabelMap(inside.astype(np.uint8), grid, SCHEMA)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_an_organ_is_at_the_place_of_its_image(factor: int) -> None:
    """Over balls anywhere between the voxels, the middle of the labels and that of the image, both on the
    downsampled grid, agree within a tenth of a voxel of the scan, along every axis."""
    grid = Grid.from_spacing((36, 36, 36), (1.0, 1.0, 1.0))
    blocks = (factor, factor, factor)
    low = grid.downsampled(blocks)
    rng, apart = np.random.default_rng(0), []
    for _ in range(40):
        organ = ball(grid, 17.5 + rng.uniform(-3, 3, 3), 9)
        seen = resample_data(organ.data[None].astype(np.float32), grid, low)[0]
        found = stage_labels(organ, ("liver",), low, blocks)
        index = np.stack(np.meshgrid(*(np.arange(n) for n in low.shape), indexing="ij"), axis=-1)
        middles = [
            np.average(low.world(index.reshape(-1, 3)), axis=0, weights=weights.ravel())
            for weights in (found, seen)
        ]
        apart.append(middles[0] - middles[1])
    assert np.abs(np.mean(apart, axis=0)).max() < 0.1


def test_an_organ_of_half_a_block_remains() -> None:
    thin = LabelMap(np.zeros((8, 8, 8), dtype=np.uint8), Grid.from_spacing((8, 8, 8), (1, 1, 1)), SCHEMA)
    thin.data[:, :, 2] = 1
    found = stage_labels(thin, ("liver",), thin.grid.downsampled((2, 2, 2)), (2, 2, 2))
    assert [int(layer.sum()) for layer in found.transpose(2, 0, 1)] == [0, 16, 0, 0]


def test_the_last_block_may_end_beyond_the_scan_whose_edge_is_repeated() -> None:
    """Seven voxels are four blocks of two; the box begins at the third block and ends at the sixth."""
    line = LabelMap(
        np.array([0, 0, 0, 0, 2, 2, 1], dtype=np.uint8).reshape(7, 1, 1),
        Grid.from_spacing((7, 1, 1), (1.0, 1.0, 1.0)),
        SCHEMA,
    )
    low = line.grid.downsampled((2, 1, 1))
    assert stage_labels(line, ("liver", "spleen"), low, (2, 1, 1)).ravel().tolist() == [0, 0, 2, 1]
    beyond = low.crop(Box((2, 0, 0), (6, 1, 1)))
    assert stage_labels(line, ("liver", "spleen"), beyond, (2, 1, 1)).ravel().tolist() == [2, 1, 1, 1]
