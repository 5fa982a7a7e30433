"""The queue on the disk: after a restart, with a full disk, with damage."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from zoomseg.core.errors import OutputError
from zoomseg.serve.job_queue import DATABASE, JobQueue, QueuedJob, State, Step

IDS = [f"{number:016x}" for number in range(4)]
PATIENCE = 60.0
"""Timeout in seconds for threads that wait to be woken."""


class Queue(JobQueue[QueuedJob]):
    def add(self, job_id: str) -> None:
        self._insert(QueuedJob(id=job_id, model="tiny", state=State.QUEUED, created=time.time()))


def opened(folder: Path) -> Queue:
    return Queue(folder, QueuedJob, "somebody uses it")


def states(queue: Queue) -> list[State]:
    return [job.state for job in queue.all()]


def test_jobs_are_taken_in_order_and_kept(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    for job_id in IDS[:3]:
        queue.add(job_id)
    taken = queue.take(0)
    assert taken is not None
    assert (taken.id, taken.state) == (IDS[0], State.RUNNING)
    assert [queue.ahead_of(job) for job in queue.all()] == [0, 1, 2]
    queue.end(IDS[0], State.FAILED, "no scan", ("a note",))
    queue.close()
    again = opened(tmp_path)
    assert states(again) == [State.FAILED, State.QUEUED, State.QUEUED]
    ended = again.find(IDS[0])
    assert ended is not None
    assert (ended.error, ended.notes) == ("no scan", ("a note",))
    assert ended.ended is not None
    assert [job.id for job in again.in_state(State.QUEUED)] == IDS[1:3]
    again.close()


def test_an_end_is_an_end(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    queue.add(IDS[0])
    assert queue.end(IDS[0], State.CANCELLED)
    assert not queue.end(IDS[0], State.FINISHED)
    assert states(queue) == [State.CANCELLED]
    assert queue.take(0) is None
    queue.close()


def test_who_waits_for_a_job_is_woken_to_stop(tmp_path: Path) -> None:
    queue, stopping, found = opened(tmp_path), threading.Event(), []
    waiting = threading.Thread(target=lambda: found.append(queue.take(2 * PATIENCE, stopping.is_set)))
    waiting.start()
    stopping.set()
    queue.wake()
    waiting.join(PATIENCE)
    assert found == [None]
    queue.add(IDS[0])
    assert queue.take(0, stopping.is_set) is None
    assert states(queue) == [State.QUEUED]
    queue.close()


def test_steps_are_told_while_a_job_runs(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    queue.add(IDS[0])
    queue.take(0)
    queue.set_progress(IDS[0], Step("fine", 3, 9))
    assert queue.step(IDS[0]) == Step("fine", 3, 9)
    queue.end(IDS[0], State.FINISHED)
    assert queue.step(IDS[0]) is None
    queue.close()


def test_another_process_is_refused(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    with pytest.raises(OutputError, match="somebody uses it"):
        opened(tmp_path)
    queue.close()
    opened(tmp_path).close()


def test_a_killed_process_leaves_what_it_was_answered_for(tmp_path: Path) -> None:
    """Another connection sees every change immediately, without a close."""
    queue = opened(tmp_path)
    queue.add(IDS[0])
    queue.take(0)
    with sqlite3.connect(tmp_path / DATABASE) as reader:
        assert reader.execute("SELECT id, state FROM jobs").fetchall() == [(IDS[0], "running")]
        # 2 is FULL: a commit is on the disk when it returns.
    assert queue._db.execute("PRAGMA synchronous").fetchone() == (2,)
    queue.close()


def test_a_full_disk_loses_no_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue = opened(tmp_path)
    queue.add(IDS[0])
    queue.add(IDS[1])
    queue.take(0)
    pages = queue._db.execute("PRAGMA page_count").fetchone()[0]
    queue._db.execute(f"PRAGMA max_page_count = {pages}")
    long = "x" * 100_000
    assert queue.end(IDS[0], State.FAILED, long)
    assert "full" in capsys.readouterr().err
    assert states(queue) == [State.FAILED, State.QUEUED]
    with pytest.raises(OutputError, match="make room"):
        queue._insert(QueuedJob(id=IDS[2], model=long, state=State.QUEUED, created=1))
    queue._db.execute("PRAGMA max_page_count = 100000")
    queue.take(0)
    queue.close()
    again = opened(tmp_path)
    assert states(again) == [State.FAILED, State.RUNNING]
    assert again.all()[0].error == long
    again.close()


@pytest.mark.parametrize("text", ["{", "{}", "[" * 100_000, "of another job", "1e400"])
def test_a_damaged_job_is_told_of_and_the_others_are_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    queue = opened(tmp_path)
    queue.add(IDS[0])
    queue.add(IDS[1])
    stored = queue.all()[1].model_dump_json()
    text = stored.replace(IDS[1], IDS[2]) if text == "of another job" else text
    text = '{"created": 1e400}' if text == "1e400" else text
    with queue._db:
        queue._db.execute("UPDATE jobs SET content = ? WHERE id = ?", (text, IDS[1]))
    for _ in range(2):
        assert [job.id for job in queue.all()] == [IDS[0]]
    assert capsys.readouterr().err.count(f"job {IDS[1]} is damaged") == 1
    queue.close()


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"no database, whatever it is called " * 100)
    with pytest.raises(OutputError, match=rf"{DATABASE}: .*move it away"):
        opened(tmp_path)


@pytest.mark.parametrize("name", [".lock", DATABASE, f"{DATABASE}-wal"])
def test_a_link_in_the_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    victim, folder = tmp_path / "victim.txt", tmp_path / "jobs"
    victim.write_text("important")
    opened(folder).close()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    for _ in range(2):  # the lock is given back
        with pytest.raises(OutputError, match="a link, which may lead outside of its folder"):
            opened(folder)
    assert victim.read_text() == "important"
    (folder / name).unlink()
    opened(folder).close()


def test_the_next_job_is_found_without_reading_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = opened(tmp_path)
    for job_id in IDS:
        queue.add(job_id)
    read: list[str] = []
    parsed = queue._parsed

    def record(job_id: str, content: str) -> QueuedJob | None:
        read.append(job_id)
        return parsed(job_id, content)

    monkeypatch.setattr(queue, "_parsed", record)
    found = queue.first(State.QUEUED)
    assert found is not None
    assert found.id == IDS[0]
    assert queue.ahead_of(found) == 0
    assert read == [IDS[0]]
    queue.close()


def test_the_next_job_is_right_when_a_job_is_damaged_or_the_disk_full(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    for job_id in IDS:
        queue.add(job_id)
    with queue._db:
        queue._db.execute("UPDATE jobs SET content = '{' WHERE id = ?", (IDS[0],))
    second, third = queue.all()[:2]
    pages = queue._db.execute("PRAGMA page_count").fetchone()[0]
    queue._db.execute(f"PRAGMA max_page_count = {pages}")
    queue.end(second.id, State.FAILED, "x" * 100_000)  # is not written
    found = queue.first(State.QUEUED)
    assert found == third
    assert [job.id for job in queue.in_state(State.QUEUED)] == IDS[2:]
    assert queue.first(State.FAILED) == queue.find(second.id)
    assert queue.ahead_of(queue.all()[-1]) == 2  # the damaged one, which keeps its place, and the third
    assert [job.id for job in queue.last(2)] == [IDS[3], IDS[2]]
    queue.close()
