from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.errors import GeometryError, LabelError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.volume import LabelMap, Volume

GRID = Grid.from_spacing((2, 3, 4), (1.0, 1.0, 1.0))
SCHEMA = LabelSchema.consecutive(["liver"])


def labels_on(grid: Grid) -> LabelMap:
    return LabelMap(np.zeros(grid.shape, dtype=np.uint8), grid, SCHEMA)


def test_case_refuses_labels_that_lie_elsewhere() -> None:
    image = Volume(np.zeros((1, 2, 3, 4), dtype=np.float32), GRID)
    moved = Grid.from_spacing((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.5))
    with pytest.raises(GeometryError, match="case patient7: image and labels lie on different grids"):
        Case("patient7", image, labels_on(moved))


def test_case_forgives_what_files_round() -> None:
    image = Volume(np.zeros((1, 2, 3, 4), dtype=np.float32), GRID)
    rounded = Grid.from_spacing((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 1e-4))
    assert Case("a", image, labels_on(rounded)).annotated is None


def test_prior_needs_background_and_every_label_as_channels() -> None:
    with pytest.raises(GeometryError, match=r"prior of shape \(2, 2, 3, 4\), expected \(3, 2, 3, 4\)"):
        StagePrediction(
            np.zeros((2, 2, 3, 4), dtype=np.float32), GRID, ("liver", "spleen"), Region.whole(GRID), "coarse"
        )


def test_prior_channels() -> None:
    prior = StagePrediction(
        np.zeros((3, 2, 3, 4), dtype=np.float32), GRID, ("liver", "spleen"), Region.whole(GRID), "coarse"
    )
    assert [prior.channel(n) for n in ("background", "liver", "spleen")] == [0, 1, 2]
    with pytest.raises(LabelError, match="stage 'coarse' does not predict 'heart'; it has: liver, spleen"):
        prior.channel("heart")


def test_prior_answered_is_its_region_on_its_own_grid() -> None:
    mask = np.zeros((2, 3, 4), dtype=np.bool_)
    mask[1, 2, 3] = mask[0, 1, 1] = True
    region = Region.of_mask(GRID, mask)
    assert region is not None
    prior = StagePrediction(np.zeros((2, 2, 3, 4), dtype=np.float32), GRID, ("liver",), region, "coarse")
    assert np.array_equal(prior.in_region, mask)
    part = GRID.crop(Box((0, 1, 1), (2, 3, 3)))
    inside = StagePrediction(np.zeros((2, 2, 2, 2), dtype=np.float32), part, ("liver",), region, "coarse")
    assert np.array_equal(inside.in_region, mask[:, 1:, 1:3])
