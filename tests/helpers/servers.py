"""A server without sockets and networks, with a scripted worker; and a real one in a separate process."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from fastapi.testclient import TestClient

from helpers.tiny_dataset import tiny_case
from zoomseg.core.errors import ScanError
from zoomseg.inference.predictor import Predictor
from zoomseg.io.files import write_json_atomic
from zoomseg.io.scans import write_image, write_labels
from zoomseg.serve.access import Access, access
from zoomseg.serve.app import ModelView, Service, create_app
from zoomseg.serve.corrections import Corrections
from zoomseg.serve.job_queue import Step
from zoomseg.serve.job_runner import Runner
from zoomseg.serve.jobs import Jobs
from zoomseg.serve.worker import Task, TaskFailure, UnexpectedError, WorkerDiedError

MODEL = ModelView(
    name="tiny",
    recipe="tiny",
    organs=["left kidney", "right kidney"],
    stages=["coarse", "fine"],
    channels=["CT"],
)
LOCAL = access("127.0.0.1", (), None)
SUMMARY = (
    "case,organ,volume_ml,mean_intensity,confidence,flags\n"
    "{case},left kidney,1.5,70.0,0.93,touches_scan_border\n{case},right kidney,0.0,,,missing\n"
)


class ScriptedWorker:
    """Waits in every task until it is released; a scan that contains ``bad`` fails, ``fatal`` kills the
    worker."""

    def __init__(self, go: threading.Event) -> None:
        self._go = go
        self._killed = threading.Event()
        self.tasks: list[Task] = []

    def run(self, task: Task, on_step: Callable[[Step], None]) -> TaskFailure | None:
        self.tasks.append(task)
        on_step(Step("coarse", 1, 4))
        while not self._go.wait(0.01):
            if self._killed.is_set():
                raise WorkerDiedError("killed")
        content = Path(task.scan).read_bytes()
        if content == b"fatal":
            raise WorkerDiedError("the process that segments ended by signal 11")
        if content == b"bad":
            return TaskFailure("the scan: damaged")
        write_results(Path(task.out), task.case)
        return None

    def kill(self) -> None:
        self._killed.set()


BROKEN: list[str] = []


def brittle(task: Task, predictor: Predictor, on_step: Callable[[Step], None]) -> None:
    """Stands for the segmentation in a worker's process: after an unexpected error, as of a GPU, every later
    scan fails there."""
    content = Path(task.scan).read_bytes()
    if content == b"refused":
        raise ScanError("no scan")
    if content != b"good" or BROKEN:
        BROKEN.append(task.case)
        raise UnexpectedError("CUDA error") if content == b"reported" else RuntimeError("CUDA error")


def write_results(out: Path, case: str) -> None:
    """Write the files of a prediction."""
    out.mkdir()
    write_labels(out / f"{case}.nii.gz", tiny_case(0)[1])
    (out / "summary.csv").write_text(SUMMARY.format(case=case))
    labels = {"background": 0, "left kidney": 3, "right kidney": 7}
    run = {"labels": labels, "notes": ["a file was left out"], "cases": {case: {"notes": ["unlike"]}}}
    write_json_atomic(out / "run.json", run)


def scan_bytes(folder: Path) -> bytes:
    """A small scan as NIfTI."""
    write_image(folder / "small.nii.gz", tiny_case(0)[0])
    return (folder / "small.nii.gz").read_bytes()


class Server:
    """A client with the server's components."""

    def __init__(self, folder: Path, waiting: int, max_upload: int, who: Access) -> None:
        self.go = threading.Event()
        self.workers: list[ScriptedWorker] = []
        self.jobs = Jobs(folder, waiting)
        self.runner = Runner(self.jobs, {"tiny": Path("/models/tiny")}, self._start_worker)
        service = Service(self.jobs, Corrections(folder), self.runner, {"tiny": MODEL}, max_upload)
        self.client = TestClient(create_app(service, who), base_url="http://127.0.0.1:8000")

    def _start_worker(self) -> ScriptedWorker:
        self.workers.append(ScriptedWorker(self.go))
        return self.workers[-1]

    def post(self, content: bytes, name: str = "a.nii.gz") -> str:
        """Post a scan; returns the id of the new job."""
        answer = self.client.post("/jobs", params={"name": name}, content=content)
        assert answer.status_code == 201, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def wait(self, job_id: str, *states: str) -> dict[str, object]:
        """Wait until the job has reached one of these states; returns it."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            job: dict[str, object] = self.client.get(f"/jobs/{job_id}").json()
            if job["state"] in states:
                return job
            time.sleep(0.01)
        raise AssertionError(job)


@contextmanager
def serving(folder: Path, waiting: int = 8, max_upload: int = 10**6, who: Access = LOCAL) -> Iterator[Server]:
    """A server that runs until the end of the context."""
    server = Server(folder, waiting, max_upload, who)
    server.runner.start()
    try:
        yield server
    finally:
        server.runner.stop()
        server.jobs.close()


def noise(count: int) -> bytes:
    """Bytes that are not a scan."""
    return np.random.default_rng(0).bytes(count)


@contextmanager
def server_process(folder: Path, model: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`zoomseg serve` with a model, and a client; killed at the end if it still runs."""
    arguments = ["serve", "-m", str(model), "--port", "0", "--folder", str(folder), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "zoomseg", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = re.match(r"Open (http://127\.0\.0\.1:\d+/)$", process.stdout.readline())
        assert found is not None
        with httpx.Client(base_url=found[1], timeout=120) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()
