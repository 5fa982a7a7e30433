"""Disk space and number of packages of each program, in a fresh environment each.

    uv run python benchmarks/environments.py [--with REQUIREMENT]

Compares the wheel of this source tree, without and with its extras, with nnU-Net, TotalSegmentator and MONAI.
Byte code that Python compiles on first use is not included. --with adds a requirement to everything that
needs PyTorch, for example a build without CUDA.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = {
    "nnU-Net": "nnunetv2",
    "TotalSegmentator": "TotalSegmentator",
    "MONAI, with nibabel": "monai[nibabel]",
}


def uv(*arguments: str | Path) -> None:
    subprocess.run(["uv", "--quiet", *map(str, arguments)], cwd=ROOT, check=True)


def measured(folder: Path, requirements: list[str]) -> tuple[float, int]:
    """Size of the packages of a new environment in megabytes (2^20 bytes), and their number."""
    uv("venv", folder)
    uv("pip", "install", "--no-compile", "--python", folder / "bin" / "python", *requirements)
    (packages,) = folder.glob("lib/python*/site-packages")
    size = sum(path.lstat().st_blocks * 512 for path in packages.rglob("*"))
    return size / 2**20, len(list(packages.glob("*.dist-info")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--with", dest="more", action="append", default=[], metavar="REQUIREMENT")
    options = parser.parse_args()
    print("| installed | MB | packages |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        uv("build", "--wheel", "--out-dir", folder)
        (wheel,) = folder.glob("*.whl")
        rows = {
            "ZoomSeg: predicts, evaluates, checks, shows, serves": [str(wheel)],
            "ZoomSeg with `train`": [f"{wheel}[train]", *options.more],
            "ZoomSeg with all extras": [f"{wheel}[train,atlas,dicom-extra,cluster]", *options.more],
            **{name: [requirement, *options.more] for name, requirement in PEERS.items()},
        }
        for number, (name, requirements) in enumerate(rows.items()):
            size, packages = measured(folder / str(number), requirements)
            print(f"| {name} | {size:.0f} | {packages} |", flush=True)


if __name__ == "__main__":
    main()
