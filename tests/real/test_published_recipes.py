"""The published systems on real scans: coarser grids and narrow networks, but every stage of theirs."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tiny_dataset import retrained
from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.datasets.layouts import open_dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.recipe import graph
from zoomseg.recipe.spec import AtlasSpec, MajorityFusion
from zoomseg.study.recipe_edits import coarser, narrower, shipped
from zoomseg.training import loop
from zoomseg.training.log import Silent

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
def test_it_trains_and_predicts_a_scan(name: str, folder: str, stages: int, tmp_path: Path) -> None:
    dataset = open_dataset(Path(str(DATA)) / folder)
    two = dataset.subset(dataset.ids[:2])
    recipe = retrained(narrower(16)(coarser(2)(shipped(name))), iterations=1, batch=2)
    update: dict[str, object] = {"on_missing": "whole_volume"}
    if recipe.atlas is not None:
        update["atlas"] = AtlasSpec(
            number=1, spacing_mm=(8, 8, 8), registration="affine", fusion=MajorityFusion()
        )
    fitted, _ = graph.fit(recipe.model_copy(update=update), dataset.schema)
    wanted = graph.expand(fitted, dataset.schema)
    assert len(wanted.stages) == stages
    loop.train(two, loop.Split(two.ids, ()), wanted, tmp_path, loop.Settings(CPU), Silent())
    case = dataset.load(dataset.cases[2])
    result = Predictor(bundle.load(tmp_path), CPU).predict(replace(case, labels=None))
    assert isinstance(case, Case)
    assert set(result.stages) == {stage.name for stage in wanted.stages}
    assert result.labels.grid.same_as(case.image.grid)
    assert all(record.tiles > 0 for record in result.records)
