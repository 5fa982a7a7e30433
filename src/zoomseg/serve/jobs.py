"""Jobs on disk, and the queue: what was asked, how far it is, where its results are.

```
FOLDER/.lock                 held by the server that uses the folder
FOLDER/<id>/job.json         state; rewritten at every change of it
FOLDER/<id>/scan<suffix>     as it was uploaded
FOLDER/<id>/out/             what `zoomseg predict` writes
FOLDER/<id>/review.json      what people say of it (``review``)
FOLDER/corrected/            label maps that people corrected (``corrections``)
```

A server that is killed loses nothing that was finished: when the folder is opened again, the job that ran is
marked interrupted, and those that waited wait again.
"""

from __future__ import annotations

import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoomseg.core.errors import OutputError, ScanError, ZoomSegError
from zoomseg.io.files import parse_json, read_file, writable_directory, write_json_atomic, writing
from zoomseg.io.locks import locked
from zoomseg.io.scans import SCAN_SUFFIXES

SUFFIXES = (*(s for s in SCAN_SUFFIXES if s != ".mhd"), ".zip")
"""What may be uploaded. The voxels of an .mhd are in another file."""

MAX_UPLOADS = 64
"""That arrive at the same time. They hold no place in the queue until they are whole."""

MAX_NAME = 100
"""Characters kept of an uploaded file's name."""


class State(StrEnum):
    """Where a job is; the last four are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether nothing will happen to the job any more."""
        return self not in (State.QUEUED, State.RUNNING)


Time = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class Job(BaseModel):
    """One scan to be segmented by one model; ``job.json``. Times are seconds since 1970."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    name: Annotated[str, Field(max_length=MAX_NAME)]
    """For people; never a path."""
    suffix: str
    model: str
    state: State
    created: Time
    started: Time | None = None
    ended: Time | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    """Of its result, as ``organs.notes_of_result`` has them."""

    @property
    def title(self) -> str:
        """The scan's name without what says its format."""
        return self.name[: -len(self.suffix)] or "scan"

    @property
    def seconds(self) -> float:
        """For which it has been running."""
        if self.started is None:
            return 0.0
        return max(0.0, (self.ended or time.time()) - self.started)


@dataclass(frozen=True)
class Step:
    """How far a running job is: ``done`` of ``total`` in a stage."""

    stage: str
    done: int
    total: int


class QueueFullError(ZoomSegError):
    """As many jobs wait, or scans arrive, as may."""


def upload_suffix(name: str) -> str:
    """The suffix of an uploaded file's name, of ``SUFFIXES``.

    Raises:
        ScanError: another one.
    """
    lower = name.lower()
    found = next((s for s in SUFFIXES if lower.endswith(s)), None)
    if found is None:
        raise ScanError(f"'{shown_name(name)}' is not a scan; upload one file: {', '.join(SUFFIXES)}")
    return found


