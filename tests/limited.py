"""A prediction under a limit, in a process that the system ends if it takes much more.

    python limited.py FOLDER RAM

FOLDER gets a scan and a model of 40 untrained classes; prints the tiles as computed and the peak in MB.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny import CPU, tiny_recipe
from zoomseg.core.case import Case
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import Volume
from zoomseg.engine import memory
from zoomseg.engine.device import keep_memory
from zoomseg.engine.meter import highest_ram_mb
from zoomseg.engine.predict import Predictor, build_network
from zoomseg.io.bundle import Bundle

SCHEMA = LabelSchema.consecutive([f"organ {n}" for n in range(40)])


def predictor(ram: int | None) -> Predictor:
    """Two stages of 40 classes; the fine one on tiles that hold it in one row."""
    torch.manual_seed(0)
    recipe = tiny_recipe(together=True).model_copy(update={"on_missing": "whole_volume"})
    coarse, fine = recipe.stages
    grid = fine.grid.model_copy(update={"tile": (80, 80, 64), "mm": (2.0, 2.0, 2.0)})
    recipe = recipe.model_copy(update={"stages": (coarse, fine.model_copy(update={"grid": grid}))})
    weights = {s.name: build_network(s, recipe, SCHEMA, 1).state_dict() for s in recipe.stages}
    bundle = Bundle(recipe, SCHEMA, ("CT",), weights, {})
    return Predictor(bundle, CPU, limits=memory.Limits(CPU, ram))


def scan() -> Volume:
    """160 x 160 x 128 voxels of 1 mm, 16 bits each."""
    shape = (160, 160, 128)
    noise = torch.randint(-500, 500, shape, dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    return Volume(noise[None], Grid.from_spacing(shape, (1.0, 1.0, 1.0)))


def main(ram: int | None) -> None:
    torch.set_num_threads(1)
    keep_memory()
    if ram is not None:
        # What a process asks for but never touches counts here and is no memory: a tenth more is let pass.
        resource.setrlimit(resource.RLIMIT_DATA, (ram * 11 // 10, ram * 11 // 10))
    result = predictor(ram).predict(Case("a", scan()), keep=False)
    tiles = {record.stage: record.tile for record in result.records}
    print(json.dumps({"tiles": tiles, "peak_mb": highest_ram_mb()}))


if __name__ == "__main__":
    main(memory.parse_bytes(sys.argv[1]) if len(sys.argv) > 1 else None)
