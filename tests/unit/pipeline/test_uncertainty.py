"""Measures of a prediction's reliability, by hand; the ends of a region; and that parts add up to the whole;
with numpy and torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from zoomseg.core.arrays import Array
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.pipeline import uncertainty
from zoomseg.pipeline.uncertainty import OpenSides, Uncertainty, UncertaintyEstimator, region_ends

CLOSED: OpenSides = ((False, False),) * 3
LABELS = ("liver", "spleen")
Library = Callable[[torch.Tensor], Array]


@pytest.fixture(params=["numpy", "torch", "numpy, plane by plane", "torch, plane by plane"])
def library(request: pytest.FixtureRequest) -> Library:
    """Converts a tensor to an array, with its voxels in either memory order."""

    def array(values: torch.Tensor) -> Array:
        if "plane" in request.param:
            values = values.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
        return values.numpy() if "numpy" in request.param else values

    return array


def gathered(probabilities: Array, region: Region, parts: int = 1) -> UncertaintyEstimator:
    estimator = UncertaintyEstimator(LABELS, region, CLOSED)
    i, j, k = probabilities.shape[1:]
    for part in range(parts):
        first, last = k * part // parts, k * (part + 1) // parts
        estimator.add(probabilities[..., first:last], Box((0, 0, first), (i, j, last)))
    return estimator


def test_by_hand(library: Library) -> None:
    grid = Grid.from_spacing((5, 1, 1), (10.0, 10.0, 5.0))
    probabilities = torch.tensor(
        [[0.1, 0.2, 0.9, 0.4, 0.0], [0.9, 0.5, 0.05, 0.25, 0.2], [0.0, 0.3, 0.05, 0.35, 0.8]]
    ).reshape(3, 5, 1, 1)
    signs = gathered(library(probabilities), Region.whole(grid)).uncertainty()
    assert signs == {
        "liver": Uncertainty(
            voxels=2,
            volume_ml=pytest.approx(1.0),
            expected_dice=pytest.approx(2 * (0.9 + 0.5) / (0.9 + 0.5 + 0.05 + 0.25 + 0.2 + 2)),
            at_end=0,
        ),
        "spleen": Uncertainty(
            voxels=1,
            volume_ml=pytest.approx(0.5),
            expected_dice=pytest.approx(2 * 0.8 / (0.3 + 0.05 + 0.35 + 0.8 + 1)),
            at_end=0,
        ),
    }


def test_of_overlapping_labels_the_last_that_is_likelier_than_background(library: Library) -> None:
    """Probabilities of each label alone: in the first voxel only the liver is likelier than background, in
    the second both are, in the third none. A liver remains where it is and the spleen is not."""
    grid = Grid.from_spacing((3, 1, 1), (10.0, 10.0, 10.0))
    alone = torch.tensor([[0.6, 0.9, 0.2], [0.45, 0.7, 0.1]])
    logs = torch.cat([torch.zeros(1, 3), torch.logit(alone)]) - 2.0
    estimator = UncertaintyEstimator(LABELS, Region.whole(grid), CLOSED, overlap=True)
    estimator.add(library(logs.reshape(3, 3, 1, 1)), grid.box, logs=True)
    liver, spleen = 0.6 * 0.55, 0.7
    assert estimator.uncertainty() == {
        "liver": Uncertainty(
            voxels=1,
            volume_ml=pytest.approx(1.0),
            expected_dice=pytest.approx(2 * liver / (liver + 0.9 * 0.3 + 0.2 * 0.9 + 1)),
            at_end=0,
        ),
        "spleen": Uncertainty(
            voxels=1,
            volume_ml=pytest.approx(1.0),
            expected_dice=pytest.approx(2 * spleen / (0.45 + 0.7 + 0.1 + 1)),
            at_end=0,
        ),
    }


def test_logarithms_up_to_a_number_say_the_same(library: Library) -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(3, 6, 5, 4)), dtype=torch.float32)
    region = Region.whole(Grid.from_spacing((6, 5, 4), (1.0, 1.0, 1.0)))
    expected = gathered(library(logits.softmax(0)), region).uncertainty()
    estimator = UncertaintyEstimator(LABELS, region, CLOSED)
    estimator.add(library(logits), region.box, logs=True)
    for name, found in estimator.uncertainty().items():
        assert found.voxels == expected[name].voxels
        assert found.expected_dice == pytest.approx(expected[name].expected_dice, abs=1e-5)


def test_only_the_region_counts_and_what_was_not_found_is_left_out(library: Library) -> None:
    grid = Grid.from_spacing((4, 1, 1), (1.0, 1.0, 1.0))
    probabilities = torch.tensor([[0.2, 0.4, 0.9, 0.0], [0.8, 0.6, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0]])
    region = Region(grid, Box((0, 0, 0), (2, 1, 1)))
    signs = gathered(library(probabilities.reshape(3, 4, 1, 1)), region).uncertainty()
    assert list(signs) == ["liver"]
    assert signs["liver"].expected_dice == pytest.approx(2 * 1.4 / (1.4 + 2))
    assert signs["liver"].expected_dice == pytest.approx(2 * 1.4 / (1.4 + 2))


def test_certain_probabilities_promise_everything(library: Library) -> None:
    grid = Grid.from_spacing((3, 3, 3), (1.0, 1.0, 1.0))
    probabilities = torch.zeros(3, 3, 3, 3)
    probabilities[1] = 1.0
    signs = gathered(library(probabilities), Region.whole(grid)).uncertainty()
    assert signs["liver"].expected_dice == 1.0


def test_ties_go_to_the_lower_channel_as_in_argmax(library: Library) -> None:
    grid = Grid.from_spacing((2, 1, 1), (1.0, 1.0, 1.0))
    probabilities = torch.tensor([[0.5, 0.2], [0.5, 0.4], [0.0, 0.4]]).reshape(3, 2, 1, 1)
    signs = gathered(library(probabilities), Region.whole(grid)).uncertainty()
    assert {name: s.voxels for name, s in signs.items()} == {"liver": 1}


@pytest.mark.parametrize("masked", [False, True])
def test_parts_add_up(masked: bool, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncertainty, "CACHED_VOXELS", 100)
    torch.manual_seed(0)
    grid = Grid.from_spacing((8, 7, 12), (1.0, 2.0, 3.0))
    probabilities = library((3 * torch.randn(3, 8, 7, 12)).softmax(dim=0))
    box = Box((1, 1, 2), (7, 6, 11))
    region = Region(grid, box, (torch.rand(box.shape) < 0.7).numpy() if masked else None)
    whole, parts = gathered(probabilities, region), gathered(probabilities, region, 5)
    for name, one in whole.uncertainty().items():
        other = parts.uncertainty()[name]
        assert (other.voxels, other.at_end) == (one.voxels, one.at_end)
        assert one.at_end > 0
        assert other.expected_dice == pytest.approx(one.expected_dice, abs=1e-6)
        at, again = (found.at_end([name]).tolist() for found in (whole, parts))
        assert sorted(at) == sorted(again)
        assert len(at) == one.at_end


@pytest.mark.parametrize("masked", [False, True])
def test_sums_are_those_of_all_voxels_at_once(
    masked: bool, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncertainty, "CACHED_VOXELS", 50)
    torch.manual_seed(2)
    grid = Grid.from_spacing((6, 9, 10), (1.0, 2.0, 3.0))
    probabilities = (3 * torch.randn(3, *grid.shape)).softmax(dim=0)
    region = Region(grid, grid.box, (torch.rand(grid.shape) < 0.6).numpy() if masked else None)
    asked = region.mask_in(grid.box)
    values = probabilities.double().numpy()[:, asked]
    found = gathered(library(probabilities), region).uncertainty()
    for c, name in enumerate(LABELS, start=1):
        sure = values[c][values.argmax(axis=0) == c]
        assert found[name].voxels == sure.size > 50
        dice = 2 * sure.sum() / (values[c].sum() + sure.size)
        assert found[name].expected_dice == pytest.approx(dice, rel=1e-6)


def neighbours_outside(region: Region, open_sides: OpenSides) -> np.ndarray:
    """``region_ends`` of the whole grid, voxel by voxel."""
    inside = region.mask_in(region.grid.box)
    out = np.zeros_like(inside)
    for at in np.argwhere(inside):
        for axis in range(3):
            for high in (0, 1):
                near = at.copy()
                near[axis] += 2 * high - 1
                if 0 <= near[axis] < inside.shape[axis]:
                    out[tuple(at)] |= not inside[tuple(near)]
                else:
                    out[tuple(at)] |= open_sides[axis][high]
    return out


@pytest.mark.parametrize("sides", [CLOSED, ((True, False), (False, True), (True, True))])
@pytest.mark.parametrize("box", [Box((0, 0, 0), (6, 7, 8)), Box((2, 0, 1), (6, 5, 7))])
@pytest.mark.parametrize("masked", [False, True])
def test_where_a_region_ends(sides: OpenSides, box: Box, masked: bool) -> None:
    torch.manual_seed(1)
    grid = Grid.from_spacing((6, 7, 8), (1.0, 1.0, 1.0))
    region = Region(grid, box, (torch.rand(box.shape) < 0.8).numpy() if masked else None)
    expected = neighbours_outside(region, sides)
    for part in (grid.box, Box((0, 0, 3), (6, 7, 5)), Box((1, 1, 1), (5, 6, 7))):
        found = region_ends(region, part, sides)
        if not masked and box == grid.box and sides == CLOSED:
            assert found is None
            assert not expected.any()
        else:
            assert found is not None
            assert np.array_equal(found, expected[part.slices])
