"""A node's queue: which series have arrived, the jobs they became, and where results have been sent.

```
FOLDER/.lock                  held by the node that uses the folder
FOLDER/jobs.sqlite            series and jobs
FOLDER/received/              see ``node.store``
FOLDER/jobs/<id>/scan/        the series of a job, as links: later arrivals do not change it
FOLDER/jobs/<id>/out/         its results
```

A job's id is a digest of its input, model and settings, so that images that arrive twice are processed once.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from zoomseg.anatomy.colours import RGB
from zoomseg.core.errors import DatasetError
from zoomseg.io.files import flush_folder, writing
from zoomseg.node.settings import Output, Retry
from zoomseg.serve.job_queue import JobQueue, QueuedJob, State, Time
from zoomseg.serve.organs import notes_of_result, organs_of_result
from zoomseg.serve.worker import Task, TaskFailure

LOG = logging.getLogger("zoomseg.node")
"""Logs keys of series and ids of jobs, but no content of headers."""

SEE_PAGE = "the page says why"
"""Reasons may contain values of headers, which are not logged."""

CASE = "result"
"""Case name of a job's results."""

NO_DESTINATION = "the settings no longer contain this destination; add it and send the series again"

MAX_STARTS = 10
"""A job that was running at this many ends of the node, or failed this many times for a reason that may pass,
is given up: it may be the cause."""

INITIAL_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 30.0, 3600.0
"""First and longest time before such a job is tried again, each twice as long as the one before."""

MORE_IMAGES = "more images of the series arrived"

SHOWN_SERIES = 200


class SeriesState(StrEnum):
    """The decision on a series."""

    RECEIVING = "receiving"
    TAKEN = "taken"
    """A job was created from it."""
    LEFT = "left"
    """No rule matches it."""
    DRY_RUN = "dry run"
    """A rule would match it."""


class Series(BaseModel):
    """A series that has arrived. Times are seconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    study_uid: str
    series_uid: str
    state: SeriesState
    first: Time
    decided: Time | None = None
    slices: int = 0
    why: str = ""
    job: str | None = None
    rule: str | None = None
    """The rule that took it; kept while it arrives again."""


class DeliveryState(StrEnum):
    """State of a delivery."""

    WAITING = "waiting"
    SENT = "sent"
    FAILED = "failed"


class Delivery(BaseModel):
    """A job's results on their way to one destination."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    destination: str
    state: DeliveryState = DeliveryState.WAITING
    attempts: int = 0
    due: Time = 0.0
    error: str | None = None
    taken: tuple[Output, ...] = ()
    """The objects that the destination has accepted."""


class OrganResult(BaseModel):
    """The result for an organ; None: not known."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str
    colour: RGB
    volume_ml: float | None = None
    mean_intensity: float | None = None
    confidence: float | None = None
    flags: tuple[str, ...] = ()


class NodeJob(QueuedJob):
    """One series to be segmented by one rule."""

    series: str
    """Its key."""
    study_uid: str
    series_uid: str
    rule: str
    slices: int
    outputs: tuple[Output, ...]
    organs: tuple[str, ...] = ()
    """The requested organs; all if empty."""
    seed: str
    """Seed of the results' UIDs: the same for the same input, model and settings."""
    deliveries: tuple[Delivery, ...] = ()
    starts: int = 0
    segmented: Time | None = None
    """Time when its results were written."""
    written: tuple[Output, ...] | None = None
    """Its outputs that exist: none, if no organ was found. None: an earlier version did not record them."""
    found: tuple[OrganResult, ...] = ()

    @property
    def segmentation_seconds(self) -> float | None:
        """From its start until its results were written; None before that."""
        if self.started is None or self.segmented is None:
            return None
        return max(0.0, self.segmented - self.started)

    @property
    def least_confidence(self) -> float | None:
        """Of the organs that were found."""
        sure = [organ.confidence for organ in self.found if organ.confidence is not None and organ.volume_ml]
        return min(sure, default=None)


@dataclass
class _Waiting:
    """Results that wait to be sent to a destination. Times are by the monotonic clock, as the other one may
    be set; while no node runs, none passes."""

    since: float
    due: float


