"""Dice, NSD and HD95 of all organs of one case, compared with DeepMind's surface-distance: time, agreement.

    uv run python benchmarks/metrics.py PREDICTION REFERENCE

Both are label files of one case on one grid, resampled to 512x512x300 voxels (nearest neighbour) before the
timing starts. The two programs are run alternately; each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import surface_distance

from zoomseg.core.geometry import Grid, Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.evaluation.metrics import score
from zoomseg.io.scans import read_label_values

SHAPE = (512, 512, 300)
TOLERANCE_MM = 1.0

Classes = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float64]
"""``[organs, 3]``: Dice, NSD, HD95."""


def resized(path: Path) -> tuple[Classes, Vector3]:
    """The label map resampled to ``SHAPE`` over the same extent, and its spacing in mm."""
    values, grid = read_label_values(path)
    nearest = [(np.arange(n) + 0.5) * old / n for n, old in zip(SHAPE, values.shape, strict=True)]
    classes = values[np.ix_(*(at.astype(int) for at in nearest))].astype(np.uint8)
    i, j, k = (s * old / n for s, old, n in zip(grid.spacing_mm, values.shape, SHAPE, strict=True))
    return classes, (i, j, k)


def ours(prediction: Classes, reference: Classes, spacing_mm: Vector3, schema: LabelSchema) -> Scores:
    grid = Grid.from_spacing(reference.shape, spacing_mm)
    rows = score(prediction, reference, grid, schema, TOLERANCE_MM)
    return np.array([(row.dice, row.nsd, row.hd95_mm) for row in rows])


def theirs(prediction: Classes, reference: Classes, spacing_mm: Vector3, schema: LabelSchema) -> Scores:
    rows = []
    for organ in schema.names:
        c = schema.class_of(organ)
        a, b = reference == c, prediction == c
        if a.any() and b.any():
            found = surface_distance.compute_surface_distances(a, b, spacing_mm)
            nsd = surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)
            hd95 = surface_distance.compute_robust_hausdorff(found, 95)
            rows.append((surface_distance.compute_dice_coefficient(a, b), nsd, hd95))
        else:  # infinite or NaN by definition; nothing is computed
            rows.append((0.0, 0.0, math.inf) if a.any() or b.any() else (math.nan,) * 3)
    return np.array(rows)


def timed(work: Callable[..., Scores], *arguments: object) -> tuple[Scores, float]:
    began = time.perf_counter()
    return work(*arguments), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("prediction", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="surface_distance")
    prediction, _ = resized(options.prediction)
    reference, spacing_mm = resized(options.reference)
    values = [int(v) for v in np.unique(reference) if v]
    # Classes equal the values in the files, so that neither program has to map them.
    schema = LabelSchema.consecutive([f"label_{n}" for n in range(1, max(values) + 1)])
    seconds: dict[str, list[float]] = {"ZoomSeg": [], "surface-distance": []}
    apart = 0.0
    for _ in range(options.rounds):
        case = (prediction, reference, spacing_mm, schema)
        (a, ours_s), (b, theirs_s) = timed(ours, *case), timed(theirs, *case)
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        apart = max(apart, float(np.abs(a - b)[np.isfinite(a)].max()))
        seconds["ZoomSeg"].append(ours_s)
        seconds["surface-distance"].append(theirs_s)
    print(f"{len(values)} organs, {'x'.join(map(str, SHAPE))} voxels, {options.rounds} rounds\n")
    print("| program | seconds |\n|---|---:|")
    for program, found in seconds.items():
        print(f"| {program} | {np.median(found):.2f} |")
    share = np.median(seconds["ZoomSeg"]) / np.median(seconds["surface-distance"])
    print(f"\n1/{1 / share:.1f} of the time. Largest difference of a score: {apart:.1e}.")


if __name__ == "__main__":
    main()
