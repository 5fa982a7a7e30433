"""Compare an imported nnU-Net model with nnU-Net itself on the same scans: agreement, time and memory.

    python benchmarks/nnunet_import.py MODEL_FOLDER SCAN... --peers PYTHON [--overlap 0.25] [--body]

MODEL_FOLDER was written by nnU-Net's training or by ``nnunet_model.py``; PYTHON is the interpreter of an
environment with nnunetv2. Both predict one scan after the other, each in a separate process, on the CPU with
``--threads`` threads and without mirroring: nnU-Net in float32, ZoomSeg as in ``zoomseg predict`` (bfloat16
if the CPU supports it natively, unless ``--float32`` is given). nnU-Net's seconds extend from reading to the
labels; ZoomSeg's are the total in ``run.json``, which includes writing. Prints, for every scan and overlap,
the lowest and the mean Dice between the two label maps over the labels that have at least ``--least`` voxels
in either of them, the share of equal voxels, and the seconds and peak memory of both programs.

``predict/scan.py`` makes a scan of 512 x 512 x 300 voxels from the folder ct_fullres in ZOOMSEG_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

PEER = """
import resource, sys, time, torch
import numpy as np
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, out, fold, threads, scan = sys.argv[1:]
torch.set_num_threads(int(threads))
predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, (fold,), "checkpoint_final.pth")
reader = predictor.plans_manager.image_reader_writer_class()
started = time.perf_counter()
image, properties = reader.read_images([scan])
labels = predictor.predict_single_npy_array(image, properties)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
np.savez(out, labels=labels.transpose(2, 1, 0).astype(np.uint8), seconds=seconds, peak_ram_mb=peak)
"""

FLOAT32 = """
import sys
from zoomseg.backends import device
device.fast_bfloat16 = lambda: False
from zoomseg.__main__ import main
main()
"""


@dataclass(frozen=True)
class Answer:
    """The result of one program for a scan. ``labels`` is ``[I, J, K]``."""

    labels: npt.NDArray[np.uint8]
    seconds: float
    peak_ram_mb: float


def main() -> None:
    given = _parser().parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Path(name) / "model"
        options = [*(["--body"] if given.body else []), "--folds", given.fold]
        _run([sys.executable, "-m", "zoomseg", "import", "nnunet", given.model, "-o", model, *options])
        print("| scan | overlap | labels | lowest Dice | mean Dice | alike, % | nnU-Net | ZoomSeg |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
        for scan in given.scans:
            theirs = _peer(given, scan, folder / "theirs.npz", environment)
            for overlap in (None, *given.overlap):
                own = _own(given, scan, model, folder / f"own-{scan.name}", overlap, environment)
                print(_row(scan, overlap, own, theirs, given.least), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("model", type=Path)
    add("scans", type=Path, nargs="+")
    add("--peers", type=Path, required=True, metavar="PYTHON")
    add("--fold", default="0")
    add("--overlap", type=float, action="append", default=[], help="an additional overlap; can be repeated")
    add("--body", action="store_true", help="import the model with --body")
    add("--float32", action="store_true", help="run ZoomSeg in float32 as well")
    add("--threads", type=int, default=os.cpu_count())
    add("--least", type=int, default=50, metavar="VOXELS")
    return parser


def _peer(given: argparse.Namespace, scan: Path, out: Path, environment: dict[str, str]) -> Answer:
    command = [given.peers, "-c", PEER, given.model, out, given.fold, given.threads, scan]
    _run(command, environment)
    found = np.load(out)
    return Answer(found["labels"], float(found["seconds"]), float(found["peak_ram_mb"]))


def _own(
    given: argparse.Namespace,
    scan: Path,
    model: Path,
    out: Path,
    overlap: float | None,
    environment: dict[str, str],
) -> Answer:
    program = ["-c", FLOAT32] if given.float32 else ["-m", "zoomseg"]
    less = [] if overlap is None else ["--overlap", str(overlap)]
    _run(
        [sys.executable, *program, "predict", scan, "-m", model, "-o", out, "--device", "cpu", *less],
        environment,
    )
    ((case, account),) = json.loads((out / "run.json").read_text())["cases"].items()
    image = nib.load(out / f"{case}.nii.gz")
    labels = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    return Answer(labels.astype(np.uint8), account["seconds"]["total"], account["peak_ram_mb"])


def _run(command: list[object], environment: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr, env=environment)


def _row(scan: Path, overlap: float | None, own: Answer, theirs: Answer, least: int) -> str:
    found = dices(own.labels, theirs.labels, least)
    alike = 100 * float((own.labels == theirs.labels).mean())
    shown = f"{min(found):.4f} | {np.mean(found):.4f}" if found else "none found |"
    took = " | ".join(f"{one.seconds:.1f} ({one.peak_ram_mb / 1024:.2f} GB)" for one in (theirs, own))
    tiles = "the model's" if overlap is None else f"{overlap:g}"
    return f"| {scan.name} | {tiles} | {len(found)} | {shown} | {alike:.3f} | {took} |"


def dices(one: npt.NDArray[Any], other: npt.NDArray[Any], least: int) -> list[float]:
    """Dice of every label that has at least ``least`` voxels in either map."""
    found = []
    for label in range(1, 1 + max(int(one.max()), int(other.max()))):
        a, b = one == label, other == label
        if max(a.sum(), b.sum()) >= least:
            found.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return found


if __name__ == "__main__":
    main()
