"""An imported nnU-Net model beside nnU-Net itself: do both say the same of the same scans, and how fast.

    python benchmarks/nnunet_import.py MODEL_FOLDER SCAN... --peers PYTHON

MODEL_FOLDER is what nnU-Net's training wrote; PYTHON is that of an environment with nnunetv2. Both predict
one scan after the other, in float32 on the CPU, tiles overlapping by half and without mirroring. Prints,
for every scan, the lowest and the mean Dice between the two label maps over the labels that either has found
with ``--least`` voxels or more, the share of voxels that are alike, and both programs' seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.importing.nnunet.run import import_model
from zoomseg.inference.load import ready_predictor
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.scans import read_image

PEER = """
import sys, time, torch
import numpy as np
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, out, fold, *scans = sys.argv[1:]
predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, (fold,), "checkpoint_final.pth")
reader = predictor.plans_manager.image_reader_writer_class()
for n, scan in enumerate(scans):
    started = time.perf_counter()
    image, properties = reader.read_images([scan])
    labels = predictor.predict_single_npy_array(image, properties)
    np.savez(f"{out}/{n}.npz", labels=labels.transpose(2, 1, 0), seconds=time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--peers", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--least", type=int, default=50, metavar="VOXELS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scans = [str(scan) for scan in given.scans]
        command = [str(given.peers), "-c", PEER, str(given.model), folder, given.fold, *scans]
        subprocess.run(command, check=True, stdout=sys.stderr)
        import_model(given.model, Path(folder) / "model", (given.fold,))
        predictor = ready_predictor(bundle.load(Path(folder) / "model"), Device("cpu"))
        print("| scan | labels | lowest Dice | mean Dice | voxels alike, % | nnU-Net, s | ZoomSeg, s |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for n, scan in enumerate(given.scans):
            print(_row(predictor, scan, np.load(Path(folder) / f"{n}.npz"), given.least), flush=True)


def _row(predictor: Predictor, scan: Path, theirs: np.lib.npyio.NpzFile, least: int) -> str:
    started = time.perf_counter()
    case = Case(scan.name, read_image(scan))
    own = predictor.predict(case, keep=False).labels.data
    seconds = time.perf_counter() - started
    found = dices(own, theirs["labels"], least)
    alike = 100 * float((own == theirs["labels"]).mean())
    shown = f"{min(found):.4f} | {np.mean(found):.4f}" if found else "none found |"
    took = f"{float(theirs['seconds']):.1f} | {seconds:.1f}"
    return f"| {scan.name} | {len(found)} | {shown} | {alike:.3f} | {took} |"


def dices(one: npt.NDArray[np.integer], other: npt.NDArray[np.integer], least: int) -> list[float]:
    """Of every label that has ``least`` voxels or more in either map."""
    found = []
    for label in range(1, 1 + max(int(one.max()), int(other.max()))):
        a, b = one == label, other == label
        if max(a.sum(), b.sum()) >= least:
            found.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return found


if __name__ == "__main__":
    main()
