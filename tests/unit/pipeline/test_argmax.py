"""The piece-wise running argmax compared with the naive one, with numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.grids import SIGNED_PERMUTATIONS, boxes_in, oriented
from helpers.probabilities import LIBRARIES, naive, random_probabilities
from zoomseg.core.arrays import to_numpy
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.resample import resample_data
from zoomseg.pipeline import argmax

SOURCE = oriented((9, 8, 7), (3.0, 3.0, 5.0), (-12.0, 30.0, 8.0))


def agrees(probabilities: torch.Tensor, source: Grid, target: Grid) -> bool:
    """Assert equality, except where two classes differ by less than the rounding of a matrix product."""
    wanted, lead = naive(probabilities, source, target)
    full, classes = resample_data(probabilities, source, target, antialias=False), range(len(probabilities))
    close = (lead < 1e-6).numpy()
    for library in LIBRARIES:
        data, entered = library(probabilities), library(torch.full(target.shape, 255, dtype=torch.uint8))
        best, found = (to_numpy(x) for x in argmax.max_on(data, source, target, classes))
        assert found.dtype == np.uint8
        assert float(np.abs(best - full.amax(dim=0).numpy()).max()) < 1e-6
        argmax.write_argmax(entered, data, source, target, classes)
        assert np.array_equal(to_numpy(entered), found)
        if not bool(((found == wanted.numpy()) | close).all()):
            return False
    return True


def rarely_close(probabilities: torch.Tensor, source: Grid, target: Grid) -> bool:
    """Assert that ``agrees`` excludes at most one voxel in a hundred."""
    return float((naive(probabilities, source, target)[1] < 1e-6).float().mean()) < 0.01


TARGETS = {
    "same": SOURCE,
    "twice as fine": SOURCE.with_shape((18, 16, 14)),
    "coarser": SOURCE.downsampled((2, 2, 1.5)),
    "anisotropic": SOURCE.with_spacing((0.8, 2.9, 11.0)),
    "part of it": SOURCE.with_shape((18, 16, 14)).crop(Box((5, 2, 3), (13, 15, 9))),
    "larger than it": SOURCE.with_spacing((2.0, 2.5, 3.0)).crop(Box((-6, -3, -8), (21, 14, 17))),
    "beside it": SOURCE.crop(Box((12, 0, 0), (15, 8, 7))),
}


@pytest.mark.parametrize("name", TARGETS)
def test_argmax_equals_the_naive_one(name: str) -> None:
    probabilities = random_probabilities(SOURCE.shape)
    assert rarely_close(probabilities, SOURCE, TARGETS[name])
    assert agrees(probabilities, SOURCE, TARGETS[name])


def test_grids_with_other_axes_are_refused() -> None:
    oblique = oriented((16, 15, 14), (2.0, 2.0, 3.0), (-14.0, 26.0, 10.0), angles_deg=(8, -5, 12))
    with pytest.raises(ValueError, match="not parallel"):
        argmax.max_on(random_probabilities(SOURCE.shape), SOURCE, oblique, range(4))


@pytest.mark.parametrize(("order", "flip"), SIGNED_PERMUTATIONS[::5])
def test_argmax_equals_the_naive_one_in_any_orientation(
    order: tuple[int, int, int], flip: tuple[int, int, int]
) -> None:
    target = oriented((13, 12, 11), (2.0, 2.2, 2.6), (0.0, 42.0, 25.0), order, flip)
    probabilities = random_probabilities(SOURCE.shape, seed=1)
    assert rarely_close(probabilities, SOURCE, target)
    assert agrees(probabilities, SOURCE, target)


@settings(max_examples=40)
@given(st.data())
def test_argmax_equals_the_naive_one_wherever_classes_lie(data: st.DataObject) -> None:
    """Classes that exist in a box only, which may touch the source's edges."""
    probabilities = random_probabilities(SOURCE.shape, classes=6, seed=data.draw(st.integers(0, 1000)))
    logits = probabilities.log()
    for c in range(1, 6):
        outside = torch.ones(SOURCE.shape, dtype=torch.bool)
        outside[data.draw(boxes_in(SOURCE.shape)).slices] = False
        logits[c][outside] = -30
    spacing = data.draw(st.tuples(*(st.floats(1.0, 9.0) for _ in range(3))))
    grid = SOURCE.with_spacing(spacing)
    margin = data.draw(st.tuples(*(st.integers(0, 4) for _ in range(3))))
    target = grid.crop(grid.box.expand(margin))
    assume(rarely_close(logits.softmax(dim=0), SOURCE, target))
    assert agrees(logits.softmax(dim=0), SOURCE, target)


