"""By how much an organ's log-odds must be shifted for the highest Dice on held-out cases, and the gain.

    zoomseg predict SCANS -m TWIN -o OUT --probabilities all
    uv run python benchmarks/abdomen_ct/organ_bias.py OUT BTCV

OUT contains predictions of cases that the model was not trained on. For every organ, prints the mean Dice
without a shift, the mean Dice if the shift for each case is chosen on the other cases alone, and the shifts
that were chosen. As no case takes part in the choice of its own shift, the difference between both Dice is
what to expect of a shift on further scans.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy

from zoomseg.datasets.layouts import open_dataset
from zoomseg.inference import probability_maps

SHIFTS = np.arange(-3.0, 3.01, 0.25)
CERTAIN = 255
"""Value of a map that stands for a probability of 1."""

Floats = npt.NDArray[np.float64]


def dice_by_shift(probabilities: npt.NDArray[np.uint8], organ: npt.NDArray[np.bool_]) -> Floats:
    """Dice ``[len(SHIFTS)]`` of the voxels whose log-odds plus the shift are positive."""
    thresholds = CERTAIN / (1 + np.exp(SHIFTS))
    found = np.histogram(probabilities[organ], np.arange(CERTAIN + 2))[0]
    other = np.histogram(probabilities[~organ], np.arange(CERTAIN + 2))[0]
    above = np.arange(CERTAIN + 1)[None] > thresholds[:, None]
    right, wrong = above @ found, above @ other
    dice: Floats = 2 * right / (right + wrong + found.sum())
    return dice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("dataset", type=Path)
    options = parser.parse_args()
    dataset = open_dataset(options.dataset)
    print("| organ | cases | Dice | shifted as the other cases suggest | shifts |\n|---|---:|---:|---:|---|")
    gained = []
    for name, value in zip(dataset.schema.names, dataset.schema.values, strict=True):
        rows = []
        for case in dataset.cases:
            file = probability_maps.paths(options.predictions, case.id, dataset.schema.names)[name]
            if case.labels is None or not file.is_file():
                continue
            organ = np.asanyarray(nib.Nifti1Image.from_filename(case.labels).dataobj) == value
            if organ.any():
                values = nib.Nifti1Image.from_filename(file).dataobj
                assert isinstance(values, ArrayProxy)
                rows.append(dice_by_shift(values.get_unscaled(), organ))  # type: ignore[no-untyped-call]
        table = np.array(rows)
        others = (table.sum(axis=0) - table) / (len(table) - 1)
        chosen = others.argmax(axis=1)
        plain = table[:, len(SHIFTS) // 2].mean()
        shifted = np.take_along_axis(table, chosen[:, None], axis=1).mean()
        gained.append(shifted - plain)
        shifts = ", ".join(f"{shift:+g}" for shift in SHIFTS[chosen])
        print(f"| {name} | {len(table)} | {plain:.3f} | {shifted:.3f} | {shifts} |", flush=True)
    print(f"mean gain {np.mean(gained):+.4f}")


if __name__ == "__main__":
    main()
