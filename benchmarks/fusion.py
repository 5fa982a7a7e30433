"""Time to write a prediction to the label map of a 512x512x300 scan, with numpy and torch, on one thread.

    OMP_NUM_THREADS=1 uv run python benchmarks/fusion.py

The prediction is synthetic: ellipsoids with rough borders at 1.5 mm, on a scan of 0.75x0.75x1 mm, in slabs
of 40 planes, as produced by tiles. Prints the median of the rounds in processor seconds, which depend less
than wall-clock time on other processes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from zoomseg.core.arrays import Array
from zoomseg.core.geometry import Grid, Index3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.pipeline.fusion import FusedLabelMap, SlabFusion

SCAN = Grid.from_spacing((512, 512, 300), (0.75, 0.75, 1.0))
STAGE = SCAN.with_spacing((1.5, 1.5, 1.5))
SLAB = 40
ROUGH_VOX = 8
LIBRARIES: dict[str, Callable[[npt.NDArray[np.float32]], Array]] = {
    "numpy": np.asarray,
    "torch": torch.from_numpy,
}


def rough(random: np.random.Generator, shape: Index3) -> npt.NDArray[np.float32]:
    """Noise drawn for every ``ROUGH_VOX``-th voxel along each axis and interpolated linearly in between."""
    few = tuple(n // ROUGH_VOX for n in shape)
    noise = random.standard_normal(few).astype(np.float32)
    out: npt.NDArray[np.float32] = ndimage.zoom(
        noise, [n / m for n, m in zip(shape, few, strict=True)], order=1
    )
    return out


def predicted(classes: int, shape: Index3) -> npt.NDArray[np.float32]:
    """Probabilities ``[classes, *shape]``, with one ellipsoid for every class except background."""
    random = np.random.default_rng(classes)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    logits = np.zeros((classes, *shape), dtype=np.float32)
    for own in logits[1:]:
        size, centre = (
            x.astype(np.float32) for x in (random.uniform(0.1, 0.45, 3), random.uniform(-0.6, 0.6, 3))
        )
        away = np.sqrt(sum(((x - c) / s) ** 2 for x, c, s in zip(axes, centre, size, strict=True)))
        own += np.clip((1 - away) * 4 + rough(random, shape), -8, 8)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=0)
    return logits


def slabs(probabilities: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    for k in range(0, probabilities.shape[3], SLAB):
        yield np.ascontiguousarray(probabilities[..., k : k + SLAB])


def seconds(
    library: Callable[[npt.NDArray[np.float32]], Array], probabilities: npt.NDArray[np.float32]
) -> float:
    names = tuple(f"organ {n}" for n in range(1, len(probabilities)))
    fused = FusedLabelMap.blank(SCAN, LabelSchema.consecutive(names), library(probabilities))
    fusion = SlabFusion(fused, STAGE, names, Region.whole(STAGE))
    taken = 0.0
    for slab in map(library, slabs(probabilities)):
        began = time.process_time()
        fusion.add(slab)
        taken += time.process_time() - began
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[14, 105])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| classes | library | seconds |\n|---:|---|---:|")
    for classes in options.classes:
        probabilities = predicted(classes, STAGE.shape)
        for name, library in LIBRARIES.items():
            taken = [seconds(library, probabilities) for _ in range(options.rounds)]
            print(f"| {classes} | {name} | {statistics.median(taken):.2f} |")


if __name__ == "__main__":
    main()
