"""The volume of abdominal organs that a model finds in scans of another part of the body: the head-and-neck
scans that `coarse_cases.py` leaves out.

    uv run python benchmarks/abdomen_ct/elsewhere.py MODEL OPENKBP

Prints, for every scan, the ml of each organ that cannot be in view; right is 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from coarse_cases import IN_VIEW, kept_for_measuring

from zoomseg.backends.device import resolve
from zoomseg.core.case import Case
from zoomseg.datasets.layouts import open_dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    options = parser.parse_args()
    dataset, model = open_dataset(options.dataset), bundle.load(options.model)
    predictor = Predictor(model, resolve("auto"), any_scan=True)
    totals = []
    print("| scan | ml | organs |\n|---|---:|---|")
    for files in kept_for_measuring(dataset.cases):
        labels = predictor.predict(Case(files.id, dataset.load(files).image)).labels
        voxels = np.bincount(labels.data.ravel(), minlength=1 + len(model.schema.names))
        ml = voxels * labels.grid.voxel_volume_ml
        found = {
            name: volume
            for name, volume in zip(model.schema.names, ml[1:], strict=True)
            if volume > 0 and name not in IN_VIEW
        }
        totals.append(sum(found.values()))
        organs = ", ".join(f"{name} {volume:.0f}" for name, volume in found.items())
        print(f"| {files.id} | {totals[-1]:.0f} | {organs} |", flush=True)
    print(f"mean {np.mean(totals):.0f} ml; nothing in {np.mean(np.array(totals) == 0):.0%} of {len(totals)}")


if __name__ == "__main__":
    main()
