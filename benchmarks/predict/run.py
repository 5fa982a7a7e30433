"""Compare ZoomSeg, nnU-Net v2 and MONAI on the same large scan: seconds and peak memory of every step.

    python benchmarks/predict/run.py -o OUT -m MODEL [--peers PYTHON] [--scan FILE] [--only zoomseg,nnunet]

Rows run one after the other, each in a separate process that is monitored from outside. Writes OUT/table.md,
results.json, steps.csv and plot.png; OUT/<row>/ contains each row's label map and output. Without --scan, a
CT of 512 x 512 x 300 voxels is made from the folder ct_fullres in ZOOMSEG_DATA. README.md describes how to
set up the peers.
"""

from __future__ import annotations

# Import nothing large here: the peak memory of a child process includes that of its parent (see watch).
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import psutil
from measure import Measured, environment, measure, processor
from rows import HERE, NAMES, PEERS, Job, Network, Row, peer_rows, zoomseg_row
from table import Setting, write_results

SOURCE = Path("ct_fullres") / "chaos_ct_case.nii.gz"
FREE_SHARE = 0.9
"""Share of the memory that is free at the start to which a row is limited unless --max-ram is given."""


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    names = options.only.split(",") if options.only else NAMES if options.peers else ("zoomseg",)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no row '{unknown[0]}'; allowed: {', '.join(NAMES)}")
    if options.peers is None and (wanted := sorted(set(names) & set(PEERS))):
        parser.error(f"row '{wanted[0]}' needs --peers, the Python that has nnU-Net and MONAI")
    options.out.mkdir(parents=True, exist_ok=True)
    scan = options.scan or _made_scan(parser, options.out)
    if not scan.is_file():
        parser.error(f"{scan}: no such file")
    job = Job(scan.resolve(), options.model, options.peers, options.spacing, options.device)
    rows = [row for row in _rows(job, options.classes, options.peers is not None) if row.name in names]
    limit_mb = 1024 * (options.max_ram or FREE_SHARE * psutil.virtual_memory().available / 1024**3)
    setting = _setting(job, options.threads)
    done: list[Measured] = []
    for row in rows:
        print(f"{row.title} ...", flush=True)
        done.append(measure(row, job, options.out / row.name, environment(options.threads), limit_mb))
        print(f"  {done[-1].failure or f'{done[-1].seconds:.1f} s'}, {done[-1].peak_ram_mb / 1024:.2f} GB")
    write_results(setting, done, options.out)
    print((options.out / "table.md").read_text(encoding="utf-8"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("-o", "--out", type=Path, required=True)
    add("-m", "--model", type=Path, required=True, help="model folder for ZoomSeg")
    add("--scan", type=Path, help="NIfTI file; generated if not given")
    add("--spacing", type=float, default=1.5, help="spacing of the peers' networks in mm; default: 1.5")
    add("--peers", type=Path, help="Python interpreter of the environment with nnU-Net and MONAI")
    add("--only", help=f"rows, separated by commas: {', '.join(NAMES)}")
    add("--classes", type=int, help="number of classes of the peers' networks; default: that of the model")
    add("--threads", type=int, default=os.cpu_count())
    add("--device", default="cpu", help="cpu or cuda")
    add("--max-ram", type=float, help="memory limit per row in GB; default: 90 %% of the free memory")
    return parser


def _made_scan(parser: argparse.ArgumentParser, out: Path) -> Path:
    data = os.environ.get("ZOOMSEG_DATA")
    if data is None:
        parser.error("give --scan, or set ZOOMSEG_DATA to the folder that has ct_fullres")
    scan = out / "scan.nii.gz"
    if not scan.exists():
        print(f"Making {scan} ...", flush=True)
        _run([sys.executable, str(HERE / "scan.py"), str(Path(data) / SOURCE), "-o", str(scan)])
    return scan


def _rows(job: Job, classes: int | None, with_peers: bool) -> list[Row]:
    """All rows that can be measured, with networks that cost as much as ZoomSeg's last one."""
    fine = json.loads(_run([sys.executable, str(HERE / "fine_network.py"), str(job.model)]))
    ours = Network(fine["network"], (), fine["flops_per_voxel"], fine["classes"])
    if not with_peers:
        return [zoomseg_row(ours)]
    count = classes or ours.classes
    wanted = ["--flops-per-voxel", str(ours.flops_per_voxel), "--classes", str(count)]
    found = json.loads(_run([str(job.peers), str(HERE / "networks.py"), *wanted]))
    default, same = (_peer_network(found[key], count) for key in ("default", "same_flops"))
    return [zoomseg_row(ours), *peer_rows(default, same)]


def _peer_network(found: dict[str, Any], classes: int) -> Network:
    features = tuple(found["features"])
    name = f"plain U-Net {'-'.join(map(str, features))}"
    return Network(name, features, found["flops_per_voxel"], classes)


def _run(command: list[str]) -> str:
    """The last line that a command prints; if it fails, the benchmark ends with its error message."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        complaint = result.stderr.strip().splitlines() or ["no message"]
        sys.exit(f"{Path(command[1]).name} failed: {complaint[-1]}")
    return result.stdout.strip().splitlines()[-1]


def _setting(job: Job, threads: int) -> Setting:
    image = nib.load(job.scan)
    if not isinstance(image, nib.Nifti1Image):
        sys.exit(f"{job.scan}: not a NIfTI file")
    spacing = " x ".join(f"{size:.2f}" for size in image.header.get_zooms())  # type: ignore[no-untyped-call]
    shape = " x ".join(map(str, image.shape))
    megabytes = job.scan.stat().st_size / 1e6
    kind = image.get_data_dtype()  # type: ignore[no-untyped-call]
    scan = f"{job.scan.name}, {shape} voxels of {spacing} mm, {kind}, {megabytes:.0f} MB"
    machine = f"{processor()}, {psutil.virtual_memory().total / 1024**3:.0f} GB"
    return Setting(scan, machine, job.device, threads, job.spacing_mm, time.strftime("%Y-%m-%d"))


if __name__ == "__main__":
    main()
