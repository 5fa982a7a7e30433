"""Jobs on disk: what a restart finds, and what a damaged folder says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from zoomseg.core.errors import OutputError, ScanError
from zoomseg.serve import jobs as stored
from zoomseg.serve.jobs import Jobs, QueueFullError, State, Step, shown_name, upload_suffix


def add(jobs: Jobs, name: str = "a.nii.gz") -> str:
    with jobs.arriving(name, "tiny") as (job, path):
        path.write_bytes(b"scan")
    return job.id


def state(jobs: Jobs, job_id: str) -> State:
    found = jobs.find(job_id)
    assert found is not None
    return found.state


def test_after_a_restart_finished_jobs_stay_the_running_one_is_marked_and_queued_ones_wait(
    tmp_path: Path,
) -> None:
    jobs = Jobs(tmp_path, 8)
    done, ran, waits = add(jobs), add(jobs), add(jobs)
    for expected in (done, ran):
        taken = jobs.take(0)
        assert taken is not None
        assert taken.id == expected
        if expected == done:
            jobs.end(done, State.FINISHED)
    (tmp_path / "0123456789abcdef").mkdir()  # an upload that was broken off
    jobs.close()  # as a killed process does: nothing else is written

    again = Jobs(tmp_path, 8)
    assert [job.id for job in again.all()] == [done, ran, waits]
    assert [job.state for job in again.all()] == [State.FINISHED, State.INTERRUPTED, State.QUEUED]
    assert "upload the scan again" in str(again.all()[1].error)
    assert not (tmp_path / "0123456789abcdef").exists()
    taken = again.take(0)
    assert taken is not None
    assert taken.id == waits
    assert again.take(0) is None
    again.close()


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = Jobs(tmp_path, 8)
    with pytest.raises(OutputError, match="another server"):
        Jobs(tmp_path, 8)
    first.close()
    Jobs(tmp_path, 8).close()


def test_an_end_is_an_end(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 8)
    job_id = add(jobs)
    assert jobs.end(job_id, State.CANCELLED)
    assert not jobs.end(job_id, State.FINISHED)
    assert state(jobs, job_id) is State.CANCELLED
    assert json.loads((tmp_path / job_id / "job.json").read_text())["state"] == "cancelled"
    jobs.close()


def test_steps_are_told_while_a_job_runs(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 8)
    job_id = add(jobs)
    jobs.take(0)
    jobs.tell(job_id, Step("fine", 3, 9))
    assert jobs.step(job_id) == Step("fine", 3, 9)
    jobs.end(job_id, State.FINISHED)
    assert jobs.step(job_id) is None
    jobs.close()


def test_uploads_hold_no_place_and_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 1)

    def arrive(meanwhile: Callable[[], object]) -> None:
        with jobs.arriving("a.nii", "tiny") as (_, path):
            path.write_bytes(b"half")
            meanwhile()

    def break_off() -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        arrive(break_off)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    with pytest.raises(QueueFullError, match="1 scans wait already"):  # the other one was whole first
        arrive(lambda: add(jobs))
    assert len(jobs.all()) == len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1
    jobs.close()


def test_a_refusal_says_whether_scans_wait_or_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path, 8)
    monkeypatch.setattr(stored, "MAX_UPLOADS", 2)
    with ExitStack() as uploads:
        for _ in range(2):
            _, path = uploads.enter_context(jobs.arriving("a.nii", "tiny"))
            path.write_bytes(b"half")
        with pytest.raises(QueueFullError, match="2 scans are being uploaded already"):
            add(jobs)
    add(jobs)
    jobs.close()


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"id": "../../../../etc"}', "[]", "[" * 100_000, "of another job", "1e400"]
)
def test_a_damaged_job_is_told_of_and_the_others_are_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    jobs = Jobs(tmp_path, 8)
    good, bad = add(jobs), add(jobs)
    jobs.close()
    file = tmp_path / bad / "job.json"
    if text == "of another job":
        text = file.read_text().replace(bad, "f" * 16)
    if text == "1e400":
        text = json.dumps({**json.loads(file.read_text()), "created": 10**400})
    file.write_text(text)
    jobs = Jobs(tmp_path, 8)
    assert [job.id for job in jobs.all()] == [good]
    jobs.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{bad}/job.json is " in line
    assert file.read_text() == text


def test_a_job_whose_folder_is_gone_can_be_removed(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 8)
    job_id = add(jobs)
    jobs.end(job_id, State.CANCELLED)
    shutil.rmtree(tmp_path / job_id)
    jobs.remove(job_id)
    assert jobs.all() == []
    jobs.close()


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    Jobs(tmp_path / "jobs", 8).close()
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("given", "shown"),
    [("a/b\\c.nii", "c.nii"), ("x\x00\n.nii", "x  .nii"), ("", "scan"), ("y" * 300, "y" * 100)],
)
def test_names_are_shown_without_folders_and_control_characters(given: str, shown: str) -> None:
    assert shown_name(given) == shown


def test_suffixes() -> None:
    assert upload_suffix("A.NII.GZ") == ".nii.gz"
    assert upload_suffix("study.zip") == ".zip"
    with pytest.raises(ScanError, match="upload one file"):
        upload_suffix("a.mhd")
