"""Time to read a DICOM series, compared with SimpleITK's series reader on the same files.

    python benchmarks/dicom.py SERIES [--slices 300] [--repeat 3]

Repeats the slices of the series until it has the required length, in its original compression and
uncompressed, in a temporary folder. Prints the seconds of both readers from folder to voxels, best of the
repeats. Both use one thread, and find the files and their order themselves.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset
from pydicom.uid import UID

from zoomseg.io.scans import find_scans, read_scan

STEP_MM = 2.0


def lengthened(files: list[Path], folder: Path, slices: int, plain: bool) -> None:
    """Write the series repeatedly until it has ``slices`` slices, each ``STEP_MM`` above the previous one."""
    folder.mkdir()
    for k in range(slices):
        dataset = pydicom.dcmread(files[k % len(files)])
        if plain and dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            dataset.decompress()
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, STEP_MM * k]
        _identify(dataset, k)
        dataset.save_as(folder / f"{k:04d}.dcm")


def _identify(dataset: Dataset, k: int) -> None:
    uid = UID(f"1.2.826.0.1.3680043.10.1.{k}")
    dataset.SOPClassUID, dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPClassUID, uid
    dataset.file_meta.MediaStorageSOPInstanceUID = uid


def by_zoomseg(folder: Path) -> npt.NDArray[Any]:
    (scan,) = find_scans(folder)
    voxels: npt.NDArray[Any] = read_scan(scan).image.data[0]
    return voxels


def by_simpleitk(folder: Path) -> npt.NDArray[Any]:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute()).T


def seconds(read: Callable[[Path], npt.NDArray[Any]], folder: Path) -> tuple[float, npt.NDArray[Any]]:
    began = time.perf_counter()
    voxels = read(folder)
    return time.perf_counter() - began, voxels


def compare(folder: Path, repeat: int) -> tuple[float, float]:
    """Lowest seconds of ZoomSeg and SimpleITK, measured alternately."""
    ours, theirs = [], []
    for _ in range(repeat):
        took, mine = seconds(by_zoomseg, folder)
        ours.append(took)
        took, other = seconds(by_simpleitk, folder)
        theirs.append(took)
        assert np.array_equal(mine, other)
    return min(ours), min(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", type=Path)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    files = sorted(arguments.series.glob("*.dcm"))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    print("| series | ZoomSeg [s] | SimpleITK [s] | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, plain in (("uncompressed", True), ("as it came", False)):
            folder = Path(temporary, name.replace(" ", "-"))
            lengthened(files, folder, arguments.slices, plain)
            ours, theirs = compare(folder, arguments.repeat)
            print(f"| {arguments.slices} slices, {name} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
