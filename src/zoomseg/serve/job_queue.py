"""A queue of jobs in an SQLite database: requests, progress and outcomes.

Its content survives the end of the process and of the machine: every change is a transaction that is on the
disk before it is confirmed. `zoomseg serve` and the DICOM node keep their jobs in it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoomseg.core.errors import OutputError
from zoomseg.io.files import open_unlinked, parse_json, refuse_link, writable_directory
from zoomseg.io.locks import locked

DATABASE = "jobs.sqlite"
_SQLITE_ENDS = ("-wal", "-shm", "-journal")
"""Of the names of its other files."""
_TABLE = (
    "CREATE TABLE IF NOT EXISTS jobs "
    "(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, content TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number)",
)


class State(StrEnum):
    """State of a job; the last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SENDING = "sending"
    """Segmented; its results are being sent to their destinations."""
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether the state is final."""
        return self not in (State.QUEUED, State.RUNNING, State.SENDING)


Time = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class QueuedJob(BaseModel):
    """The fields of every job. Times are seconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    model: str
    state: State
    created: Time
    started: Time | None = None
    ended: Time | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    """Notes on its result, as in ``organs.notes_of_result``."""

    @property
    def seconds(self) -> float:
        """Seconds for which it has been running."""
        if self.started is None:
            return 0.0
        return max(0.0, (self.ended or time.time()) - self.started)


@dataclass(frozen=True)
class Step:
    """Progress of a running job: ``done`` of ``total`` in a stage."""

    stage: str
    done: int
    total: int


J = TypeVar("J", bound=QueuedJob)
Row = TypeVar("Row", bound=BaseModel)


