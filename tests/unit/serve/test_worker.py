"""The worker process: valid scans, invalid ones, and crashes."""

from __future__ import annotations

import csv
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers import servers
from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.backends.device import resolve
from zoomseg.core.case import Case
from zoomseg.core.errors import ScanError, quoted
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.scans import write_image
from zoomseg.serve import worker as worker_process
from zoomseg.serve.job_queue import Step
from zoomseg.serve.job_runner import Runner
from zoomseg.serve.jobs import Jobs
from zoomseg.serve.worker import (
    ProcessWorker,
    Task,
    TaskFailure,
    TemporaryError,
    UnexpectedError,
    WorkerDiedError,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    bundle.save(untrained_bundle(), folder)
    return folder


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessWorker]:
    started = ProcessWorker("cpu")
    yield started
    started.kill()


def test_scans_are_segmented_as_predict_does_bad_ones_fail_and_death_is_told(
    worker: ProcessWorker, model: Path, tmp_path: Path
) -> None:
    image = tiny_case(9)[0]
    write_image(tmp_path / "scan.nrrd", image)
    steps: list[Step] = []
    task = Task("abc", str(tmp_path / "scan.nrrd"), str(tmp_path / "out"), str(model))
    assert worker.run(task, steps.append) is None
    assert [step.stage for step in steps if step.total and step.done == step.total] == ["coarse", "fine"]
    assert (steps[0].stage, steps[-1].stage) == ("reading", "writing")
    values = np.asarray(nib.load(tmp_path / "out" / "abc.nii.gz").dataobj)
    answer = Predictor(untrained_bundle(), resolve("cpu")).predict(Case("abc", image)).labels
    np.testing.assert_array_equal(values, answer.schema.decode(answer.data))
    scan = nib.load(tmp_path / "out" / "scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(scan.dataobj), image.data[0])
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"abc"}
    assert (tmp_path / "out" / "slicer" / "abc.seg.nrrd").is_file()

    (tmp_path / "scan.nii.gz").write_bytes(b"no scan")
    bad = Task("bad", str(tmp_path / "scan.nii.gz"), str(tmp_path / "bad"), str(model))
    failure = worker.run(bad, steps.append)
    assert failure is not None
    assert failure.reason.startswith("the scan: damaged")
    assert str(tmp_path) not in failure.reason

    (tmp_path / "scan.zip").write_bytes(b"no zip")
    bad = Task("bad", str(tmp_path / "scan.zip"), str(tmp_path / "bad"), str(model))
    assert "not a zip" in str(worker.run(bad, steps.append))

    os.kill(worker._process.pid or 0, signal.SIGSTOP)  # a scan that never finishes
    threading.Timer(0.5, worker.kill).start()
    with pytest.raises(WorkerDiedError):
        worker.run(bad, steps.append)
    with pytest.raises(WorkerDiedError):
        worker.run(task, steps.append)


def test_errors_name_no_path_of_the_server() -> None:
    folder = "/srv/" + "long/" * 30 + "0123456789abcdef"
    task = Task("abc", f"{folder}/scan.nii", f"{folder}/out", "/srv/my models/liver")
    for error, shown in (
        (f"{task.scan}: damaged", "the scan: damaged"),
        (f"{quoted(task.scan)}: no such file", "the scan: no such file"),
        (
            f"{task.out}/abc.nii.gz: cannot be written (disk full)",
            "the results/abc.nii.gz: cannot be written (disk full)",
        ),
        (f"model {task.model} is damaged (weights/a: gone)", "model the model is damaged (weights/a: gone)"),
        ("weights lie in '/opt/zoomseg/x.bin', 3 mm/s", "weights lie in 'a file of the server', 3 mm/s"),
    ):
        assert worker_process._without_paths(error, task) == shown


def test_a_worker_that_is_killed_says_so_and_not_by_whom() -> None:
    dying = ProcessWorker("cpu")
    os.kill(dying._process.pid or 0, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"was killed: by the system \(memory exhausted\) or by a user"):
        dying.run(Task("a", "b", "c", "d"), lambda step: None)


def test_models_are_loaded_at_the_start_except_damaged_ones_which_are_named_when_used(
    model: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    assert worker_process.loaded([str(model), str(damaged)], "cpu").keys() == {str(model)}
    write_image(tmp_path / "scan.nrrd", tiny_case(9)[0])
    started = ProcessWorker("cpu", models=[damaged, model])
    try:
        task = Task("a", str(tmp_path / "scan.nrrd"), str(tmp_path / "out"), str(model))
        assert started.run(task, lambda _: None) is None
        error = started.run(replace(task, model=str(damaged)), lambda _: None)
        assert error == TaskFailure("the model is not a model: model.json is missing")
    finally:
        started.kill()


def test_an_unexpected_error_while_loading_does_not_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Predictor:
        raise RuntimeError

    monkeypatch.setattr(worker_process, "load_predictor", failing)
    assert worker_process.loaded(["a", "b"], "cpu") == {}


def test_an_unexpected_error_of_the_computation_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    predictor = Predictor(untrained_bundle(), resolve("cpu"))
    monkeypatch.setattr(predictor, "predict", failing)
    write_image(tmp_path / "scan.nrrd", tiny_case(9)[0])
    task = Task("a", str(tmp_path / "scan.nrrd"), str(tmp_path / "out"), "tiny")
    with pytest.raises(UnexpectedError, match="illegal memory access"):
        worker_process.run_task(task, predictor, lambda _: None)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ScanError("damaged"), TaskFailure("damaged")),
        (TemporaryError("the disk is full"), TaskFailure("the disk is full", may_pass=True)),
        (UnexpectedError("CUDA error"), TaskFailure("CUDA error", unexpected=True)),
        (
            ValueError("x"),
            TaskFailure("unexpected error (ValueError); see the server's output", unexpected=True),
        ),
    ],
)
def test_a_failure_says_whether_it_may_pass_and_concerns_other_scans(
    error: Exception, failure: TaskFailure
) -> None:
    def failing(*_: object) -> None:
        raise error

    task = Task("a", "/s/scan.nii", "/s/out", "tiny")
    predictors = {"tiny": Predictor(untrained_bundle(), resolve("cpu"))}
    assert worker_process._failure(task, predictors, "cpu", lambda _: None, failing) == failure


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"reported", "CUDA error"),
        (b"raised", "unexpected error (RuntimeError); see the server's output"),
    ],
)
def test_after_an_unexpected_error_scans_are_segmented_by_another_process(
    model: Path, tmp_path: Path, content: bytes, error: str
) -> None:
    started: list[ProcessWorker] = []

    def start() -> ProcessWorker:
        started.append(ProcessWorker("cpu", servers.brittle))
        return started[-1]

    jobs = Jobs(tmp_path, 8)
    for scan in (b"good", b"refused", b"good", content, b"good"):
        with jobs.arriving("a.nii.gz", "tiny") as (_, path):
            path.write_bytes(scan)
    runner = Runner(jobs, {"tiny": model}, start)
    runner.start()
    while not all(job.state.is_end for job in jobs.all()):
        threading.Event().wait(0.01)
    runner.stop()
    assert [job.error for job in jobs.all()] == [None, "no scan", None, error, None]
    assert len(started) == 2
    jobs.close()
