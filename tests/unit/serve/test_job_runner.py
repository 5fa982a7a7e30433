"""Jobs are processed in order, and a server that stops leaves them in the correct state."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import servers
from helpers.servers import ScriptedWorker, serving
from zoomseg.core.errors import OutputError
from zoomseg.serve.job_queue import State, Step
from zoomseg.serve.job_runner import CANNOT_START, Runner
from zoomseg.serve.jobs import Job, Jobs
from zoomseg.serve.worker import Task, TaskFailure, WorkerDiedError

SECRET = "Secret^Name"


def test_stopping_marks_what_runs_and_keeps_what_waits(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        runs, waits = server.post(b"good"), server.post(b"good")
        server.wait(runs, "running")
    again = Jobs(tmp_path, 8)
    assert {job.id: job.state for job in again.all()} == {runs: State.INTERRUPTED, waits: State.QUEUED}
    again.close()


def test_jobs_run_in_order_by_one_worker_that_is_told_where(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.go.set()
        ids = [server.post(b"good"), server.post(b"bad"), server.post(b"good")]
        server.wait(ids[-1], "finished")
        (worker,) = server.workers
        assert [task.case for task in worker.tasks] == ids
        assert worker.tasks[0].model == "/models/tiny"
        assert Path(worker.tasks[0].scan) == tmp_path / ids[0] / "scan.nii.gz"


def test_a_job_whose_model_is_gone_fails(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 8)
    with jobs.arriving("a.nii.gz", "old") as (job, path):
        path.write_bytes(b"x")
    runner = Runner(jobs, {}, lambda: ScriptedWorker(threading.Event()))
    runner.start()
    while not (found := jobs.find(job.id)) or not found.state.is_end:
        threading.Event().wait(0.01)
    assert found.state is State.FAILED
    assert found.error == "its model 'old' is not available any more; submit the scan again"
    assert not runner.cancel(job.id)
    runner.stop()
    jobs.close()


def test_notes_are_kept_with_the_job_when_it_finishes(tmp_path: Path) -> None:
    """Listing jobs reads no result."""
    with serving(tmp_path) as server:
        server.go.set()
        job_id = server.post(b"good")
        assert server.wait(job_id, "finished")["notes"] == ["a file was left out", "unlike"]
        (tmp_path / job_id / "out" / "run.json").unlink()
        (listed,) = server.client.get("/jobs").json()
        assert listed["notes"] == ["a file was left out", "unlike"]
        failed = server.wait(server.post(b"bad"), "failed")
        assert failed["notes"] == []
    again = Jobs(tmp_path, 8)
    assert [job.notes for job in again.all()] == [("a file was left out", "unlike"), ()]
    again.close()


def test_a_job_without_a_run_json_finishes_without_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "write_results", lambda out, case: out.mkdir())
    with serving(tmp_path) as server:
        server.go.set()
        assert server.wait(server.post(b"good"), "finished")["notes"] == []


def ends(jobs: Jobs, count: int) -> list[str]:
    """The errors of this many jobs, when all have ended."""
    while not all(job.state.is_end for job in jobs.all()):
        threading.Event().wait(0.01)
    found = [str(job.error) for job in jobs.all()]
    assert len(found) == count
    return found


def filled(folder: Path, count: int) -> Jobs:
    jobs = Jobs(folder, 8)
    for _ in range(count):
        with jobs.arriving("a.nii.gz", "tiny") as (_, path):
            path.write_bytes(b"good")
    return jobs


def test_a_worker_that_cannot_be_started_fails_one_job(tmp_path: Path) -> None:
    """Neither at the start of the server nor for a job does this end the runner."""
    jobs, released = filled(tmp_path, 2), threading.Event()
    released.set()
    fails = iter([True, True, False])

    def start() -> ScriptedWorker:
        if next(fails):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return ScriptedWorker(released)

    runner = Runner(jobs, {"tiny": Path("/models/tiny")}, start)
    runner.start()
    assert ends(jobs, 2) == [CANNOT_START, "None"]
    runner.stop()
    jobs.close()


def test_an_unexpected_error_fails_one_job_and_its_message_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, released = filled(tmp_path, 2), threading.Event()
    released.set()

    class Broken(ScriptedWorker):
        def run(self, task: Task, on_step: Callable[[Step], None]) -> TaskFailure | None:
            raise ValueError(SECRET)

    workers = iter([Broken(released), ScriptedWorker(released)])
    runner = Runner(jobs, {"tiny": Path("/models/tiny")}, lambda: next(workers))
    runner.start()
    assert ends(jobs, 2) == ["unexpected error (ValueError); see the server's output", "None"]
    runner.stop()
    jobs.close()
    said = capsys.readouterr().err
    assert "ValueError" in said
    assert "Secret" not in said


class Dead(ScriptedWorker):
    """Died while it waited."""

    def run(self, task: Task, on_step: Callable[[Step], None]) -> TaskFailure | None:
        raise WorkerDiedError("was killed")


@pytest.mark.parametrize(("dead", "errors"), [(1, ["None", "None"]), (2, ["was killed", "None"])])
def test_a_worker_that_died_while_it_waited_costs_no_job(
    tmp_path: Path, dead: int, errors: list[str]
) -> None:
    """It is replaced once, as each one may die in this way."""
    jobs, released = filled(tmp_path, 2), threading.Event()
    released.set()
    workers = iter([*(Dead(released) for _ in range(dead)), ScriptedWorker(released)])
    runner = Runner(jobs, {"tiny": Path("/models/tiny")}, lambda: next(workers))
    runner.start()
    assert ends(jobs, 2) == errors
    runner.stop()
    jobs.close()


def test_a_cancelled_job_is_not_begun_again(tmp_path: Path) -> None:
    begun, released = threading.Event(), threading.Event()

    class NullObserver(ScriptedWorker):
        def run(self, task: Task, on_step: Callable[[Step], None]) -> TaskFailure | None:
            self.tasks.append(task)
            begun.set()
            released.wait(20)
            raise WorkerDiedError("killed")

        def kill(self) -> None:
            released.set()

    jobs, started = filled(tmp_path, 1), []

    def start() -> NullObserver:
        started.append(NullObserver(released))
        return started[-1]

    runner = Runner(jobs, {"tiny": Path("/models/tiny")}, start)
    runner.start()
    assert begun.wait(20)
    assert runner.cancel(jobs.all()[0].id)
    runner.stop()
    assert [job.state for job in jobs.all()] == [State.CANCELLED]
    assert len(started) == 1
    jobs.close()


def test_a_result_that_the_disk_refuses_for_a_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, released = filled(tmp_path, 1), threading.Event()
    released.set()
    refused, record_result = iter([True, False]), jobs.record_result

    def once(job: Job, failure: TaskFailure | None) -> None:
        if next(refused):
            raise OutputError("the disk is full")
        record_result(job, failure)

    monkeypatch.setattr(jobs, "record_result", once)
    runner = Runner(jobs, {"tiny": Path("/models/tiny")}, lambda: ScriptedWorker(released))
    runner.start()
    assert ends(jobs, 1) == ["None"]
    runner.stop()
    jobs.close()
