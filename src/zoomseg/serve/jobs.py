"""The jobs of `zoomseg serve`: scans that are uploaded, and where their results are.

```
FOLDER/.lock                 held by the server that uses the folder
FOLDER/jobs.sqlite           the queue (see ``serve.job_queue``)
FOLDER/.<id>.arriving/       a scan that is being uploaded
FOLDER/<id>/scan<suffix>     as uploaded
FOLDER/<id>/out/             what `zoomseg predict` writes
FOLDER/<id>/review.json      its review (``review``)
FOLDER/corrected/            corrected label maps (``corrections``)
```

If a server is killed, finished results are kept: when the folder is opened again, the running job is
marked as interrupted, and waiting jobs continue to wait.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field

from zoomseg.core.errors import DatasetError, ScanError, ZoomSegError
from zoomseg.io.files import flush_folder, writing
from zoomseg.io.scans import SCAN_SUFFIXES
from zoomseg.serve.job_queue import JobQueue, QueuedJob, State
from zoomseg.serve.organs import notes_of_result
from zoomseg.serve.worker import Task, TaskFailure

SUFFIXES = (*(s for s in SCAN_SUFFIXES if s != ".mhd"), ".zip")
"""Suffixes of valid uploads. The voxels of an .mhd are in another file."""

MAX_UPLOADS = 64
"""Maximum number of simultaneous uploads. They have no place in the queue until they are complete."""

MAX_NAME = 100
"""Number of characters kept of an uploaded file's name."""


class Job(QueuedJob):
    """One scan to be segmented by one model."""

    name: Annotated[str, Field(max_length=MAX_NAME)]
    """For display; never a path."""
    suffix: str

    @property
    def title(self) -> str:
        """The scan's name without the suffix of its format."""
        return self.name[: -len(self.suffix)] or "scan"


class QueueFullError(ZoomSegError):
    """The maximum number of jobs wait, or of scans are being uploaded."""


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
    """An uploaded file's name for display: no folders, no control characters, limited length."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c if c.isprintable() else " " for c in last).strip()[-MAX_NAME:] or "scan"


class Jobs(JobQueue[Job]):
    """The jobs of a server's folder, oldest first. Any thread may use this."""

    def __init__(self, folder: Path, waiting: int) -> None:
        """
        Args:
            waiting: maximum number of waiting jobs.

        Raises:
            OutputError: the folder cannot be written, or another server uses it.
        """
        super().__init__(folder, Job, "another server keeps its jobs there; give another --folder")
        self._waiting = waiting
        self._uploads = 0
        for job in self.in_state(State.RUNNING):
            self.interrupt(job.id, "the server stopped while this ran; upload the scan again")
        _clear(self._folder)

    def review(self, job: Job) -> Path:
        """The file with the review of its results, written by ``serve.review``."""
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
        """A new job and the path for its scan, which the caller flushes to the disk; it is queued at the end.
        If an exception is raised inside, nothing remains.

        Raises:
            ScanError: the name is not that of a scan.
            QueueFullError: too many jobs wait.
        """
        job = Job(
            id=secrets.token_hex(8),
            name=shown_name(name),
            suffix=upload_suffix(name),
            model=model,
            state=State.QUEUED,
            created=time.time(),
        )
        place, arriving = self.scan(job).parent, self._folder / f".{job.id}.arriving"
        with self._changed:
            self._require_place()  # not only after gigabytes were uploaded
            if self._uploads >= MAX_UPLOADS:
                raise QueueFullError(f"{self._uploads} scans are being uploaded already; try again later")
            self._uploads += 1
        try:
            with writing(arriving):
                arriving.mkdir(mode=0o700)
            yield job, arriving / self.scan(job).name
            with self._changed:
                self._require_place()
                with writing(place):
                    flush_folder(arriving)
                    arriving.rename(place)
                    flush_folder(self._folder)
                self._insert(job)
        except BaseException:
            for left in (arriving, place):
                shutil.rmtree(left, ignore_errors=True)
            raise
        finally:
            with self._changed:
                self._uploads -= 1

    def _require_place(self) -> None:
        waiting = len(self.in_state(State.QUEUED))
        if waiting >= self._waiting:
            raise QueueFullError(f"{waiting} scans wait already; try again when one of them is done")

    def task(self, job: Job, model: Path) -> Task:
        """The task of a job for the worker."""
        return Task(job.id, str(self.scan(job)), str(self.out(job)), str(model))

    def record_result(self, job: Job, failure: TaskFailure | None) -> None:
        """Mark a finished job as done, or failed. Notes of its result are read once, as they do not
        change."""
        notes: tuple[str, ...] = ()
        with suppress(DatasetError):  # a damaged result is shown as far as possible
            notes = tuple(notes_of_result(self.out(job), job.id)) if failure is None else ()
        if failure is None:
            self.end(job.id, State.FINISHED, notes=notes)
        else:
            self.end(job.id, State.FAILED, failure.reason)

    def interrupt(self, job_id: str, why: str) -> None:
        """The server stops, or has stopped, while a job runs."""
        self.end(job_id, State.INTERRUPTED, why)

    def remove(self, job_id: str) -> None:
        """Delete a job that has ended, with its files."""
        with self._changed:
            job = self.find(job_id)
            if job is None or not job.state.is_end:
                return
            # Renamed first: what an interrupted deletion leaves is deleted at the next start, and a job
            # without files can be deleted again.
            gone = self._folder / f".{job_id}.gone"
            with writing(gone), suppress(FileNotFoundError):
                self.scan(job).parent.rename(gone)
            self._delete(job_id)
        shutil.rmtree(gone, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Delete the remains of interrupted uploads and deletions, and nothing else: the folder may contain other
    files, and scans whose database was moved away."""
    for place in folder.iterdir():
        if re.fullmatch(r"\.[0-9a-f]{16}\.(arriving|gone)", place.name):
            shutil.rmtree(place, ignore_errors=True)
