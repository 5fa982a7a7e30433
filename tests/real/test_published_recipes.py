"""The published recipes on real scans, with all of their stages, but coarser grids and narrower networks."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from helpers.tiny_dataset import retrained
from zoomseg.backends.device import Device
from zoomseg.core.case import StagePrediction
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.region import Region
from zoomseg.datasets.layouts import open_dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.recipe import graph
from zoomseg.recipe.spec import AtlasSpec, BoxAround, DilatedForeground, MajorityFusion
from zoomseg.study.recipe_edits import coarser, narrower, shipped
from zoomseg.training import loop
from zoomseg.training.log import NullObserver

DATA = os.environ.get("ZOOMSEG_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ZOOMSEG_DATA is not set: no real data on this machine")

CPU = Device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "stages"),
    [
        ("roth2018-cascade", "btcv", 2),
        ("roth2018-pyramid", "btcv", 2),
        ("zhou2016-2d-vote", "btcv", 3),
        ("flare22-whole-volume", "btcv", 9),
        ("valindria2018-small-organs", "chaos_mr", 5),
    ],
)
def test_it_trains_and_predicts_a_scan(
    name: str, folder: str, stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is learned in one step; hence only what holds without that is compared."""
    monkeypatch.setattr(loop, "convert", lambda *_: None)
    dataset = open_dataset(Path(str(DATA)) / folder)
    recipe = narrower(16)(coarser(2)(shipped(name)))
    # An atlas is registered to another case; and at its lowest level, a patch of this recipe is one voxel, of
    # which a batch norm needs more.
    count = 1 if recipe.atlas is None else 2
    given = dataset.subset(dataset.ids[:count])
    recipe = retrained(recipe, iterations=1, batch=count)
    update: dict[str, object] = {"on_missing": "whole_volume"}
    if recipe.atlas is not None:
        update["atlas"] = AtlasSpec(
            number=1, spacing_mm=(8, 8, 8), registration="affine", fusion=MajorityFusion()
        )
    fitted, _ = graph.fit(recipe.model_copy(update=update), dataset.schema)
    wanted = graph.expand(fitted, dataset.schema)
    assert len(wanted.stages) == stages
    loop.train(given, loop.Split(given.ids, ()), wanted, tmp_path, loop.LoopSettings(CPU), NullObserver())
    case = dataset.load(dataset.cases[2])
    result = Predictor(bundle.load(tmp_path), CPU).predict(replace(case, labels=None))
    assert set(result.stages) == {stage.name for stage in wanted.stages}
    assert result.labels.grid.same_as(case.image.grid)
    assert result.schema == dataset.schema
    assert int(result.labels.data.max()) <= len(dataset.schema.names)
    assert all(record.tiles > 0 for record in result.records)
    for stage in wanted.stages:
        found = result.stages[stage.name]
        assert found.labels == graph.resolve_labels(stage, dataset.schema)
        assert np.allclose(found.probabilities.sum(axis=0), 1, rtol=0, atol=1e-4), stage.name
        if isinstance(stage.roi, BoxAround | DilatedForeground):
            check_region(found.region, stage.roi, result.stages[stage.roi.of], canonical(case.image.grid))


def canonical(grid: Grid) -> Grid:
    return Orientation.to_canonical(grid).grid(grid)


def check_region(
    region: Region, roi: BoxAround | DilatedForeground, earlier: StagePrediction, scan: Grid
) -> None:
    """A region contains all that the earlier stage found (the whole scan, if nothing), and little more than
    the margin around it."""
    ends = np.array([(0, 0, 0), scan.shape]) - 0.5
    box = extent(region.grid, np.array([region.box.start, region.box.stop]), scan)
    names = earlier.labels if roi.labels == "all" else roi.labels
    channels = [earlier.channel(name) for name in names]
    places = np.argwhere(np.isin(earlier.probabilities.argmax(axis=0), channels) & earlier.in_region)
    found = ends
    if places.size > 0:
        found = extent(earlier.grid, np.array([places.min(axis=0), places.max(axis=0) + 1]), scan)
    spacing_mm = np.array(region.grid.spacing_mm)
    margin_mm = roi.margin_mm if isinstance(roi, BoxAround) else roi.radius_vox * spacing_mm
    rounding_mm = 2 * np.maximum(spacing_mm, scan.spacing_mm)
    most = (margin_mm + rounding_mm) / scan.spacing_mm
    inside = found.clip(*ends)
    assert (box[0] <= inside[0] + 1e-5).all()
    assert (box[1] >= inside[1] - 1e-5).all()
    assert (box[0] >= found[0] - most).all()
    assert (box[1] <= found[1] + most).all()


def extent(grid: Grid, box: npt.NDArray[np.int64], scan: Grid) -> npt.NDArray[np.float64]:
    """First and last corner of a box ``[2, 3]`` of a grid, as indices of the scan."""
    return scan.index(grid.world(box - 0.5))
