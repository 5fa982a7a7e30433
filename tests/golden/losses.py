"""Losses of the first 20 steps of each shipped recipe, shrunk to a tiny data set.

    uv run python tests/golden/losses.py

writes them anew to ``losses.json``: for a change that is meant to change training, and only then.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tiny import CPU, tiny_dataset  # noqa: E402
from zoomseg.engine import plan, train  # noqa: E402
from zoomseg.engine.log import Row, Silent  # noqa: E402
from zoomseg.io.dataset import Dataset  # noqa: E402
from zoomseg.recipe.load import load  # noqa: E402
from zoomseg.recipe.spec import PlannedRecipe, Recipe, UNet3D  # noqa: E402

GOLDEN = HERE / "losses.json"
STEPS = 20


class _Rows(Silent):
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def row(self, row: Row, remaining_seconds: float | None) -> None:
        self.rows.append(row)


def shrunk(name: str, data: Dataset) -> Recipe:
    """The recipe as shipped, with fewer channels and voxels."""
    recipe = load(name)
    if isinstance(recipe, PlannedRecipe):
        small = {
            "coarse_voxels": 300,
            "fine_voxels": 3000,
            "fine_patch_voxels": 1000,
            "base_channels": (4, 4),
            "max_channels": 8,
            "iterations": STEPS,
        }
        planned = recipe.model_copy(update=small)
        return plan.plan(planned, plan.fingerprint(data, data.ids), data.schema, CPU)
    stages = []
    for stage in recipe.stages:
        grid = stage.grid.model_copy(update={"tile": (24, 24, 24)})
        # 20 voxels would move every patch off a scan of 12x10x8.
        change = stage.training.augmentation.model_copy(update={"translation_vox": 2.0})
        training = stage.training.model_copy(
            update={"patch": (24, 24, 24), "iterations": STEPS, "augmentation": change}
        )
        network = UNet3D(channels=(8, 16))
        roi = stage.roi
        if roi.kind == "body_mask":
            roi = roi.model_copy(update={"threshold": -30.0})  # in the tiny data set all is body
        stages.append(
            stage.model_copy(update={"grid": grid, "training": training, "network": network, "roi": roi})
        )
    return recipe.model_copy(update={"stages": tuple(stages)})


def losses(name: str) -> dict[str, list[float]]:
    """Stage name -> loss of every step, in float32 on one CPU thread."""
    torch.set_num_threads(1)
    watch = _Rows()
    every, train.LOG_EVERY_STEPS = train.LOG_EVERY_STEPS, 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = tiny_dataset(Path(folder) / "data")
            split = train.Split(data.ids, ())
            recipe = shrunk(name, data)
            train.train(data, split, recipe, Path(folder) / "model", train.Settings(CPU, seed=11), watch)
    finally:
        train.LOG_EVERY_STEPS = every
    out: dict[str, list[float]] = {}
    for row in watch.rows:
        out.setdefault(row.stage, []).append(row.loss)
    return out


if __name__ == "__main__":
    from zoomseg.recipe.load import names

    GOLDEN.write_text(json.dumps({name: losses(name) for name in names()}, indent=1) + "\n")
