"""Jobs on disk: after a restart, and in a damaged folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.servers import serving
from zoomseg.core.errors import OutputError, ScanError
from zoomseg.serve import jobs as stored
from zoomseg.serve.corrections import Corrections
from zoomseg.serve.job_queue import DATABASE, State
from zoomseg.serve.jobs import Job, Jobs, QueueFullError, shown_name, upload_suffix


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
    (tmp_path / ".0123456789abcdef.arriving").mkdir()  # an aborted upload
    jobs.close()  # as a killed process does: nothing else is written

    again = Jobs(tmp_path, 8)
    assert [job.id for job in again.all()] == [done, ran, waits]
    assert [job.state for job in again.all()] == [State.FINISHED, State.INTERRUPTED, State.QUEUED]
    assert "upload the scan again" in str(again.all()[1].error)
    assert not (tmp_path / ".0123456789abcdef.arriving").exists()
    taken = again.take(0)
    assert taken is not None
    assert taken.id == waits
    assert again.take(0) is None
    again.close()


def test_if_the_database_is_moved_away_scans_and_results_remain(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 8)
    done, waits = add(jobs), add(jobs)
    (jobs.out(jobs.all()[0])).mkdir()
    jobs.close()
    (tmp_path / DATABASE).rename(tmp_path / "moved.sqlite")
    for _ in range(2):
        Jobs(tmp_path, 8).close()
        assert (tmp_path / done / "out").is_dir()
        assert (tmp_path / waits / "scan.nii.gz").read_bytes() == b"scan"


def test_a_folder_with_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("notes.gone", "0123456789abcdef", ".a.gone", "corrected")]
    for place in places:
        place.mkdir()
        (place / ".arriving-notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "corrected"):
        place.chmod(0o755)
    Jobs(tmp_path, 8).close()
    Corrections(tmp_path)
    assert [(place / ".arriving-notes.txt").read_text() for place in places] == ["mine"] * 4
    assert [place.stat().st_mode & 0o777 for place in (tmp_path, tmp_path / "corrected")] == [0o755, 0o755]
    assert (tmp_path / DATABASE).stat().st_mode & 0o777 == 0o600


def test_a_folder_whose_permissions_are_another_users_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    jobs = Jobs(tmp_path, 8)
    Corrections(tmp_path)
    assert (tmp_path / add(jobs)).stat().st_mode & 0o777 == 0o700
    jobs.close()


def test_a_scan_is_on_the_disk_before_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, insert = os.fsync, Jobs._insert

    def record(descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(re.sub("[0-9a-f]{16}", "ID", str(place.relative_to(tmp_path))))
        fsync(descriptor)

    def record_insert(jobs: Jobs, job: Job) -> None:
        events.append(f"inserted: {jobs.scan(job).is_file()}")
        insert(jobs, job)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Jobs, "_insert", record_insert)
    with serving(tmp_path) as server:
        server.post(b"good")
    assert events[:4] == [".ID.arriving/scan.nii.gz", ".ID.arriving", ".", "inserted: True"]


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = Jobs(tmp_path, 8)
    with pytest.raises(OutputError, match="another server"):
        Jobs(tmp_path, 8)
    first.close()
    Jobs(tmp_path, 8).close()


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
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []
    with pytest.raises(QueueFullError, match="1 scans wait already"):  # the other upload was complete first
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


def test_a_job_whose_folder_is_gone_can_be_removed(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 8)
    job_id = add(jobs)
    jobs.end(job_id, State.CANCELLED)
    shutil.rmtree(tmp_path / job_id)
    jobs.remove(job_id)
    assert jobs.all() == []
    jobs.close()


def test_a_deletion_that_breaks_off_leaves_nothing_that_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path, 8)
    job_id = add(jobs)
    (tmp_path / job_id / "out").mkdir()
    jobs.end(job_id, State.FINISHED)

    def killed(job_id: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_delete", killed)
    with pytest.raises(KeyboardInterrupt):
        jobs.remove(job_id)
    jobs.close()
    again = Jobs(tmp_path, 8)
    assert [place for place in tmp_path.iterdir() if place.is_dir()] == []
    assert [job.id for job in again.all()] == [job_id]
    again.remove(job_id)
    assert again.all() == []
    again.close()


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