class JobQueue(Generic[J]):
    """The jobs of a folder, oldest first. Any thread may use this; one process at a time."""

    def __init__(self, folder: Path, kind: type[J], used: str) -> None:
        """
        Args:
            kind: of the jobs.
            used: the error message if another process uses the folder.

        Raises:
            OutputError: the folder cannot be written, another process uses it, or its database is damaged.
        """
        # An existing folder may be somebody's, or shared: what is in it is private by itself.
        self._folder = writable_directory(folder, 0o700)
        self._kind = kind
        self._lock_file = locked(self._folder / ".lock", used)
        self._steps: dict[str, Step] = {}
        self._stage_began: dict[str, float] = {}
        """By the monotonic clock."""
        self._unwritten: dict[str, J] = {}
        """Changes that could not be written to the disk; they apply until they can."""
        self._damaged: set[str] = set()
        """Rows that have been reported as damaged."""
        self._changed = threading.Condition(threading.RLock())
        self._path = self._folder / DATABASE
        try:
            # Before SQLite, which gives its other files the same permissions, and follows links.
            os.close(open_unlinked(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            for end in _SQLITE_ENDS:
                refuse_link(f"{self._path}{end}")
            self._db = sqlite3.connect(self._path, check_same_thread=False)
            with self._refusing():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")  # on the disk when a change is confirmed
                with self._db:
                    for statement in self.tables():
                        self._db.execute(statement)
        except (OutputError, OSError, sqlite3.Error) as error:
            self._lock_file.close()
            raise OutputError(f"{self._path}: cannot be opened ({error}); move it away") from error

    def tables(self) -> tuple[str, ...]:
        """SQL statements that create missing tables."""
        return _TABLE

    def close(self) -> None:
        """Release the folder for other processes."""
        with self._changed:
            self._db.close()
            self._lock_file.close()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Convert errors of the database (full disk, damage) to an OutputError."""
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(f"{self._path}: {error}; make room, or move it away") from error

    # --- asking -----------------------------------------------------------------------------------

    def all(self) -> list[J]:
        """Every job, oldest first."""
        return self._select("ORDER BY number")

    def last(self, most: int) -> list[J]:
        """The latest ones, newest first."""
        return self._select(f"ORDER BY number DESC LIMIT {most}")

    def in_state(self, *states: State) -> list[J]:
        """The jobs in any of these states, oldest first."""
        with self._changed:
            where, values = self._states(states)
            return self._select(f"WHERE {where} ORDER BY number", *values)

    def first(self, state: State) -> J | None:
        """The oldest job in this state. The others are not read."""
        with self._changed, self._refusing():
            where, values = self._states([state])
            return next(self._found(f"WHERE {where} ORDER BY number", values), None)

    def _states(self, states: Sequence[State]) -> tuple[str, list[str]]:
        """A condition for jobs in these states, and its values."""
        marks = ", ".join("?" * len(states))
        if not self._unwritten:
            return f"state IN ({marks})", list(states)
        # The disk could not be written, and contains earlier states.
        mine = [job.id for job in self._unwritten.values() if job.state in states]
        others = ", ".join("?" * len(self._unwritten))
        where = f"(state IN ({marks}) AND id NOT IN ({others}) OR id IN ({', '.join('?' * len(mine))}))"
        return where, [*states, *self._unwritten, *mine]

    def find(self, job_id: str) -> J | None:
        """The job with this id, which may be any text."""
        found = self._select("WHERE id = ?", job_id)
        return found[0] if found else None

    def _select(self, where: str, *values: str) -> list[J]:
        with self._changed, self._refusing():
            return list(self._found(where, values))

    def _found(self, where: str, values: Sequence[str]) -> Iterator[J]:
        for job_id, content in self._db.execute(f"SELECT id, content FROM jobs {where}", values):
            job = self._unwritten.get(job_id) or self._parsed(job_id, content)
            if job is not None:
                yield job

    def _parsed(self, job_id: str, content: str) -> J | None:
        """A job from its stored form; None if it is damaged."""
        return self._whole(f"job {job_id}", self._kind, content, lambda job: job.id == job_id)

    def _whole(self, name: str, kind: type[Row], content: str, is_it: Callable[[Row], bool]) -> Row | None:
        """A row from its stored form; None if it is damaged, which is reported once and left unchanged: the
        others are served."""
        try:
            row = kind.model_validate(parse_json(content))
            if is_it(row):
                return row
        except (ValueError, ValidationError):
            pass
        if name not in self._damaged:
            self._damaged.add(name)
            print(f"zoomseg: {self._path}: {name} is damaged", file=sys.stderr, flush=True)
        return None

    def step(self, job_id: str) -> Step | None:
        """The progress of a running job."""
        with self._changed:
            return self._steps.get(job_id)

    def stage_seconds(self, job_id: str) -> float:
        """Seconds for which a running job has been in its stage."""
        with self._changed:
            began = self._stage_began.get(job_id)
            return 0.0 if began is None else time.monotonic() - began

    def ahead_of(self, job: J) -> int:
        """The number of jobs before a waiting one."""
        with self._changed, self._refusing():
            where, values = self._states([State.QUEUED, State.RUNNING])
            before = f"{where} AND number < (SELECT number FROM jobs WHERE id = ?)"
            (count,) = self._db.execute(
                f"SELECT count(*) FROM jobs WHERE {before}", [*values, job.id]
            ).fetchone()
        return int(count)

    # --- changing ---------------------------------------------------------------------------------

    def take(self, seconds: float, stopping: Callable[[], bool] = lambda: False) -> J | None:
        """The job that has waited longest, now running; None if there is none within ``seconds``, or once
        ``stopping`` returns True (see ``wake``)."""
        with self._changed:
            self._changed.wait_for(lambda: stopping() or self.next_queued() is not None, seconds)
            job = None if stopping() else self.next_queued()
            return None if job is None else self._put(job, state=State.RUNNING, started=time.time())

    def next_queued(self) -> J | None:
        """The job that is taken next."""
        return self.first(State.QUEUED)

    def wake(self) -> None:
        """Make threads that wait for a job check whether to stop."""
        with self._changed:
            self._changed.notify_all()

    def set_progress(self, job_id: str, step: Step) -> None:
        """Set the progress of a running job."""
        with self._changed:
            before = self._steps.get(job_id)
            if before is None or before.stage != step.stage:
                self._stage_began[job_id] = time.monotonic()
            self._steps[job_id] = step

    def end(self, job_id: str, state: State, error: str | None = None, notes: tuple[str, ...] = ()) -> bool:
        """End a job that waits or runs; False if it has already ended, which does not change it."""
        with self._changed:
            job = self.find(job_id)
            if job is None or job.state.is_end:
                return False
            self._put(job, state=state, error=error, notes=notes)
            return True

    def _insert(self, job: J) -> None:
        """A new job.

        Raises:
            OutputError: the disk refuses it.
        """
        with self._changed:
            with self._refusing(), self._db:
                self._db.execute(
                    "INSERT INTO jobs (id, state, content) VALUES (?, ?, ?)",
                    (job.id, job.state, job.model_dump_json()),
                )
            self._changed.notify_all()

    def _delete(self, job_id: str) -> None:
        with self._changed, self._refusing():
            self._unwritten.pop(job_id, None)
            with self._db:
                self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def _put(self, job: J, **changes: object) -> J:
        """Update a job; if the disk refuses the change, it applies within this process, and is written with
        the next one."""
        changed = job.model_copy(update=changes)
        if changed.state.is_end and changed.ended is None:
            changed = changed.model_copy(update={"ended": time.time()})
        if changed.state is not State.RUNNING:
            self._steps.pop(job.id, None)
            self._stage_began.pop(job.id, None)
        self._unwritten[job.id] = changed
        self._changed.notify_all()
        try:
            with self._db:
                for one in self._unwritten.values():
                    self._db.execute(
                        "UPDATE jobs SET state = ?, content = ? WHERE id = ?",
                        (one.state, one.model_dump_json(), one.id),
                    )
            self._unwritten.clear()
        except sqlite3.Error as error:  # a full disk must not stop the server
            print(f"zoomseg: {self._path}: {error}", file=sys.stderr, flush=True)
        return changed
