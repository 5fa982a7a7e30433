"""The code of workers: one scan after the other, with a model that is loaded once."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import socket
import tempfile
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from distributed import Worker, WorkerPlugin, get_worker

from zoomseg.cluster.shipping import FileContents, ShippedScan
from zoomseg.core.errors import OutputError, ZoomSegError
from zoomseg.inference import batch, journal, result_page
from zoomseg.inference.batch import ExtraOutputs, Failed, ScanOutcome
from zoomseg.inference.journal import Entry, Run
from zoomseg.inference.load import PredictionSettings, load_predictor
from zoomseg.inference.outputs import Recorder, RequestedOutputs
from zoomseg.inference.predictor import Predictor
from zoomseg.io.scans import ScanInput

PREDICTION_THREADS = "OMP_NUM_THREADS"
"""Read by the libraries that compute the networks (``backends.cpu``, torch)."""


@dataclass(frozen=True)
class ClusterJob:
    """The settings common to all scans of a command. Paths are absolute."""

    id: str
    models: tuple[str, ...]
    out: str
    organs: tuple[str, ...]
    extra: ExtraOutputs
    device: str
    settings: PredictionSettings
    scans: str
    """The scans of the command, as ``inference.journal.request`` returned them."""
    notes: tuple[str, ...]
    started: str
    ship: bool
    """Whether models, scans and results are sent over the network, as workers cannot access the folders."""
    zoomseg: str = field(default_factory=lambda: importlib.metadata.version("zoomseg"))


@dataclass(frozen=True, eq=False)
class Reply:
    """The outcome of a processed scan."""

    case: str
    error: str | None
    """Reason of its failure."""
    notes: tuple[str, ...]
    seconds: float
    shipped: tuple[Run, Entry, FileContents] | None = None
    """The files to be written by the client, with the entry of the journal last."""


class Preparation(WorkerPlugin):
    """Prepares every worker for a job, including workers that join later: it may use all its threads, and
    receives the models if they are shipped."""

    def __init__(self, job: ClusterJob, models: tuple[FileContents, ...]) -> None:
        self.name = f"zoomseg-{job.id}"
        self._job = job
        self._models = models

    def setup(self, worker: Worker) -> None:
        # Dask sets one thread for all libraries; here each scan uses all threads of its worker.
        os.environ[PREDICTION_THREADS] = str(worker.state.nthreads)
        for number, files in enumerate(self._models):
            files.write(_model_folder(worker, self._job, number))

    def teardown(self, worker: Worker) -> None:
        shutil.rmtree(_model_folder(worker, self._job, 0).parent, ignore_errors=True)


def _model_folder(worker: Worker, job: ClusterJob, number: int) -> Path:
    return Path(worker.local_directory) / f"zoomseg-{job.id}" / f"model-{number}"


_one_at_a_time = threading.Lock()
"""A worker computes one scan at a time, of any job, with all its threads or its GPU."""


def segment_scan(job: ClusterJob, scan: ScanInput | ShippedScan) -> Reply:
    """Segment a scan and write its results, or return them.

    Raises:
        OutputError: a result cannot be written.
        ZoomSegError: the models cannot be loaded here, or this is another version of ZoomSeg.
    """
    with _one_at_a_time:
        if isinstance(scan, ScanInput):
            if not Path(job.out).is_dir():
                raise OutputError(
                    f"{job.out}: is not there on worker {socket.gethostname()}; "
                    "give a folder that all machines see, or --ship"
                )
            return _segmented(job, scan, Path(job.out), _recorder(job))
        with tempfile.TemporaryDirectory(dir=get_worker().local_directory) as place:
            return _sent_back(job, scan, Path(place))


def _segmented(job: ClusterJob, scan: ScanInput, out: Path, recorder: Recorder) -> Reply:
    recorded: list[tuple[ScanOutcome, Entry]] = []
    predictor, wanted = _predictor(job)
    batch.segment_batch(
        [scan],
        out,
        predictor,
        lambda outcome: recorded.append(recorder.record(outcome)),
        wanted.organs,
        ahead=False,
        extra=wanted.extra,
    )
    ((outcome, _),) = recorded
    if isinstance(outcome, Failed):
        return Reply(scan.id, outcome.reason, (), 0.0)
    return Reply(scan.id, None, outcome.result.notes, outcome.seconds["total"])


def _sent_back(job: ClusterJob, shipped: ShippedScan, place: Path) -> Reply:
    out = place / "out"
    for folder in (out, place / "in"):
        folder.mkdir()
    recorder = _new_recorder(job, out)
    try:
        scan = batch.tried(shipped.id, Path(shipped.id), lambda: shipped.unpack(place / "in"))
        if isinstance(scan, Failed):
            _, entry = recorder.record(scan)
            reply = Reply(shipped.id, scan.reason, (), 0.0)
        else:
            reply = _segmented(job, scan, out, recorder)
            entry = journal.read(out)[shipped.id].entry
    finally:
        recorder.close()
    results = [out / name for name, digest in entry.files.items() if digest is not None]
    pictures = [path for path in (out / result_page.FOLDER).rglob("*") if path.is_file()]
    files = FileContents.of(out, [*pictures, *results])
    return replace(reply, shipped=(recorder.run, entry, files))


@functools.lru_cache(maxsize=1)
def _predictor(job: ClusterJob) -> tuple[Predictor, RequestedOutputs]:
    """The predictor, loaded once."""
    here = importlib.metadata.version("zoomseg")
    if here != job.zoomseg:
        raise ZoomSegError(
            f"worker {socket.gethostname()} has ZoomSeg {here}, this is {job.zoomseg}; "
            "install the same everywhere"
        )
    models: tuple[str | Path, ...] = job.models
    if job.ship:
        models = tuple(_model_folder(get_worker(), job, number) for number in range(len(job.models)))
    predictor = load_predictor(models, job.device, job.settings)
    return predictor, RequestedOutputs.of(predictor.bundle, job.organs, job.extra)


@functools.lru_cache(maxsize=1)
def _recorder(job: ClusterJob) -> Recorder:
    """The worker's own journal."""
    return _new_recorder(job, Path(job.out))


def _new_recorder(job: ClusterJob, out: Path) -> Recorder:
    predictor, wanted = _predictor(job)
    return Recorder(
        out, predictor, wanted, job.scans, job.notes, {"models": list(job.models), "started": job.started}
    )
