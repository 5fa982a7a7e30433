"""Agreement of an imported nnU-Net model with nnU-Net itself, on the same patch and scans.

    python benchmarks/nnunet_agreement.py MODEL_FOLDER SCAN... --peers PYTHON [--mirror] [--labels FOLDER]

MODEL_FOLDER was written by nnU-Net's training (for a cascade, its 3d_lowres lies next to it); SCAN is a file,
or several files, one per channel, separated by commas; PYTHON is the interpreter of an environment with
nnunetv2. Both predict one scan after the other, in float32 on the CPU, with tiles that overlap by half and,
with ``--mirror``, mirroring. Prints the largest difference of logits on one patch of each network; then, for
every scan, the lowest and the mean Dice between the two label maps over the labels that have at least
``--least`` voxels in either of them, the share of equal voxels, and the seconds of both programs; with
``--labels``, also the mean Dice of both with the label map of the same name in that folder. nnU-Net
accumulates logits in half precision; ``--exact`` makes it use float32, to separate this effect from other
differences.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
from nnunet_import import dices

from zoomseg.backends.device import Device
from zoomseg.backends.torch_networks import trained_network
from zoomseg.core.case import Case
from zoomseg.core.volume import Volume
from zoomseg.importing.nnunet import plans
from zoomseg.importing.nnunet.files import read
from zoomseg.importing.nnunet.network import axes_of
from zoomseg.importing.nnunet.run import import_models
from zoomseg.inference.load import PredictionSettings, ready_predictor
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.io.scans import read_image

PEER = """
import sys, time, torch
from pathlib import Path
import numpy as np
from nnunetv2.inference import predict_from_raw_data as theirs
model, out, fold, mirror, exact, *scans = sys.argv[1:]
if exact == "1":
    class Exact:
        half = torch.float32
        def __getattr__(self, name):
            return getattr(torch, name)
    theirs.torch = Exact()
def loaded(folder):
    own = theirs.nnUNetPredictor(use_mirroring=mirror == "1", device=torch.device("cpu"), allow_tqdm=False)
    own.initialize_from_trained_model_folder(str(folder), (fold,), "checkpoint_final.pth")
    return own
chain = [loaded(model)]
while (name := chain[0].configuration_manager.previous_stage_name) is not None:
    folder = Path(model).resolve()
    chain.insert(0, loaded(folder.with_name(folder.name.rpartition("__")[0] + "__" + name)))
def patch(own):
    size = own.configuration_manager.patch_size
    channels = next(iter(own.list_of_parameters[0].values())).shape[1]
    image = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    own.network.load_state_dict(own.list_of_parameters[0])
    with torch.no_grad():
        return {"image": image.numpy(), "logits": own.network.eval()(image).numpy()}
for n, own in enumerate(chain):
    np.savez(f"{out}/patch{n}.npz", **patch(own))
reader = chain[0].plans_manager.image_reader_writer_class()
for n, scan in enumerate(scans):
    started, before = time.perf_counter(), None
    image, properties = reader.read_images(scan.split(","))
    for own in chain:
        labels = own.predict_single_npy_array(image, dict(properties), before)
        before = labels[None].astype(np.float32)  # as its reader of files returns them
    np.savez(f"{out}/{n}.npz", labels=labels.transpose(2, 1, 0), seconds=time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("scans", nargs="*")
    parser.add_argument("--peers", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--labels", type=Path, metavar="FOLDER")
    parser.add_argument("--least", type=int, default=50, metavar="VOXELS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        switches = [str(int(given.mirror)), str(int(given.exact))]
        command = [given.peers, "-c", PEER, given.model, folder, given.fold, *switches, *given.scans]
        subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
        import_models([given.model], folder / "model", (given.fold,))
        model = bundle.load(folder / "model")
        for n, stage in enumerate(model.recipe.stages):
            theirs = np.load(folder / f"patch{n}.npz")
            print(
                f"{stage.name}: logits differ by {_logits_differ(model, n, theirs, given.model):.1e} at most"
            )
        predictor = ready_predictor(model, Device("cpu"), PredictionSettings(mirror=given.mirror))
        print(
            "\n| scan | labels | lowest Dice | mean Dice | voxels alike, % | nnU-Net, s | ZoomSeg, s |",
            end="",
        )
        print(" nnU-Net to reference | ZoomSeg to reference |" if given.labels else "")
        print("|---|---:|---:|---:|---:|---:|---:|" + ("---:|---:|" if given.labels else ""))
        for n, scan in enumerate(given.scans):
            paths = [Path(path) for path in scan.split(",")]
            print(_row(predictor, paths, np.load(folder / f"{n}.npz"), given.least, given.labels), flush=True)


def _logits_differ(model: Bundle, n: int, theirs: np.lib.npyio.NpzFile, folder: Path) -> float:
    """The largest absolute difference between the logits of one stage on a patch."""
    import torch

    stage = model.recipe.stages[n]
    axes = axes_of(plans.parse(read(folder, None).plans).transpose_forward)
    image, expected = theirs["image"], theirs["logits"]
    if image.ndim == 4:  # a 2D patch
        image, expected = image[:, :, None], expected[:, :, None]
    turn = (0, 1, *(2 + axis for axis in axes))
    with torch.no_grad():
        network = trained_network(model, stage).eval()
        found = network(torch.from_numpy(image.transpose(turn).copy()))[0].numpy()
    if stage.labels_overlap:
        found = found[:, 1:] - found[:, :1]
    return float(np.abs(found - expected.transpose(turn)).max())


def _row(
    predictor: Predictor, scan: list[Path], theirs: np.lib.npyio.NpzFile, least: int, labels: Path | None
) -> str:
    started = time.perf_counter()
    images = [read_image(path) for path in scan]
    image = Volume(np.concatenate([one.data for one in images]), images[0].grid)
    own = predictor.predict(Case(scan[0].name, image), keep=False).labels
    values = own.schema.decode(own.data)
    seconds = time.perf_counter() - started
    found = dices(values, theirs["labels"], least)
    alike = 100 * float((values == theirs["labels"]).mean())
    shown = f"{min(found):.4f} | {np.mean(found):.4f}" if found else "none found |"
    cells = [
        scan[0].name,
        len(found),
        shown,
        f"{alike:.3f}",
        f"{float(theirs['seconds']):.1f}",
        f"{seconds:.1f}",
    ]
    if labels is not None:
        path = labels / scan[0].name.replace("_0000", "")
        reference = np.asanyarray(nibabel.load(path).dataobj).astype(np.int64)  # type: ignore[attr-defined]
        cells += [f"{np.mean(dices(one, reference, least)):.4f}" for one in (theirs["labels"], values)]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
