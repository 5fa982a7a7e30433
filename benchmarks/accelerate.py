"""Compare a model with the one that ``zoomseg accelerate`` made from it, on scans that neither has seen.

    python benchmarks/accelerate.py MODEL ACCELERATED SCAN... --labels FOLDER

FOLDER has reference label maps of the scans' names. Both predict one scan after the other, in one process on
the CPU. Prints, for every scan, the tiles that the stages of MODEL compute in both models, the seconds of
both (those of ACCELERATED include its coarse stage), the lowest and the mean Dice between the two label maps
over the labels of at least ``--least`` voxels, and the mean Dice of both with the reference over its labels.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunet_import import dices

from zoomseg.core.case import Case
from zoomseg.inference.load import load_predictor
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.scans import read_image, read_labels


@dataclass(frozen=True)
class Found:
    """A prediction: label values ``[I, J, K]``, tiles of the compared stages, and seconds."""

    values: npt.NDArray[Any]
    tiles: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("accelerated", type=Path)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--labels", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--least", type=int, default=50, metavar="VOXELS")
    given = parser.parse_args()
    model = bundle.load(given.model)
    stages = {stage.name for stage in model.recipe.stages}
    before, after = (load_predictor([model], "cpu") for model in (given.model, given.accelerated))
    print("| scan | tiles before | after | seconds before | after |", end="")
    print(" lowest Dice between | mean Dice between | to reference before | after |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for path in given.scans:
        case = Case(path.name, read_image(path))
        reference = read_labels(given.labels / path.name.replace("_0000", ""), model.schema)
        truth = model.schema.decode(reference.data)
        one, other = (_predicted(predictor, case, stages) for predictor in (before, after))
        alike = dices(one.values, other.values, given.least)
        scores = [np.mean(dices(found.values, truth, given.least)) for found in (one, other)]
        print(
            f"| {path.name} | {one.tiles} | {other.tiles} | {one.seconds:.1f} | {other.seconds:.1f} "
            f"| {min(alike):.4f} | {np.mean(alike):.4f} | {scores[0]:.4f} | {scores[1]:.4f} |",
            flush=True,
        )


def _predicted(predictor: Predictor, case: Case, stages: set[str]) -> Found:
    started = time.perf_counter()
    prediction = predictor.predict(case, keep=False)
    seconds = time.perf_counter() - started
    tiles = sum(record.tiles for record in prediction.records if record.stage in stages)
    labels = prediction.labels
    return Found(labels.schema.decode(labels.data), tiles, seconds)


if __name__ == "__main__":
    main()
