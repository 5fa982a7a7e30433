"""How certain a result is: python uncertainty.py [SCAN] [MODEL] [OUT]

Writes the probability of every label and their entropy as NIfTI, on the grid of the model's last stage.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.special import entr

import zoomseg
from zoomseg.io.scans import write_array

DEFAULTS = (
    "zoomseg-demo/held-out/imagesTr/phantom_1000_0000.nii.gz",
    "zoomseg-demo/model",
    "uncertainty",
)


def main(scan: str, model: str, out: str) -> None:
    result = zoomseg.load(model).predict(scan, probabilities=True)
    found = result.probabilities
    if found is None:
        sys.exit(f"{scan}: the model found nothing")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    probabilities = np.asarray(found.probabilities)  # [1 + labels, I, J, K], background first
    for name in found.labels:
        write_array(folder / f"{name}.nii.gz", probabilities[found.channel(name)], found.grid)
    entropy = entr(probabilities).sum(axis=0) / np.log(2)  # bits
    write_array(folder / "entropy.nii.gz", entropy, found.grid)
    print(f"mean entropy in the region: {entropy[np.asarray(found.in_region)].mean():.3f} bits")

    # An estimate of each organ's Dice, calibrated if cases were held out when the model was trained.
    for organ in sorted(result.summary, key=lambda row: row.confidence or 0.0):
        sure = "unknown" if organ.confidence is None else f"{organ.confidence:.2f}"
        print(f"{organ.organ:24} confidence {sure}  {', '.join(organ.flags)}")


if __name__ == "__main__":
    main(*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])