def test_ties_go_to_the_lower_class_as_in_argmax() -> None:
    """Two classes that share a scan half and half; halves and quarters are exact in floating point."""
    source = Grid.from_spacing((4, 4, 4), (2.0, 2.0, 2.0))
    probabilities = torch.zeros(4, *source.shape)
    probabilities[2, :2], probabilities[1, 2:] = 1, 1
    probabilities[:, 1, 1] = torch.tensor([0.25, 0.25, 0.25, 0.25])[:, None]
    probabilities[:, 3, 3] = torch.tensor([0.0, 0.0, 0.5, 0.5])[:, None]
    target = source.crop(Box((-1, 0, 0), (4, 4, 4))).with_shape((5, 8, 8))
    wanted, lead = naive(probabilities, source, target)
    assert (lead == 0).sum() > 10
    for library in LIBRARIES:
        found = argmax.max_on(library(probabilities), source, target, range(4))[1]
        assert np.array_equal(to_numpy(found), wanted.numpy())


def test_a_class_that_wins_with_exactly_its_share_is_found() -> None:
    """All 40 classes alike: 1/40 each, which is not exact in floating point."""
    probabilities = torch.full((40, 2, 2, 2), 1 / 40)
    probabilities[0] -= 1e-3
    probabilities[17] += 1e-3
    grid = Grid.from_spacing((2, 2, 2), (1.0, 1.0, 1.0))
    for library in LIBRARIES:
        assert (
            argmax.max_on(library(probabilities), grid, grid.with_shape((5, 5, 5)), range(40))[1] == 17
        ).all()


def test_classes_are_entered_by_channel_where_the_region_is() -> None:
    """Some pieces contain a single class, others several."""
    grid = Grid.from_spacing((60, 50, 55), (1.0, 1.0, 1.0))
    stage = grid.with_shape((20, 25, 11))
    logits = torch.zeros(3, *stage.shape)
    logits[1, 8:, :, :6], logits[2, 15:] = 9.0, 20.0
    probabilities, classes = logits.softmax(dim=0), (0, 9, 200)
    mask = (torch.rand(stage.shape, generator=torch.Generator().manual_seed(2)) < 0.5).numpy()
    mask[:10] = False
    inside = Region(stage, stage.box, mask).on(grid).mask_in(grid.box)
    wanted = np.array(classes)[naive(probabilities, stage, grid)[0].numpy()]
    assert set(np.unique(wanted[inside])) == set(classes)
    for library in LIBRARIES:
        labels = library(torch.full(grid.shape, 77, dtype=torch.uint8))
        region = Region(stage, stage.box, mask)
        argmax.write_argmax(labels, library(probabilities), stage, grid, classes, region)
        assert np.array_equal(to_numpy(labels), np.where(inside, wanted, 77))


def test_only_channels_that_can_win_are_contenders() -> None:
    """By hand: of 0.95 the first three have at least a third, 0.317; of 0.65 the first two half, 0.325."""
    highest = [[0.5, 0.45, 0.32, 0.05], [0.5, 0.45, 0.3, 0.05], [1.0, 0.1, 0.0, 0.0], [0.25] * 4]
    wanted = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert argmax.contenders(np.array(highest, dtype=np.float32)).astype(int).tolist() == wanted
