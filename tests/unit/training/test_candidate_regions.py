"""The region with the fewest tiles among those that contain enough, of candidates known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.known_networks import COARSE
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import TrainingError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.volume import LabelMap
from zoomseg.recipe.spec import FixedSpacing
from zoomseg.training import candidate_regions
from zoomseg.training.candidate_regions import RegionSearch, searches

SCHEMA = LabelSchema.consecutive(("liver", "spleen", "aorta"))
GRID = Grid((64, 8, 8), np.eye(4))
STAGE = COARSE.model_copy(
    update={"labels": "all", "grid": FixedSpacing(mm=(1, 1, 1), tile=(8, 8, 8), overlap=0.0)}
)


def answer(liver: slice, spleen: slice) -> LabelMap:
    data = np.zeros(GRID.shape, dtype=np.uint8)
    data[liver], data[spleen] = 1, 2
    return LabelMap(data, GRID, SCHEMA)


def prediction(*liver: tuple[int, int, float]) -> StagePrediction:
    """Of liver and spleen: from and to which plane the liver is likely, and how likely."""
    probabilities = np.zeros((3, *GRID.shape), dtype=np.float32)
    for start, stop, value in liver:
        probabilities[1, start:stop] = value
    probabilities[0] = 1 - probabilities[1]
    return StagePrediction(probabilities, GRID, ("liver", "spleen"), Region.whole(GRID), "region")


def search() -> RegionSearch:
    (found,) = searches([STAGE], SCHEMA, "region", ("liver", "spleen"))
    return found


def test_a_stage_looks_for_what_the_coarse_one_knows() -> None:
    assert search().labels == ("liver", "spleen")
    aorta = STAGE.model_copy(update={"labels": ("aorta",)})
    assert searches([aorta], SCHEMA, "region", ("liver", "spleen")) == []


def test_the_cheapest_region_that_holds_enough_is_taken() -> None:
    found = search()
    # Certain in 16 voxels, unsure in the 8 beyond, where a part of the liver lies.
    found.add(prediction((16, 32, 0.9), (32, 40, 0.03)), answer(slice(16, 40), slice(0, 0)))
    chosen = found.chosen()
    assert chosen.lowest_recall == 1.0
    costs = {own: cost[0].tiles for own, cost in found.found.items() if cost[0].recall == 1.0}
    assert costs[chosen.roi.radius_vox, chosen.roi.threshold or 0] == min(costs.values())
    assert chosen.tile_share == min(costs.values()) / 8
    assert chosen.organ_recall == {"liver": 1.0}
    assert (chosen.roi.of, chosen.roi.labels) == ("region", ("liver", "spleen"))


def test_every_scan_has_to_be_held() -> None:
    found = search()
    found.add(prediction((0, 8, 0.9)), answer(slice(0, 8), slice(0, 0)))
    first = found.chosen()
    assert first.lowest_recall == 1.0
    found.add(prediction((0, 8, 0.9)), answer(slice(0, 8), slice(40, 48)))
    with pytest.raises(
        TrainingError, match=r"contains 99\.9% of what the model finds .*the largest: 50\.00%"
    ):
        found.chosen()


def test_where_nothing_is_found_the_recipe_says_whether_anything_is_computed() -> None:
    (empty,) = searches([STAGE], SCHEMA, "region", ("liver", "spleen"), "empty")
    for found, recall, tiles in ((search(), 1.0, 8), (empty, 0.0, 0)):
        found.add(prediction(), answer(slice(0, 8), slice(0, 0)))
        assert {(cost[0].recall, cost[0].tiles) for cost in found.found.values()} == {(recall, tiles)}


def test_a_scan_without_any_organ_asks_for_nothing() -> None:
    found = search()
    found.add(prediction(), answer(slice(0, 0), slice(0, 0)))
    chosen = found.chosen()
    assert (chosen.lowest_recall, chosen.tile_share, dict(chosen.organ_recall)) == (1.0, 1.0, {})


def test_recall_is_counted_by_organ_over_all_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_regions, "RECALL", 0.5)
    monkeypatch.setattr(candidate_regions, "ORGAN_RECALL", 0.0)
    found = search()
    found.add(prediction((0, 8, 0.9)), answer(slice(0, 8), slice(40, 48)))
    chosen = found.chosen()
    assert chosen.organ_recall == {"liver": 1.0, "spleen": 0.0}
    assert chosen.lowest_recall == 0.5


def test_no_organ_is_lost_because_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its voxels are too few for the recall of all organs together."""
    monkeypatch.setattr(candidate_regions, "RECALL", 0.5)
    found = search()
    found.add(prediction((0, 32, 0.9)), answer(slice(0, 32), slice(60, 61)))
    told = r"contains 99% of every organ .*\(at most 0\.00% of 'spleen'\); train longer"
    with pytest.raises(TrainingError, match=told):
        found.chosen()
    seen = search()
    # Unsure where the spleen lies: a region that contains it has more tiles, and is used nevertheless.
    seen.add(prediction((0, 32, 0.9), (56, 64, 0.03)), answer(slice(0, 32), slice(60, 61)))
    chosen = seen.chosen()
    assert (chosen.organ_recall, chosen.tile_share) == ({"liver": 1.0, "spleen": 1.0}, 7 / 8)
    # A hundredth of an organ over all scans may lie outside of the region.
    seen.add(prediction((0, 32, 0.9)), answer(slice(0, 32), slice(60, 61)))
    with pytest.raises(TrainingError, match=r"at most 50\.00% of 'spleen'"):
        seen.chosen()
