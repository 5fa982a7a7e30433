"""Prediction with a memory limit, in a process that the system terminates if it uses much more.

    python limited_prediction.py MODEL PRECISION WORKSPACE [RAM ...]

MODEL is ``untrained`` (40 classes) or ``bundled``; PRECISION is ``float32`` or ``bfloat16``; WORKSPACE is
additional memory in bytes per voxel of a tile that every network allocates, as libraries on another processor
might. Without RAM (bytes), prints the lowest accepted limit. With limits in ascending order, prints for each
the tiles that were computed and the peak in bytes; or, if the limit is refused, the memory that would be
needed, the seconds until the refusal and the peaks before and after.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.tiny_dataset import tiny_recipe
from zoomseg.backends.device import KEPT_FREED, Device, keep_memory
from zoomseg.backends.torch_networks import build_network
from zoomseg.core.case import Case
from zoomseg.core.errors import MemoryLimitError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.tiling import Tile
from zoomseg.core.volume import Volume
from zoomseg.inference.memory_limits import MemoryLimits
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.resource_usage import highest_ram_mb
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.pipeline.sliding_window import StageNetwork, TileProgress

SCHEMA = LabelSchema.consecutive([f"organ {n}" for n in range(40)])
BUNDLED = Path(bundle.__file__).parents[1] / "models" / "abdomen-ct"


def untrained() -> Bundle:
    """Two stages of 40 classes; the fine one has tiles that cover the scan in one row. Background is certain,
    so that no time is spent on classes that differ only by noise."""
    torch.manual_seed(0)
    recipe = tiny_recipe(together=True).model_copy(update={"on_missing": "whole_volume"})
    coarse, fine = recipe.stages
    grid = fine.grid.model_copy(update={"tile": (80, 80, 64), "mm": (2.0, 2.0, 2.0)})
    recipe = recipe.model_copy(update={"stages": (coarse, fine.model_copy(update={"grid": grid}))})
    weights = {s.name: build_network(s, recipe, SCHEMA, 1).state_dict() for s in recipe.stages}
    for tensors in weights.values():
        for tensor in tensors.values():
            if tensor.shape == (1 + len(SCHEMA.names),):
                tensor[0] = 20.0
    return Bundle(recipe, SCHEMA, ("CT",), weights, {})


def searching_everywhere(model: Bundle) -> Bundle:
    """The model with its fine stage on the whole scan if nothing is found, as in noise."""
    recipe = model.recipe.model_copy(update={"on_missing": "whole_volume"})
    return replace(model, recipe=recipe, folder=None)


def predictor(model: str, precision: str, workspace: int) -> Predictor:
    device = Device("cpu", precision == "bfloat16")
    model_ = untrained() if model == "untrained" else searching_everywhere(bundle.load(BUNDLED))
    made = Predictor(model_, device, limits=MemoryLimits(device, 1), any_scan=True)  # noise is not CT
    if workspace:
        for name, network in made._networks.items():
            made._networks[name] = partial(hungry, network, workspace)
    return made


def hungry(network: StageNetwork, workspace: int, x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
    taken = np.ones(x_BCIJK[:, 0].size * workspace, dtype=np.uint8)
    answer = network(x_BCIJK, tiles)
    del taken
    return answer


def scan() -> Volume:
    """A scan of 160 x 160 x 128 voxels of 1 mm, with 16 bits each."""
    shape = (160, 160, 128)
    noise = np.random.default_rng(0).integers(-500, 500, shape, dtype=np.int16)
    return Volume(noise[None], Grid.from_spacing(shape, (1.0, 1.0, 1.0)))


class ReachedError(Exception):
    """The limit was accepted: the last stage was reached."""


def least(made: Predictor) -> int:
    """The lowest accepted limit, found by raising it to the value stated in each refusal."""
    last, before = made.bundle.recipe.stages[-1].name, 0

    def tell(progress: TileProgress) -> None:
        if progress.stage == last:
            raise ReachedError

    while True:
        try:
            predict(made, tell)
        except MemoryLimitError as error:
            before = before or peak()  # memory that is already in use cannot be reduced
            assert peak() <= max(made.limits.ram, before), "more was taken than was allowed"
            made.limits.ram = error.needed
        except ReachedError:
            return made.limits.ram


def predict(
    made: Predictor, tell: Callable[[TileProgress], None] = lambda progress: None
) -> dict[str, object]:
    grid = Grid.from_spacing((160, 160, 128), (1.0, 1.0, 1.0))
    made.admit(grid, 2 * grid.box.voxels, keep=False)
    result = made.predict(Case("a", scan()), keep=False, on_progress=tell)
    tiles = {record.stage: record.tile for record in result.records}
    return {"tiles": tiles, "peak": peak()}


def peak() -> int:
    return int(highest_ram_mb() * 1024**2)


def limited(made: Predictor, ram: int) -> dict[str, object]:
    # Allocated but untouched memory counts here although it is not used, hence this tolerance.
    before_it = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (ram + KEPT_FREED, before_it[1]))
    made.limits.ram = ram
    began, before = time.perf_counter(), peak()
    try:
        return predict(made)
    except MemoryLimitError as error:
        seconds = time.perf_counter() - began
        return {"refused": error.needed, "seconds": seconds, "before": before, "peak": peak()}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before_it)


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_memory()
    wanted = (sys.argv[1], sys.argv[2], int(sys.argv[3]))
    if sys.argv[4:]:
        # Each with a new predictor, as one remembers the memory of tiles that it has measured.
        print(json.dumps([limited(predictor(*wanted), int(ram)) for ram in sys.argv[4:]]))
    else:
        print(json.dumps({"least": least(predictor(*wanted))}))
