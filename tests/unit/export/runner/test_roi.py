"""Where the runner looks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zoomseg.core.geometry import Box, Grid
from zoomseg.core.morphology import without_islands
from zoomseg.export.runner import roi
from zoomseg.export.runner.region import Answer, Region

GRID = Grid.from_spacing((12, 10, 8), (2, 2, 2))


def answer(found: dict[str, tuple[int, int, int]], region: Region | None = None) -> Answer:
    """Certain of one voxel per label; background elsewhere."""
    probabilities = np.zeros((1 + len(found), *GRID.shape), np.float32)
    probabilities[0] = 1.0
    for c, index in enumerate(found.values(), start=1):
        probabilities[(slice(None), *index)] = 0.0
        probabilities[(c, *index)] = 1.0
    return Answer(probabilities, GRID, tuple(found), region or Region.whole(GRID))


def find(spec: dict[str, object], grid: Grid, said: Answer) -> Region | None:
    return roi.find(spec, grid, np.zeros((1, *GRID.shape)), GRID, {"coarse": said})


def shell(radius_vox: float, threshold: float | None = None) -> dict[str, object]:
    return {"kind": "dilated_foreground", "of": "coarse", "radius_vox": radius_vox, "threshold": threshold}


def test_whole_volume() -> None:
    region = find({"kind": "whole_volume"}, GRID, answer({"a": (1, 1, 1)}))
    assert region is not None
    assert (region.box, region.mask) == (GRID.box, None)


def test_dilated_foreground_on_a_finer_grid() -> None:
    fine = GRID.with_spacing((1, 1, 1))
    said = answer({"a": (2, 3, 4), "b": (9, 9, 7)})
    region = find(shell(2.0), fine, said)
    assert region is not None
    seeds = np.zeros(fine.shape, dtype=bool)
    seeds[4:6, 6:8, 8:10] = seeds[18:20, 18:20, 14:16] = True
    expected = ndimage.distance_transform_edt(~seeds) <= 2.0
    assert np.array_equal(region.mask_in(fine.box), expected)
    assert region.box == Box((2, 4, 6), (22, 20, 16))


def test_unsure_background_is_looked_at_where_a_threshold_says_so() -> None:
    said = answer({"a": (2, 3, 4), "b": (9, 9, 7)})
    said.probabilities[:, 6, 6, 6] = 0.8, 0.15, 0.05
    regions = [find(shell(0.0, threshold), GRID, said) for threshold in (None, 0.25, 0.15)]
    seen = [[] if r is None else np.argwhere(r.mask_in(GRID.box)).tolist() for r in regions]
    won = [[2, 3, 4], [9, 9, 7]]
    assert seen == [won, won, [won[0], [6, 6, 6], won[1]]]


def test_on_a_coarser_grid_no_voxel_is_lost() -> None:
    coarse = GRID.with_shape((3, 5, 4))
    said = answer({"a": (0, 0, 0)})  # far from the centre of the coarse voxel that holds it
    region = find(shell(0.0), coarse, said)
    assert region is not None
    assert np.argwhere(region.mask_in(coarse.box)).tolist() == [[0, 0, 0]]


def test_box_around_some_labels() -> None:
    said = answer({"a": (2, 3, 4), "b": (9, 9, 7)})
    spec = {"kind": "box", "of": "coarse", "labels": ["a"], "margin_mm": 3.0}
    region = find(spec, GRID, said)
    assert region is not None
    assert (region.box, region.mask) == (Box((0, 1, 2), (5, 6, 7)), None)
    both = find(spec | {"labels": ["a", "b"], "margin_mm": 0.0}, GRID, said)
    assert both is not None
    assert both.box == Box((2, 3, 4), (10, 10, 8))


def test_what_was_said_outside_the_region_does_not_count() -> None:
    said = answer({"a": (2, 3, 4)}, Region(GRID, Box((5, 0, 0), GRID.shape)))
    assert find({"kind": "box", "of": "coarse", "labels": ["a"], "margin_mm": 3.0}, GRID, said) is None
    assert find(shell(3.0), GRID, said) is None


def test_body_mask_is_the_largest_component_filled() -> None:
    voxels = np.full((1, *GRID.shape), -1000, dtype=np.int16)
    voxels[0, 1:9, 1:9] = 0
    voxels[0, 4:6, 4:6] = -900  # lungs, open to the outside where the scan ends
    voxels[0, 11] = 100  # the table
    region = roi.find({"kind": "body_mask", "threshold": -200.0}, GRID, voxels, GRID, {})
    assert region is not None
    assert (region.box, region.mask) == (Box((1, 1, 0), (9, 9, 8)), pytest.approx(np.ones((8, 8, 8), bool)))
    clipped = np.maximum(voxels, -125)  # air is then above the threshold, but still the lowest value
    again = roi.find({"kind": "body_mask", "threshold": -200.0}, GRID, clipped, GRID, {})
    assert again is not None
    assert again.box == region.box


def test_a_scan_without_body() -> None:
    voxels = np.full((1, *GRID.shape), -1000, dtype=np.int16)
    assert roi.find({"kind": "body_mask", "threshold": -200.0}, GRID, voxels, GRID, {}) is None


def test_largest_component() -> None:
    mask = np.zeros((6, 1, 1), dtype=bool)
    assert not roi.largest_component(mask, np.ones((3, 3, 3), bool)).any()
    mask[[0, 1, 3, 4]] = True  # equally large: the first
    found = roi.largest_component(mask, np.ones((3, 3, 3), bool))
    assert found.ravel().tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("share", [0.05, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("density", [0.0, 0.06, 0.3, 1.0])
def test_islands_are_what_the_package_takes_for_them(share: float, density: float) -> None:
    mask = np.random.default_rng(2).random((14, 12, 10)) < density
    found = roi.without_islands(mask, share)
    assert np.array_equal(found, without_islands(mask, share))
    assert found.any() == mask.any()


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'elsewhere'"):
        find({"kind": "elsewhere"}, GRID, answer({"a": (1, 1, 1)}))
