"""The rows of the benchmark: the command of each, and how its record is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from account import Account, Segment, read_account

HERE = Path(__file__).parent

ZOOMSEG_GROUPS = {
    "read": "read",
    "prepare": "prepare",
    "atlas": "prepare",
    "fuse": "merge",
    "write": "write",
    "summary": "write",
}
"""Groups of the steps in ``run.json`` that are not stages."""
AFTER_WRITING = ("summary",)
NO_STEPS = ("total", "waited")
"""Keys that repeat the time of other steps: that of all, and part of the reading time."""


@dataclass(frozen=True)
class Job:
    """The task of all rows."""

    scan: Path
    model: Path
    peers: Path | None
    """Python interpreter of the environment with nnU-Net and MONAI."""
    spacing_mm: float
    device: str


@dataclass(frozen=True)
class Network:
    """A row's network: for ZoomSeg, that of the last stage."""

    name: str
    features: tuple[int, ...]
    flops_per_voxel: float
    classes: int


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    network: Network
    command: Callable[[Job, Network, Path], list[str]]
    """Job, network and an empty folder for the results -> command."""
    account: Callable[[Path], Account]
    """Folder with the results -> record of the process."""


def zoomseg_command(job: Job, network: Network, out: Path) -> list[str]:
    program = [sys.executable, "-m", "zoomseg", "predict", str(job.scan)]
    return [*program, "-m", str(job.model), "-o", str(out), "--device", job.device]


def zoomseg_account(out: Path) -> Account:
    """The record from ``run.json``, which contains durations only: steps are assumed to follow one another,
    the last one ending when the label map was written."""
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    ((case, record),) = run["cases"].items()
    if record["status"] != "done":
        raise ValueError(record["error"])
    seconds = {step: value for step, value in record["seconds"].items() if step not in NO_STEPS}
    in_network = {stage["stage"]: stage["network_seconds"] for stage in record["stages"]}
    before = sum(value for step, value in seconds.items() if step not in AFTER_WRITING)
    now = (out / f"{case}.nii.gz").stat().st_mtime - before
    segments = []
    for step, value in seconds.items():
        for name, group, took in _parts(step, value, in_network.get(step)):
            segments.append(Segment(name, group, now, now + took))
            now += took
    tiles = sum(stage["tiles"] for stage in record["stages"])
    return Account(f"ZoomSeg {run['zoomseg']}", tuple(segments), tiles, record["peak_vram_mb"])


def _parts(step: str, seconds: float, in_network: float | None) -> list[tuple[str, str, float]]:
    """Name, group and seconds of a step. A stage has two parts, its network and the remaining work. They
    alternate tile by tile, so that memory sampled in one may have been allocated by the other."""
    if in_network is None:
        return [(step, ZOOMSEG_GROUPS.get(step, "other"), seconds)]
    network = min(in_network, seconds)  # durations of steps are rounded
    return [(step, "network", network), (f"{step}, around", "other", seconds - network)]


def peer_command(script: str) -> Callable[[Job, Network, Path], list[str]]:
    def command(job: Job, network: Network, out: Path) -> list[str]:
        features = [str(n) for n in network.features]
        return [
            *(str(job.peers), str(HERE / script), "--scan", str(job.scan), "--out", str(out)),
            *("--features", *features, "--classes", str(network.classes)),
            *("--spacing", str(job.spacing_mm), "--device", job.device),
        ]

    return command


def peer_account(out: Path) -> Account:
    return read_account(out / "account.json")


PEERS = ("nnunet", "nnunet-same-flops", "monai")
NAMES = ("zoomseg", *PEERS)


def zoomseg_row(fine: Network) -> Row:
    return Row("zoomseg", "ZoomSeg", fine, zoomseg_command, zoomseg_account)


def peer_rows(default: Network, same_flops: Network) -> list[Row]:
    nnunet, monai = peer_command("row_nnunet.py"), peer_command("row_monai.py")
    return [
        Row("nnunet", "nnU-Net, its own network", default, nnunet, peer_account),
        Row("nnunet-same-flops", "nnU-Net, same FLOPs", same_flops, nnunet, peer_account),
        Row("monai", "MONAI, same FLOPs", same_flops, monai, peer_account),
    ]
