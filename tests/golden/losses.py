"""Losses of the first 20 steps of each shipped recipe, shrunk to a tiny data set.

Atlases are not registered: on images as tiny as these, the last bit of a voxel changes the transform.

    uv run python tests/golden/losses.py

updates ``losses.json``. Do this only for changes that are intended to change training.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from helpers.small_recipes import shrunk  # noqa: E402
from helpers.tiny_dataset import CPU, tiny_dataset  # noqa: E402
from zoomseg.atlas import register  # noqa: E402
from zoomseg.atlas.register import Warp  # noqa: E402
from zoomseg.core.resample import affine_coordinates  # noqa: E402
from zoomseg.core.volume import Volume  # noqa: E402
from zoomseg.training import loop  # noqa: E402
from zoomseg.training.log import LogRow, NullObserver  # noqa: E402

GOLDEN = HERE / "losses.json"
STEPS = 20


def _as_they_lie(fixed: Volume, moving: Volume, kind: str) -> Warp:
    matrix = fixed.grid.to_index_of(moving.grid)
    return Warp(fixed.grid, moving.grid, affine_coordinates(matrix, fixed.grid.shape))


class _Rows(NullObserver):
    def __init__(self) -> None:
        self.rows: list[LogRow] = []

    def row(self, row: LogRow, remaining_seconds: float | None) -> None:
        self.rows.append(row)


def losses(name: str) -> dict[str, list[float]]:
    """Loss of every step by stage name, in float32 on one CPU thread."""
    torch.set_num_threads(1)
    watch = _Rows()
    every, loop.LOG_EVERY_STEPS = loop.LOG_EVERY_STEPS, 1
    found, register.register = register.register, _as_they_lie
    convert, loop.convert = loop.convert, lambda out, observer: None  # losses are all that is looked at
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = tiny_dataset(Path(folder) / "data")
            split = loop.Split(data.ids, ())
            recipe = shrunk(name, data, STEPS)
            loop.train(data, split, recipe, Path(folder) / "model", loop.LoopSettings(CPU, seed=11), watch)
    finally:
        loop.LOG_EVERY_STEPS, register.register, loop.convert = every, found, convert
    out: dict[str, list[float]] = {}
    for row in watch.rows:
        out.setdefault(row.stage, []).append(row.loss)
    return out


if __name__ == "__main__":
    from zoomseg.recipe.load import names

    GOLDEN.write_text(json.dumps({name: losses(name) for name in names()}, indent=1) + "\n")