def shown_name(name: str) -> str:
    """An uploaded file's name as it may be shown: no folders, no control characters, not too long."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c if c.isprintable() else " " for c in last).strip()[-MAX_NAME:] or "scan"


class Jobs:
    """The jobs of a folder, oldest first. Any thread may use this."""

    def __init__(self, folder: Path, waiting: int) -> None:
        """
        Args:
            waiting: how many jobs may wait.

        Raises:
            OutputError: the folder cannot be written, or another server uses it.
        """
        self._folder = writable_directory(folder)
        self._folder.chmod(0o700)  # what lies there is of patients
        self._lock_file = locked(
            self._folder / ".lock", "another server keeps its jobs there; give another --folder"
        )
        self._waiting = waiting
        self._uploads = 0
        self._steps: dict[str, Step] = {}
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        try:
            self._recover()
        except OutputError:
            self.close()
            raise

    def _recover(self) -> None:
        with self._changed:
            for job in sorted(_stored(self._folder), key=lambda job: (job.created, job.id)):
                self._jobs[job.id] = job
                if job.state is State.RUNNING:
                    why = "the server stopped while this ran; upload the scan again"
                    self._put(job, State.INTERRUPTED, why)

    def close(self) -> None:
        """Let another server use the folder."""
        self._lock_file.close()

    # --- asking -----------------------------------------------------------------------------------

    def all(self) -> list[Job]:
        """Every job, oldest first."""
        with self._changed:
            return list(self._jobs.values())

    def find(self, job_id: str) -> Job | None:
        """The job of this id, which may be anything."""
        with self._changed:
            return self._jobs.get(job_id)

    def step(self, job_id: str) -> Step | None:
        """How far a job is that runs."""
        with self._changed:
            return self._steps.get(job_id)

    def ahead_of(self, job: Job) -> int:
        """How many jobs come before one that waits."""
        with self._changed:
            before = [j.id for j in self._jobs.values() if not j.state.is_end]
            return before.index(job.id) if job.id in before else 0

    def review(self, job: Job) -> Path:
        """What people say of its results, as ``serve.review`` keeps it."""
        return self._folder / job.id / "review.json"

    def scan(self, job: Job) -> Path:
        """The uploaded file."""
        return self._folder / job.id / f"scan{job.suffix}"

    def out(self, job: Job) -> Path:
        """The folder of its results."""
        return self._folder / job.id / "out"

    # --- changing ---------------------------------------------------------------------------------

    @contextmanager
    def arriving(self, name: str, model: str) -> Iterator[tuple[Job, Path]]:
        """A new job and the place to put its scan; at the end it waits in the queue. What is raised inside
        leaves nothing behind.

        Raises:
            ScanError: the name is not that of a scan.
            QueueFullError: too many wait already.
        """
        job = Job(
            id=secrets.token_hex(8),
            name=shown_name(name),
            suffix=upload_suffix(name),
            model=model,
            state=State.QUEUED,
            created=time.time(),
        )
        with self._changed:
            self._require_place()  # not only when gigabytes have come
            if self._uploads >= MAX_UPLOADS:
                raise QueueFullError(f"{self._uploads} scans are being uploaded already; try again later")
            self._uploads += 1
        try:
            with writing(self.scan(job).parent):
                self.scan(job).parent.mkdir(mode=0o700)
            yield job, self.scan(job)
            with self._changed:
                self._require_place()
                self._write(job)
                self._jobs[job.id] = job
                self._changed.notify_all()
        except BaseException:
            shutil.rmtree(self.scan(job).parent, ignore_errors=True)
            raise
        finally:
            with self._changed:
                self._uploads -= 1

    def _require_place(self) -> None:
        waiting = sum(job.state is State.QUEUED for job in self._jobs.values())
        if waiting >= self._waiting:
            raise QueueFullError(f"{waiting} scans wait already; try again when one of them is done")

    def take(self, seconds: float) -> Job | None:
        """The job that waits longest, now running; None if there is none for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._first_waiting() is not None, seconds)
            job = self._first_waiting()
            return None if job is None else self._put(job, State.RUNNING)

    def _first_waiting(self) -> Job | None:
        return next((job for job in self._jobs.values() if job.state is State.QUEUED), None)

    def tell(self, job_id: str, step: Step) -> None:
        """A running job is so far."""
        with self._changed:
            self._steps[job_id] = step

    def end(self, job_id: str, state: State, error: str | None = None, notes: tuple[str, ...] = ()) -> bool:
        """A job that waits or runs ends so; False if it has ended already, which stays as it is."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.state.is_end:
                return False
            self._put(job, state, error, notes)
            return True

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended, and delete its files."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or not job.state.is_end:
                return
            del self._jobs[job_id]
        # Renamed first: what is left of a deletion that is interrupted is no job.
        gone = self._folder / f".{job_id}.gone"
        with writing(gone), suppress(FileNotFoundError):  # somebody else deleted them
            self.scan(job).parent.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _put(self, job: Job, state: State, error: str | None = None, notes: tuple[str, ...] = ()) -> Job:
        now = time.time()
        changes: dict[str, object] = {"state": state, "error": error, "notes": notes}
        if state is State.RUNNING:
            changes["started"] = now
        if state.is_end:
            changes["ended"] = now
            self._steps.pop(job.id, None)
        changed = self._jobs[job.id] = job.model_copy(update=changes)
        self._changed.notify_all()
        try:
            self._write(changed)
        except OutputError as error:  # a full disk must not stop the server
            print(f"zoomseg: {error}", file=sys.stderr, flush=True)
        return changed

    def _write(self, job: Job) -> None:
        write_json_atomic(self._folder / job.id / "job.json", job.model_dump(mode="json"))


def _stored(folder: Path) -> Iterator[Job]:
    """The jobs of a folder; one that is damaged is told of and left alone, and what an interrupted upload or
    deletion left is deleted."""
    for place in folder.iterdir():
        if place.name.endswith(".gone") or (
            re.fullmatch(r"[0-9a-f]{16}", place.name) and not (place / "job.json").is_file()
        ):
            shutil.rmtree(place, ignore_errors=True)
        elif re.fullmatch(r"[0-9a-f]{16}", place.name):
            try:
                yield _read(place)
            except OutputError as error:  # the others are served
                print(f"zoomseg: {error}", file=sys.stderr, flush=True)


def _read(place: Path) -> Job:
    try:
        job = Job.model_validate(parse_json(read_file(place / "job.json")))
    except (OSError, ValueError, ValidationError) as error:
        raise OutputError(f"{place}/job.json is damaged; delete the folder {place}") from error
    if job.id != place.name or job.suffix not in SUFFIXES:
        raise OutputError(f"{place}/job.json is of another job; delete the folder {place}")
    return job