class NodeJobs(JobQueue[NodeJob]):
    """Series and jobs of a node's folder. Any thread may use this."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            OutputError: the folder cannot be written, or another node uses it.
        """
        super().__init__(folder, NodeJob, "another node keeps its series there; give another folder")
        self.segmented = 0
        """Number of jobs since the start of the node."""
        self.segmented_seconds = 0.0
        """Their total time."""
        self._waiting: dict[str, dict[str, _Waiting]] = {}
        """By destination, the jobs whose results wait, the oldest first: senders ask twice a second."""
        self._backoff_until: dict[str, float] = {}
        """The jobs that failed for a reason that may pass, with the times before which they are not tried
        again, by the monotonic clock."""
        for job in self.in_state(State.SENDING):
            self._note_waiting(job)
        for job in self.in_state(State.RUNNING):
            self.interrupt(job.id, "the node stopped each time it ran")

    def tables(self) -> tuple[str, ...]:
        """As ``JobQueue.tables``, and the series'."""
        return (
            *super().tables(),
            "CREATE TABLE IF NOT EXISTS series (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, "
            "study_uid TEXT NOT NULL, state TEXT NOT NULL, content TEXT NOT NULL)",
            "CREATE INDEX IF NOT EXISTS series_by_study ON series (study_uid)",
        )

    # --- series -----------------------------------------------------------------------------------

    def series(self, key: str) -> Series | None:
        """The series of this key."""
        found = self._series("WHERE key = ?", key)
        return found[0] if found else None

    def series_of(self, study_uid: str) -> list[Series]:
        """All series of a study that have arrived, oldest first."""
        return self._series("WHERE study_uid = ? ORDER BY number", study_uid)

    def last_series(self) -> list[Series]:
        """The latest ones, newest first."""
        return self._series(f"ORDER BY number DESC LIMIT {SHOWN_SERIES}")

    def series_in(self, *states: SeriesState) -> list[Series]:
        """The series in any of these states, oldest first."""
        marks = ", ".join("?" * len(states))
        return self._series(f"WHERE state IN ({marks}) ORDER BY number", *states)

    def _series(self, where: str, *values: str) -> list[Series]:
        with self._changed, self._refusing():
            rows = self._db.execute(f"SELECT key, content FROM series {where}", values).fetchall()
        found = (self._parsed_series(key, content) for key, content in rows)
        return [series for series in found if series is not None]

    def _parsed_series(self, key: str, content: str) -> Series | None:
        """As ``JobQueue._parsed``."""
        return self._whole(f"series {key}", Series, content, lambda series: series.key == key)

    def note(self, *series: Series) -> None:
        """Insert or update series.

        Raises:
            OutputError: the disk refuses it.
        """
        with self._changed, self._refusing(), self._db:
            self._note(series)

    def _note(self, series: Sequence[Series]) -> None:
        for one in series:
            self._db.execute(
                "INSERT INTO series (key, study_uid, state, content) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET state = excluded.state, content = excluded.content",
                (one.key, one.study_uid, one.state, one.model_dump_json()),
            )

    def forget_series(self, key: str) -> None:
        """Delete the entry of a series whose files were deleted."""
        with self._changed, self._refusing(), self._db:
            self._db.execute("DELETE FROM series WHERE key = ?", (key,))

    # --- jobs -------------------------------------------------------------------------------------

    def counts(self) -> dict[State, int]:
        """The number of jobs in each state."""
        with self._changed, self._refusing():
            found = dict(self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in State}

    def folder(self, job_id: str) -> Path:
        """The folder of a job's files."""
        return self._folder / "jobs" / job_id

    def scan(self, job_id: str) -> Path:
        """The folder of a job's series."""
        return self.folder(job_id) / "scan"

    def out(self, job_id: str) -> Path:
        """The folder of a job's results."""
        return self.folder(job_id) / "out"

    def results(self, job: NodeJob) -> dict[Output, Path]:
        """The objects created by a job, in the order in which they are sent."""
        written = self._existing(job) if job.written is None else job.written
        return {output: result_path(self.out(job.id), output) for output in written}

    def unsent(self, job: NodeJob, destination: str) -> dict[Output, Path]:
        """The results that a destination has not accepted yet, in the order in which they are sent."""
        taken = {one for d in job.deliveries if d.destination == destination for one in d.taken}
        return {output: path for output, path in self.results(job).items() if output not in taken}

    def decide(self, series: Sequence[Series], jobs: Sequence[NodeJob]) -> list[NodeJob]:
        """Record the decisions on complete series, all of them or none. Returns those of ``jobs`` that start:
        an existing job is not repeated, but a failed one is started again. Earlier jobs of a series have
        fewer images than a new one, which replaces them: those that wait end, and of the others nothing more
        is sent.

        Raises:
            OutputError: the disk refuses it.
        """
        with self._changed:
            known = {job.id: self.find(job.id) for job in jobs}
            begin = [job for job in jobs if _begins(known[job.id])]
            replaced = {(job.series, job.rule) for job in begin}
            for old in self.in_state(State.QUEUED, State.SENDING):
                if (old.series, old.rule) in replaced and old.id not in known:
                    self._put(old, **_superseded(old))
            with self._refusing(), self._db:
                self._note(series)
                for job in begin:
                    self._db.execute(
                        "INSERT INTO jobs (id, state, content) VALUES (?, ?, ?) ON CONFLICT (id) "
                        "DO UPDATE SET state = excluded.state, content = excluded.content",
                        (job.id, job.state, job.model_dump_json()),
                    )
            for job in begin:
                self._unwritten.pop(job.id, None)
                self._backoff_until.pop(job.id, None)
            self._changed.notify_all()
            return begin

    def next_queued(self) -> NodeJob | None:
        """As ``JobQueue.next_queued``, without those that rest."""
        now = time.monotonic()
        self._backoff_until = {job_id: until for job_id, until in self._backoff_until.items() if until > now}
        if not self._backoff_until:
            return super().next_queued()
        waiting = self.in_state(State.QUEUED)
        return next((job for job in waiting if job.id not in self._backoff_until), None)

    def task(self, job: NodeJob, model: Path) -> Task:
        """The task of a job for the worker; results of an earlier start are removed."""
        shutil.rmtree(self.out(job.id), ignore_errors=True)
        wanted = {"outputs": list(job.outputs), "organs": list(job.organs), "seed": job.seed}
        return Task(CASE, str(self.scan(job.id)), str(self.out(job.id)), str(model), wanted)

    def record_result(self, job: NodeJob, failure: TaskFailure | None) -> None:
        """Mark a finished job as segmented, or failed.

        Raises:
            OutputError: the disk refuses its results.
        """
        written = self._written(job) if failure is None else ()  # before it is recorded that they exist
        with self._changed:
            now = self.find(job.id)
            if now is None or now.state is not State.RUNNING:
                return
            if failure is not None and failure.may_pass:
                shutil.rmtree(self.out(job.id), ignore_errors=True)  # it needs room itself
                self._backoff_until[job.id] = time.monotonic() + _backoff_seconds(now.starts)
                why = failure.reason
                self._again(now, why, notes=(f"tried again later: {why}",))
                return
            if failure is not None:
                self._put(now, state=State.FAILED, error=failure.reason, notes=())
                LOG.error("job %s: failed; %s", job.id, SEE_PAGE)
                return
            newer = self._waiting_of_series(now)
            deliveries = now.deliveries if written and not newer else ()
            notes, found = self._notes_and_organs(now)
            if newer:
                notes += (f"nothing was sent: {MORE_IMAGES}",)
            elif not written:
                notes += ("no organ was found, and nothing sent",)
            done = self._put(
                now,
                notes=notes,
                found=found,
                deliveries=deliveries,
                segmented=time.time(),
                written=written,
                **{"state": State.SENDING, **_when_sent(deliveries)},
            )
            self.segmented += 1
            self.segmented_seconds += done.segmentation_seconds or 0.0

    def _written(self, job: NodeJob) -> tuple[Output, ...]:
        """The outputs of a job that exist; when this returns, their names are on the disk."""
        out = self.out(job.id)
        if not out.is_dir():
            return ()
        with writing(out):
            for folder in (out, out.parent):
                flush_folder(folder)
        return self._existing(job)

    def _existing(self, job: NodeJob) -> tuple[Output, ...]:
        out = self.out(job.id)
        return tuple(one for one in Output if one in job.outputs and result_path(out, one).is_file())

    def _waiting_of_series(self, job: NodeJob) -> list[NodeJob]:
        """The waiting job of the same series and rule as a running one, if there is one. It has more images:
        it would have ended when the running one was created (see ``decide``)."""
        return [j for j in self.in_state(State.QUEUED) if (j.series, j.rule) == (job.series, job.rule)]

    def _notes_and_organs(self, job: NodeJob) -> tuple[tuple[str, ...], tuple[OrganResult, ...]]:
        """Notes and organs of a result."""
        try:
            notes = notes_of_result(self.out(job.id), CASE)
            organs = organs_of_result(self.out(job.id), CASE)
        except DatasetError as error:
            return (str(error),), ()
        return tuple(notes), tuple(OrganResult.model_validate(organ.model_dump()) for organ in organs)

    def interrupt(self, job_id: str, why: str) -> None:
        """The node stops, or has stopped, while a job runs: the job waits again, a limited number of
        times."""
        with self._changed:
            job = self.find(job_id)
            if job is not None and job.state is State.RUNNING:
                self._again(job, why)

    def _again(self, job: NodeJob, why: str, notes: tuple[str, ...] = ()) -> None:
        """A running job waits again, a limited number of times, and unless more images came meanwhile."""
        if self._waiting_of_series(job):
            self._put(job, **_superseded(job))
        elif job.starts + 1 >= MAX_STARTS:
            self._put(job, state=State.FAILED, error=f"given up after {MAX_STARTS} starts: {why}", notes=())
            LOG.error("job %s: failed; %s", job.id, SEE_PAGE)
        else:
            self._put(job, state=State.QUEUED, starts=job.starts + 1, notes=notes)

    # --- deliveries -------------------------------------------------------------------------------

    def next_delivery(self, destination: str) -> NodeJob | None:
        """The oldest job with results due at a destination."""
        now = time.monotonic()
        with self._changed:
            waiting = self._waiting.get(destination, {}).items()
            found = next((job_id for job_id, one in waiting if one.due <= now), None)
            return None if found is None else self.find(found)

    def deliveries_waiting(self) -> dict[str, int]:
        """The number of jobs that wait to be sent, by destination."""
        with self._changed:
            return {destination: len(waiting) for destination, waiting in self._waiting.items()}

    def _put(self, job: NodeJob, **changes: object) -> NodeJob:
        """As ``JobQueue._put``, and for the next delivery."""
        changed = super()._put(job, **changes)
        self._note_waiting(changed)
        return changed

    def _note_waiting(self, job: NodeJob) -> None:
        """Results that were not waiting are due at once."""
        now, sending = time.monotonic(), job.state is State.SENDING
        places = {d.destination for d in job.deliveries if sending and d.state is DeliveryState.WAITING}
        for destination in places:
            self._waiting.setdefault(destination, {}).setdefault(job.id, _Waiting(now, now))
        for destination in self._waiting.keys() - places:
            self._waiting[destination].pop(job.id, None)

    def await_delivery(self, destination: str, seconds: float, stopping: Callable[[], bool]) -> None:
        """Wait until results are due at a destination or ``stopping`` returns True (see ``wake``), at most
        ``seconds``: nothing notifies this queue when a failed transfer is due again."""
        with self._changed:
            self._changed.wait_for(lambda: stopping() or self.next_delivery(destination) is not None, seconds)

    def delivered(
        self, job_id: str, destination: str, error: str | None, retry: Retry, taken: Sequence[Output] = ()
    ) -> NodeJob | None:
        """Record an attempt to send a job's results; returns the updated job.

        Args:
            taken: the objects that the destination has accepted in this attempt.
        """
        with self._changed:
            job = self.find(job_id)
            waiting = self._waiting.get(destination, {}).get(job_id)
            if job is None or waiting is None:
                return job
            now = time.monotonic()
            attempts = next(d.attempts for d in job.deliveries if d.destination == destination)
            waiting.due = now + min(retry.longest_seconds, retry.first_seconds * 2.0 ** min(attempts, 30))
            given_up = now - waiting.since > retry.give_up_hours * 3600
            due = time.time() + waiting.due - now
            deliveries = tuple(
                _after(d, error, given_up, due, taken) if d.destination == destination else d
                for d in job.deliveries
            )
            return self._put(job, deliveries=deliveries, **_when_sent(deliveries))

    def give_up_unknown(self, destinations: Container[str]) -> None:
        """Give up deliveries to other destinations than these: nothing would ever send them."""
        with self._changed:
            for job in self.in_state(State.QUEUED, State.SENDING):
                deliveries = tuple(
                    d.model_copy(update={"state": DeliveryState.FAILED, "error": NO_DESTINATION})
                    if d.state is DeliveryState.WAITING and d.destination not in destinations
                    else d
                    for d in job.deliveries
                )
                if deliveries != job.deliveries:
                    ended = _when_sent(deliveries) if job.state is State.SENDING else {}
                    self._put(job, deliveries=deliveries, **ended)
                    LOG.error("job %s: not sent to all destinations; %s", job.id, SEE_PAGE)

    # --- retention --------------------------------------------------------------------------------

    def clear(self, before: float) -> list[Series]:
        """Delete the files of jobs that ended before a time; their entries remain. Returns, and deletes the
        entries of, series that were decided by then and belong to no other job."""
        open_series = set()
        places = self._folder / "jobs"
        for place in places.iterdir() if places.is_dir() else ():
            job = self.find(place.name)
            if job is None or (job.state.is_end and (job.ended or 0) < before):
                shutil.rmtree(place, ignore_errors=True)
            else:
                open_series.add(job.series)
        decided = self.series_in(SeriesState.TAKEN, SeriesState.LEFT, SeriesState.DRY_RUN)
        old = [s for s in decided if (s.decided or 0) < before]
        gone = [s for s in old if s.key not in open_series]
        for one in gone:
            self.forget_series(one.key)
        return gone


