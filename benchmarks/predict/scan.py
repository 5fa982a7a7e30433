"""Make a large scan for measurements of prediction from any CT.

    python benchmarks/predict/scan.py SCAN -o OUT.nii.gz [--labels LABELS OUT_LABELS.nii.gz]

Resamples SCAN to 512 x 512 x 300 voxels of int16 (linear, half-voxel exact; labels by nearest neighbour).
A scan shorter than 375 mm in z, such as a slab, is stretched to that length: its organs are then
anatomically too long, but a pipeline has as much to compute as for a whole torso. Noise of 10 HU (seeded) is
added, as interpolated voxels are smoother than measured ones and would be too easy to compress.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

SHAPE = (512, 512, 300)
LENGTH_MM = 375.0
NOISE_HU = 10.0
SEED = 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """The grid to which a volume is resampled; ``scale`` is old voxels per new voxel along each axis."""

    shape: tuple[int, int, int]
    affine: Floats


def target_of(shape: tuple[int, ...], affine: Floats, wanted: tuple[int, int, int]) -> Target:
    """``wanted`` voxels over a scan's field of view, whose last axis is stretched to at least
    ``LENGTH_MM``."""
    scale = np.array(shape) / np.array(wanted)
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * scale
    # The outer faces of the field of view are kept: the first voxel's centre moves by half the difference.
    new[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((scale - 1) / 2)
    length = float(np.linalg.norm(new[:3, 2])) * wanted[2]
    new[:3, 2] *= max(1.0, LENGTH_MM / length)
    return Target(wanted, new)


def resized(
    data: npt.NDArray[np.float32], shape: tuple[int, int, int], order: Literal[0, 1]
) -> npt.NDArray[np.float32]:
    """``[I, J, K]`` over the same field of view; ``order`` 1 is linear, 0 nearest neighbour."""
    zoom = [new / old for new, old in zip(shape, data.shape, strict=True)]
    out = np.empty(shape, dtype=np.float32)
    ndimage.zoom(data, zoom, output=out, order=order, mode="nearest", grid_mode=True)
    return out


def read(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image) or image.ndim != 3:
        sys.exit(f"{path}: not a NIfTI file of three axes")
    return image


def make_scan(
    source: Path, out: Path, wanted: tuple[int, int, int] = SHAPE, noise_hu: float = NOISE_HU
) -> None:
    """Write the large scan made from ``source`` as int16."""
    image = read(source)
    target = target_of(image.shape, image.affine, wanted)
    data = resized(np.asarray(image.dataobj, dtype=np.float32), wanted, order=1)
    data += np.random.default_rng(SEED).standard_normal(wanted, dtype=np.float32) * noise_hu
    save(np.rint(data, out=data).astype(np.int16), target, out)


def make_labels(source: Path, out: Path, wanted: tuple[int, int, int] = SHAPE) -> None:
    """Write the labels of ``source`` as uint8, on the grid that ``make_scan`` uses for its scan."""
    image = read(source)
    data = resized(np.asarray(image.dataobj, dtype=np.float32), wanted, order=0)
    save(data.astype(np.uint8), target_of(image.shape, image.affine, wanted), out)


def save(data: npt.NDArray[np.int16] | npt.NDArray[np.uint8], target: Target, out: Path) -> None:
    image = nib.Nifti1Image(data, target.affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    out.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--labels", nargs=2, type=Path, metavar=("LABELS", "OUT"))
    parser.add_argument("--shape", nargs=3, type=int, default=SHAPE, metavar=("I", "J", "K"))
    options = parser.parse_args()
    i, j, k = options.shape
    make_scan(options.scan, options.out, (i, j, k))
    if options.labels:
        labels, out = options.labels
        make_labels(labels, out, (i, j, k))


if __name__ == "__main__":
    main()
