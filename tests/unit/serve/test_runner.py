"""Jobs are carried out in order, and a server that stops leaves them as they should be found."""

from __future__ import annotations

import threading
from pathlib import Path

from served import ScriptedWorker, serving
from zoomseg.serve.jobs import Jobs, State
from zoomseg.serve.runner import Runner


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
    assert "'old' is not served any more" in str(found.error)
    assert not runner.cancel(job.id)
    runner.stop()
    jobs.close()
