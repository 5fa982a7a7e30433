"""A node's queue: atomic decisions, times of delivery, and giving up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zoomseg.core.errors import OutputError
from zoomseg.node import jobs as module
from zoomseg.node.jobs import (
    MAX_STARTS,
    MORE_IMAGES,
    Delivery,
    DeliveryState,
    NodeJob,
    NodeJobs,
    Series,
    SeriesState,
    result_path,
)
from zoomseg.node.settings import Output, Retry
from zoomseg.serve.job_queue import State
from zoomseg.serve.worker import TaskFailure

SEG = Output.SEG
RETRY = Retry(first_seconds=5, longest_seconds=30, give_up_hours=1)
PATIENCE = 60.0
"""Timeout in seconds for threads that wait to be woken."""


class Clock:
    """The clocks, which pass only when told."""

    wall, running = 1e9, 1000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.running

    def passed(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[NodeJobs]:
    found = NodeJobs(tmp_path)
    yield found
    found.close()


def job(number: int = 1, **changes: Any) -> NodeJob:
    given = {
        "id": f"{number:016x}",
        "model": "tiny",
        "state": State.QUEUED,
        "created": float(number),
        "series": "a" * 16,
        "study_uid": "1.2",
        "series_uid": "1.2.3",
        "rule": "all",
        "slices": 9,
        "outputs": (Output.SEG,),
        "seed": "s",
        "deliveries": (Delivery(destination="pacs"), Delivery(destination="web")),
    }
    return NodeJob.model_validate({**given, **changes})


def series(key: str = "a" * 16, **changes: Any) -> Series:
    given = {"key": key, "study_uid": "1.2", "series_uid": "1.2.3", "state": "receiving", "first": 1.0}
    return Series.model_validate({**given, **changes})


def segmented(jobs: NodeJobs, number: int = 1, **changes: Any) -> NodeJob:
    """A job whose results wait to be sent."""
    jobs.decide([], [job(number, **changes)])
    taken = jobs.take(0)
    assert taken is not None
    jobs.out(taken.id).mkdir(parents=True)
    result_path(jobs.out(taken.id), Output.SEG).touch()
    jobs.record_result(taken, None)
    found = jobs.find(taken.id)
    assert found is not None
    return found


def state(jobs: NodeJobs, number: int = 1) -> State:
    found = jobs.find(f"{number:016x}")
    assert found is not None
    return found.state


def test_a_series_is_known_by_its_key(jobs: NodeJobs) -> None:
    jobs.note(series(), series("b" * 16))
    jobs.note(series(state="left", why="no rule"))
    assert [one.key[0] for one in jobs.series_of("1.2")] == ["a", "b"]
    assert [one.key[0] for one in jobs.last_series()] == ["b", "a"]
    assert [one.why for one in jobs.series_in(SeriesState.LEFT)] == ["no rule"]
    jobs.forget_series("a" * 16)
    assert jobs.series("a" * 16) is None


@pytest.mark.parametrize(
    ("before", "begins"),
    [
        (State.QUEUED, False),
        (State.RUNNING, False),
        (State.SENDING, False),
        (State.FINISHED, False),
        (State.FAILED, True),
        (State.CANCELLED, True),
    ],
)
def test_a_job_is_made_once_and_begins_again_only_if_it_failed(
    jobs: NodeJobs, before: State, begins: bool
) -> None:
    jobs.decide([], [job(state=before, error="why")])
    assert [one.id for one in jobs.decide([], [job()])] == ([job().id] if begins else [])
    assert len(jobs.all()) == 1
    assert state(jobs) is (State.QUEUED if begins else before)


def test_series_and_jobs_are_decided_together_or_not_at_all(jobs: NodeJobs) -> None:
    jobs._db.execute("DROP TABLE series")
    with pytest.raises(OutputError):
        jobs.decide([series(state="taken")], [job()])
    assert jobs.all() == []


def test_more_images_of_a_series_replace_a_job_that_waits(jobs: NodeJobs) -> None:
    jobs.decide([], [job(1), job(2, rule="other"), job(3, series="b" * 16)])
    jobs.decide([], [job(4)])
    assert [one.state for one in jobs.all()] == [State.CANCELLED, State.QUEUED, State.QUEUED, State.QUEUED]


def test_of_a_job_that_waits_to_be_sent_nothing_more_is_sent_when_more_images_come(jobs: NodeJobs) -> None:
    sent = segmented(jobs)
    jobs.delivered(sent.id, "pacs", None, RETRY)
    jobs.decide([], [job(2), job(3, series="b" * 16)])
    old = jobs.find(sent.id)
    assert old is not None
    assert (old.state, old.notes[-1]) == (State.FINISHED, f"not sent to web: {MORE_IMAGES}")
    assert [one.destination for one in old.deliveries] == ["pacs"]
    assert jobs.next_delivery("web") is None
    assert jobs.deliveries_waiting()["web"] == 0
    assert jobs.delivered(sent.id, "web", "down", RETRY) == old  # if it was being sent


def test_nothing_is_sent_of_a_job_that_more_images_overtook(jobs: NodeJobs) -> None:
    """Also if the clock was set back meanwhile."""
    jobs.decide([], [job(1)])
    taken = jobs.take(0)
    assert taken is not None
    jobs.decide([], [job(2, created=0.0)])
    jobs.out(taken.id).mkdir(parents=True)
    result_path(jobs.out(taken.id), Output.SEG).touch()
    jobs.record_result(taken, None)
    assert state(jobs) is State.FINISHED
    assert "more images" in jobs.all()[0].notes[-1]
    assert jobs.next_delivery("pacs") is None


def test_a_job_without_an_organ_sends_nothing(jobs: NodeJobs) -> None:
    jobs.decide([], [job()])
    taken = jobs.take(0)
    assert taken is not None
    jobs.record_result(taken, None)
    assert state(jobs) is State.FINISHED
    assert "no organ" in jobs.all()[0].notes[-1]


def test_results_are_on_the_disk_before_it_is_recorded(
    jobs: NodeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    )
    put = jobs._put

    def record(one: NodeJob, **changes: object) -> NodeJob:
        flushed.append(str(changes["state"]))
        return put(one, **changes)

    monkeypatch.setattr(jobs, "_put", record)
    sent = segmented(jobs)
    assert flushed == ["running", str(jobs.out(sent.id)), str(jobs.folder(sent.id)), "sending"]


def test_a_result_that_is_lost_is_missed(jobs: NodeJobs) -> None:
    sent = segmented(jobs)
    assert sent.written == (Output.SEG,)
    path = jobs.results(sent)[SEG]
    path.unlink()
    assert jobs.results(sent) == {SEG: path}


def test_results_of_an_earlier_version_are_sent(jobs: NodeJobs) -> None:
    """Its jobs do not say what was written."""
    sent = segmented(jobs)
    assert jobs.results(sent.model_copy(update={"written": None})) == jobs.results(sent) != {}


def test_what_a_destination_has_taken_is_not_sent_there_again(jobs: NodeJobs) -> None:
    sent = segmented(jobs)
    now = jobs.delivered(sent.id, "pacs", "another was refused", RETRY, [SEG])
    assert now is not None
    assert jobs.unsent(now, "pacs") == {}
    assert jobs.unsent(now, "web") == jobs.results(now) != {}


def test_a_job_is_finished_when_all_destinations_have_it(jobs: NodeJobs) -> None:
    sent = segmented(jobs)
    assert sent.state is State.SENDING
    assert jobs.segmented == 1
    jobs.delivered(sent.id, "pacs", None, RETRY)
    assert jobs.next_delivery("pacs") is None
    assert jobs.next_delivery("web") is not None
    assert state(jobs) is State.SENDING
    jobs.delivered(sent.id, "web", None, RETRY)
    assert state(jobs) is State.FINISHED
    assert jobs.counts()[State.FINISHED] == 1


def test_a_result_is_due_at_once_for_who_waits_for_it(jobs: NodeJobs) -> None:
    waiting = threading.Thread(target=jobs.await_delivery, args=("pacs", 2 * PATIENCE, lambda: False))
    waiting.start()
    sent = segmented(jobs)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    jobs.delivered(sent.id, "pacs", None, RETRY)
    stopping = threading.Event()
    waiting = threading.Thread(target=jobs.await_delivery, args=("pacs", 2 * PATIENCE, stopping.is_set))
    waiting.start()
    stopping.set()
    jobs.wake()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_the_next_delivery_is_found_without_reading_the_others(
    jobs: NodeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the next node, which begins at once."""
    for number in (1, 2, 3):
        sent = segmented(jobs, number, series=f"{number:016x}")
        jobs.delivered(sent.id, "pacs", "down" if number == 1 else None, RETRY)
    jobs.close()
    again = NodeJobs(tmp_path)
    read: list[str] = []
    parsed = again._parsed

    def record(job_id: str, content: str) -> NodeJob | None:
        read.append(job_id)
        return parsed(job_id, content)

    monkeypatch.setattr(again, "_parsed", record)
    assert again.deliveries_waiting() == {"pacs": 1, "web": 3}
    assert again.next_delivery("other") is None
    assert read == []
    for destination in ("pacs", "web"):
        assert again.next_delivery(destination) == again.find(job(1).id)
    assert set(read) == {job(1).id}
    again.close()