def result_path(out: Path, output: Output) -> Path:
    """The path of an object created for a job."""
    return out / f"{CASE}.{_SUFFIXES[output]}"


_SUFFIXES = {
    Output.SEG: "seg.dcm",
    Output.RTSTRUCT: "rtstruct.dcm",
    Output.SR: "sr.dcm",
    Output.SECONDARY_CAPTURE: "capture.dcm",
}


def _begins(known: NodeJob | None) -> bool:
    return known is None or known.state in (State.FAILED, State.INTERRUPTED, State.CANCELLED)


def _superseded(job: NodeJob) -> dict[str, object]:
    """The end of a job when more images of its series came: nothing more is sent."""
    if job.state is not State.SENDING:
        return {"state": State.CANCELLED, "error": MORE_IMAGES}
    left = [d for d in job.deliveries if d.state is DeliveryState.WAITING]
    deliveries = tuple(d for d in job.deliveries if d not in left)
    note = f"not sent to {', '.join(d.destination for d in left)}: {MORE_IMAGES}"
    return {"deliveries": deliveries, "notes": (*job.notes, note), **_when_sent(deliveries)}


def _backoff_seconds(starts: int) -> float:
    """Time before a job is tried again that was started this many times before."""
    return min(MAX_BACKOFF_SECONDS, INITIAL_BACKOFF_SECONDS * 2.0**starts)


def _after(
    delivery: Delivery, error: str | None, given_up: bool, due: float, taken: Sequence[Output]
) -> Delivery:
    """A delivery after an attempt that failed or succeeded."""
    changes: dict[str, object] = {"attempts": delivery.attempts + 1, "taken": (*delivery.taken, *taken)}
    if error is None:
        changes |= {"state": DeliveryState.SENT, "error": None}
    elif given_up:
        changes |= {"state": DeliveryState.FAILED, "error": error}
    else:
        changes |= {"due": due, "error": error}
    return delivery.model_copy(update=changes)


def _when_sent(deliveries: Sequence[Delivery]) -> dict[str, object]:
    """The state of a job without waiting deliveries."""
    if any(d.state is DeliveryState.WAITING for d in deliveries):
        return {}
    failed = [d for d in deliveries if d.state is DeliveryState.FAILED]
    if not failed:
        return {"state": State.FINISHED}
    why = "; ".join(f"{d.destination}: {d.error}" for d in failed)
    return {"state": State.FAILED, "error": f"its results could not be sent ({why})"}
