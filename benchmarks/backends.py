"""Compare the backends that compute a model's networks on one CPU thread: seconds, memory and agreement.

    python benchmarks/backends.py MODEL SCAN

Up to five input tiles of every stage are computed. Prints a Markdown table with a row per stage, backend and
precision: processor seconds (unaffected by other processes) for loading the networks of all stages and for
one tile (best of three); the increase in memory by both, measured in a separate process; and the share of
voxels with the same class as in PyTorch with float32, among all voxels and among those that either of the two
assigns to an organ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast, get_args

import numpy as np
import numpy.typing as npt

from zoomseg.backends.choice import BACKENDS, Backend
from zoomseg.backends.cpu import Precision
from zoomseg.backends.device import Device
from zoomseg.backends.networks import networks_of
from zoomseg.core.arrays import Array
from zoomseg.core.case import Case
from zoomseg.core.memory import used_ram
from zoomseg.core.tiling import Tile
from zoomseg.io import bundle
from zoomseg.io.scans import read_image
from zoomseg.pipeline.sliding_window import StageNetwork

TILES, REPEATS = 5, 3
ROWS = [(b, p) for b in BACKENDS for p in get_args(Precision) if (b, p) != ("onnxruntime", "fastest")]
"""ONNX Runtime always computes in float32."""
NO_TILES: tuple[Tile, ...] = ()
"""Trained networks do not use the positions of their tiles."""


def tiles_of(model: bundle.Bundle, scan: Path) -> dict[str, list[npt.NDArray[np.float32]]]:
    """The input tiles of every stage's network for a scan; the preceding stages are computed by PyTorch."""
    from zoomseg.backends.device import resolve
    from zoomseg.backends.torch_networks import as_network, ready_network
    from zoomseg.pipeline.cascade import Cascade
    from zoomseg.pipeline.stage_input import StageView

    device = resolve("cpu")
    seen: dict[str, list[npt.NDArray[np.float32]]] = {}

    def network(view: StageView) -> StageNetwork:
        compute = as_network(ready_network(model, view.stage.name, device), device)

        def looking_on(x_BCIJK: Array, tiles: tuple[Tile, ...]) -> Array:
            seen.setdefault(view.stage.name, []).extend(x[None].copy() for x in x_BCIJK)
            return compute(x_BCIJK, tiles)

        return looking_on

    Cascade(model.recipe, model.schema, network, device).run(Case(scan.name, read_image(scan)))
    return seen


def spread(tiles: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """``TILES`` of the tiles, evenly spaced from the first to the last."""
    chosen = np.linspace(0, len(tiles) - 1, min(TILES, len(tiles))).round().astype(int)
    return np.concatenate([tiles[n] for n in chosen])


def measure(model: str, stage: str, backend: Backend, precision: str, folder: Path) -> None:
    """Print one row's figures and save its classes to a file; run in a separate process."""
    tiles = np.load(folder / f"{stage}.npy")
    loaded = bundle.load(model)
    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    before, began = used_ram(), time.process_time()
    compute = networks_of([loaded], backend, Device("cpu", precision != "float32"), threads=1)[stage]
    ready = time.process_time() - began
    compute(tiles[:1], NO_TILES)
    best = min(seconds(compute, tiles[:1]) for _ in range(REPEATS))
    peak = peak_ram() - before
    classes = np.concatenate(
        [compute(tile[None], NO_TILES).argmax(axis=1).astype(np.uint8) for tile in tiles]
    )
    np.save(folder / f"{stage}-{backend}-{precision}.npy", classes)
    print(f"{ready:.2f} | {best:.3f} | {peak >> 20}")


def seconds(compute: StageNetwork, tile: npt.NDArray[np.float32]) -> float:
    """Processor seconds of one tile."""
    began = time.process_time()
    compute(tile, NO_TILES)
    return time.process_time() - began


def peak_ram() -> int:
    """Peak memory of this process in bytes. ``getrusage`` would include the peak of the parent process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def agreement(found: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> str:
    same, either = found == truth, (found > 0) | (truth > 0)
    return f"{100 * same.mean():.2f} | {100 * same[either].mean():.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scan", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiles = {
            stage: spread(found)
            for stage, found in tiles_of(bundle.load(options.model), options.scan).items()
        }
        for stage, found in tiles.items():
            np.save(folder / f"{stage}.npy", found)
        print("| stage | backend | precision | load, s | tile, s | memory, MB | alike, % | of organs', % |")
        print("|---|---|---|---:|---:|---:|---:|---:|")
        for stage in tiles:
            figures = {row: in_new_process(options.model, stage, *row, folder) for row in ROWS}
            truth = np.load(folder / f"{stage}-torch-float32.npy")
            for (backend, precision), told in figures.items():
                found = np.load(folder / f"{stage}-{backend}-{precision}.npy")
                print(f"| {stage} | {backend} | {precision} | {told} | {agreement(found, truth)} |")


def in_new_process(model: str, stage: str, backend: str, precision: str, folder: Path) -> str:
    arguments = [sys.executable, __file__, "--row", model, stage, backend, precision, str(folder)]
    return subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        model, stage, backend, precision, folder = sys.argv[2:]
        measure(model, stage, cast(Backend, backend), precision, Path(folder))
    else:
        main()