def test_waits_grow_to_their_longest(jobs: NodeJobs) -> None:
    sent, waits = segmented(jobs), []
    for _ in range(5):
        now = jobs.delivered(sent.id, "pacs", "down", RETRY)
        assert now is not None
        waits.append(round(now.deliveries[0].due - time.time()))
    assert waits == [5, 10, 20, 30, 30]
    assert jobs.next_delivery("pacs") is None
    assert jobs.next_delivery("web") is not None


def test_a_destination_is_given_up_in_the_end(jobs: NodeJobs, clock: Clock) -> None:
    sent = segmented(jobs)
    jobs.delivered(sent.id, "web", None, RETRY)
    clock.passed(3601)
    now = jobs.delivered(sent.id, "pacs", "down", RETRY)
    assert now is not None
    assert [one.state for one in now.deliveries] == [DeliveryState.FAILED, DeliveryState.SENT]
    assert (now.state, now.error) == (State.FAILED, "its results could not be sent (pacs: down)")


def test_time_without_a_node_is_no_time_to_send(jobs: NodeJobs, tmp_path: Path, clock: Clock) -> None:
    sent = segmented(jobs)
    jobs.close()
    clock.passed(3601)
    again = NodeJobs(tmp_path)
    now = again.delivered(sent.id, "pacs", "down", RETRY)
    assert now is not None
    assert now.deliveries[0].state is DeliveryState.WAITING
    again.close()


