"""A small Dask cluster on this machine, and scans that crash its workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from distributed import Worker, WorkerPlugin

from helpers.tiny_dataset import SCHEMA, tiny_case
from zoomseg.cluster.worker import ClusterJob, Reply
from zoomseg.inference import batch
from zoomseg.inference.batch import ExtraOutputs
from zoomseg.inference.journal import Run
from zoomseg.inference.load import PredictionSettings
from zoomseg.io import bundle
from zoomseg.io.scans import ScanInput, write_image

RUN = Run(
    model_sha256="",
    recipe_sha256="",
    scans="0" * 64,
    run={
        **dict.fromkeys(("zoomseg", "recipe", "device", "precision", "backend"), ""),
        "models": [],
        "trained": {},
        "started": "2026-01-02T03:04:05Z",
        "labels": {"background": 0},
        "notes": [],
    },
)
"""A run of no particular model."""


class Crashes(WorkerPlugin):
    """The process dies when it reads a scan called ``always-...``; the first process to read ``once-...``
    dies, too."""

    name = "crashes"

    def setup(self, worker: Worker) -> None:
        read = batch.read_scan

        def read_or_die(scan: ScanInput, channels_last: bool = False) -> object:
            if scan.id.startswith("always"):
                os.kill(os.getpid(), signal.SIGKILL)
            mark = scan.paths[0].with_suffix(".crashed")
            if scan.id.startswith("once") and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read(scan, channels_last)

        batch.read_scan = read_or_die  # type: ignore[assignment]


class Told:
    """An observer that records all calls."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.workers: list[int] = []
        self.left_out: tuple[str, ...] = ()

    def leave_out(self, cases: Sequence[str]) -> None:
        self.left_out = tuple(cases)

    def on_reply(self, reply: Reply) -> None:
        self.replies.append(reply)

    def count(self, workers: int) -> None:
        self.workers.append(workers)


def job_of(out: Path, *models: Path, ship: bool = False) -> ClusterJob:
    """A job for the tiny model's organs, on the CPU."""
    return ClusterJob(
        id="1f",
        models=tuple(map(str, models)),
        out=str(out),
        organs=SCHEMA.names,
        extra=ExtraOutputs(stages=True),
        device="cpu",
        settings=PredictionSettings("openvino"),
        scans="3" * 64,
        notes=(),
        started="2026-01-02T03:04:05Z",
        ship=ship,
    )


def tiny_model(folder: Path) -> Path:
    """The tiny model with ONNX graphs, so that workers need no torch, which takes seconds to import."""
    from helpers.untrained_models import untrained_bundle
    from zoomseg.backends.onnx_graph import write_graphs

    bundle.save(untrained_bundle(), folder)
    write_graphs(folder)
    return folder


def tiny_scans(folder: Path, *names: str) -> list[ScanInput]:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        write_image(folder / f"{name}.nii.gz", tiny_case(seed)[0])
    return [ScanInput(name, (folder / f"{name}.nii.gz",)) for name in names]


def label_maps(out: Path) -> dict[str, bytes]:
    """Contents of all results except ``run.json``, by file."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix == ".gz"
    }
