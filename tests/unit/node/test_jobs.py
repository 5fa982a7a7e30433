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
from zoomseg.node.jobs import Delivery, DeliveryState, NodeJob, NodeJobs, Series, SeriesState, result_path
from zoomseg.node.settings import Output, Retry
from zoomseg.serve.job_queue import State

RETRY = Retry(first_seconds=5, longest_seconds=30, give_up_hours=1)
PATIENCE = 60.0
"""Timeout in seconds for threads that wait to be woken."""


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


def segmented(jobs: NodeJobs, number: int = 1) -> NodeJob:
    """A job whose results wait to be sent."""
    jobs.decide([], [job(number)])
    taken = jobs.take(0)
    assert taken is not None
    jobs.out(taken.id).mkdir(parents=True)
    result_path(jobs.out(taken.id), Output.SEG).touch()
    jobs.settle(taken, None)
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


def test_nothing_is_sent_of_a_job_that_more_images_overtook(jobs: NodeJobs) -> None:
    jobs.decide([], [job(1)])
    taken = jobs.take(0)
    assert taken is not None
    jobs.decide([], [job(2)])
    jobs.out(taken.id).mkdir(parents=True)
    result_path(jobs.out(taken.id), Output.SEG).touch()
    jobs.settle(taken, None)
    assert state(jobs) is State.FINISHED
    assert "more images" in jobs.all()[0].notes[-1]
    assert jobs.next_delivery("pacs") is None


def test_a_job_without_an_organ_sends_nothing(jobs: NodeJobs) -> None:
    jobs.decide([], [job()])
    taken = jobs.take(0)
    assert taken is not None
    jobs.settle(taken, None)
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
    (path,) = jobs.results(sent)
    path.unlink()
    assert jobs.results(sent) == [path]


def test_results_of_an_earlier_version_are_sent(jobs: NodeJobs) -> None:
    """Its jobs do not say what was written."""
    sent = segmented(jobs)
    (path,) = jobs.results(sent)
    assert jobs.results(sent.model_copy(update={"written": None})) == [path]


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
    """Also by the next node."""
    for number in (1, 2, 3):
        sent = segmented(jobs, number)
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
    assert again.next_delivery("pacs") is None
    assert again.next_delivery("other") is None
    assert read == []
    assert again.next_delivery("web") == again.find(job(1).id)
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


def test_a_destination_is_given_up_in_the_end(jobs: NodeJobs) -> None:
    sent = segmented(jobs)
    jobs.delivered(sent.id, "web", None, RETRY)
    with jobs._changed:
        jobs._put(jobs.all()[0], segmented=time.time() - 3601)
    jobs.opened = time.time() - 4000
    now = jobs.delivered(sent.id, "pacs", "down", RETRY)
    assert now is not None
    assert [one.state for one in now.deliveries] == [DeliveryState.FAILED, DeliveryState.SENT]
    assert (now.state, now.error) == (State.FAILED, "its results could not be sent (pacs: down)")


def test_time_without_a_node_is_no_time_to_send(jobs: NodeJobs) -> None:
    sent = segmented(jobs)
    with jobs._changed:
        jobs._put(jobs.all()[0], segmented=time.time() - 3601)
    now = jobs.delivered(sent.id, "pacs", "down", RETRY)
    assert now is not None
    assert now.deliveries[0].state is DeliveryState.WAITING


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