@pytest.mark.parametrize("seconds", [-86_400, 86_400])
def test_a_clock_that_is_set_changes_no_time_of_sending(jobs: NodeJobs, clock: Clock, seconds: float) -> None:
    sent = segmented(jobs)
    jobs.delivered(sent.id, "pacs", "down", RETRY)
    clock.wall += seconds
    jobs.delivered(sent.id, "web", None, RETRY)
    assert jobs.next_delivery("pacs") is None
    clock.passed(5)
    assert jobs.next_delivery("pacs") is not None
    now = jobs.delivered(sent.id, "pacs", "down", RETRY)
    assert now is not None
    assert now.deliveries[0].state is DeliveryState.WAITING


def test_a_reason_that_may_pass_is_waited_for_and_keeps_no_other_job_waiting(
    jobs: NodeJobs, clock: Clock
) -> None:
    jobs.decide([], [job(1), job(2, series="b" * 16)])
    for rest in (30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        taken = jobs.take(0)
        assert taken is not None
        assert taken.id == job(1).id
        jobs.out(taken.id).mkdir(parents=True)
        jobs.record_result(taken, TaskFailure("the disk is full", may_pass=True))
        now = jobs.find(taken.id)
        assert now is not None
        assert (now.state, now.notes) == (State.QUEUED, ("tried again later: the disk is full",))
        assert not jobs.out(taken.id).exists()
        clock.passed(rest - 1)
        other = jobs.next_queued()
        assert other is not None
        assert other.id == job(2).id
        clock.passed(1)
    taken = jobs.take(0)
    assert taken is not None
    jobs.record_result(taken, TaskFailure("the disk is full", may_pass=True))
    given_up = jobs.all()[0]
    assert (given_up.state, given_up.notes) == (State.FAILED, ())
    assert given_up.error == f"given up after {MAX_STARTS} starts: the disk is full"


def test_a_job_that_waits_for_its_reason_to_pass_succeeds_without_a_trace(
    jobs: NodeJobs, clock: Clock
) -> None:
    jobs.decide([], [job()])
    taken = jobs.take(0)
    assert taken is not None
    jobs.record_result(taken, TaskFailure("the disk is full", may_pass=True))
    assert jobs.take(0) is None
    clock.passed(30)
    taken = jobs.take(0)
    assert taken is not None
    jobs.record_result(taken, None)
    assert state(jobs) is State.FINISHED
    assert "the disk is full" not in str(jobs.all()[0])


def test_an_interrupted_job_that_more_images_overtook_does_not_wait_again(jobs: NodeJobs) -> None:
    jobs.decide([], [job(1)])
    assert jobs.take(0) is not None
    jobs.decide([], [job(2)])
    jobs.interrupt(job(1).id, "stopped")
    assert (state(jobs, 1), jobs.all()[0].error) == (State.CANCELLED, MORE_IMAGES)
    assert state(jobs, 2) is State.QUEUED


@pytest.mark.parametrize("text", ["{", '{"key": "a"}', "of another series"])
def test_a_damaged_series_is_told_of_once_and_the_others_are_served(
    jobs: NodeJobs, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    jobs.note(series(), series("b" * 16))
    text = series("c" * 16).model_dump_json() if text == "of another series" else text
    with jobs._db:
        jobs._db.execute("UPDATE series SET content = ? WHERE key = ?", (text, "a" * 16))
    for _ in range(2):
        assert [one.key for one in jobs.last_series()] == ["b" * 16]
    assert jobs.series("a" * 16) is None
    assert capsys.readouterr().err.count(f"series {'a' * 16} is damaged") == 1
    jobs.note(series(state="left"))  # it arrives again
    assert len(jobs.last_series()) == 2


def test_an_interrupted_job_waits_again(jobs: NodeJobs, tmp_path: Path) -> None:
    jobs.decide([], [job()])
    assert jobs.take(0) is not None
    jobs.interrupt(job().id, "stopped")
    assert (state(jobs), jobs.all()[0].starts) == (State.QUEUED, 1)
    jobs.interrupt(job().id, "stopped")  # it does not run
    assert jobs.all()[0].starts == 1


def test_a_task_says_what_is_wanted_and_begins_from_nothing(jobs: NodeJobs) -> None:
    stale = jobs.out(job().id) / "stale"
    stale.mkdir(parents=True)
    task = jobs.task(job(organs=("liver",)), Path("/m"))
    assert task.wanted == {"outputs": ["seg"], "organs": ["liver"], "seed": "s"}
    assert (task.scan, task.model) == (str(jobs.scan(job().id)), "/m")
    assert not stale.exists()


def test_series_of_a_dry_run_are_deleted_after_their_time(jobs: NodeJobs) -> None:
    jobs.note(series(state="dry run", decided=2.0))
    assert jobs.clear(1.0) == []
    assert [one.key for one in jobs.clear(3.0)] == ["a" * 16]
    assert jobs.last_series() == []


def test_files_are_kept_while_any_job_of_their_series_needs_them(jobs: NodeJobs) -> None:
    jobs.decide([series(state="taken", decided=1.0)], [job(1), job(2, rule="other")])
    for number in (1, 2):
        jobs.scan(job(number).id).mkdir(parents=True)
    jobs.end(job(1).id, State.FINISHED)
    assert jobs.clear(time.time() + 1) == []
    jobs.end(job(2).id, State.FAILED)
    assert jobs.clear(1.0) == []
    assert [one.key for one in jobs.clear(time.time() + 1)] == ["a" * 16]
    assert jobs.counts()[State.FINISHED] == 1
