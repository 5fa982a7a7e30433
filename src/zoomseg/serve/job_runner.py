"""Process jobs one after the other, with a worker that is replaced when it dies."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, Protocol

from zoomseg.core.errors import OutputError, without_message
from zoomseg.serve.background import ran
from zoomseg.serve.job_queue import J, State, Step
from zoomseg.serve.worker import Task, TaskFailure, Worker, WorkerDiedError, unexpected

POLL_INTERVAL_SECONDS = 0.5
"""Interval at which an idle runner, or one whose disk failed, tries again."""

CANNOT_START = (
    "the process that segments cannot be started, often for lack of memory; see the server's output"
)
"""The reason why a job fails without a worker."""


class Jobs(Protocol[J]):
    """The part of a queue that a runner needs (see ``job_queue.JobQueue``)."""

    def take(self, seconds: float, stopping: Callable[[], bool]) -> J | None: ...
    def wake(self) -> None: ...
    def find(self, job_id: str) -> J | None: ...
    def set_progress(self, job_id: str, step: Step) -> None: ...
    def end(self, job_id: str, state: State, error: str | None = None) -> bool: ...
    def task(self, job: J, model: Path) -> Task: ...
    def record_result(self, job: J, failure: TaskFailure | None) -> None: ...
    def interrupt(self, job_id: str, why: str) -> None: ...


class Runner(Generic[J]):
    """A thread that passes jobs from the queue to a worker."""

    def __init__(self, jobs: Jobs[J], models: Mapping[str, Path], start_worker: Callable[[], Worker]) -> None:
        """
        Args:
            models: folders by name.
            start_worker: called when there is work and no worker.
        """
        self._jobs = jobs
        self._models = models
        self._start_worker = start_worker
        self._worker: Worker | None = None
        self._running: str | None = None
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zoomseg-runner", daemon=True)

    def start(self) -> None:
        """Start with the waiting jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; a running job is interrupted, waiting ones remain for the next server."""
        self._stopping.set()
        with self._guard:
            if self._running is not None:
                self._jobs.interrupt(self._running, "the server was stopped while this ran")
            self._kill()
        self._jobs.wake()
        self._thread.join()

    def cancel(self, job_id: str) -> bool:
        """End a job that waits or runs; False if it has already ended."""
        with self._guard:
            ended = self._jobs.end(job_id, State.CANCELLED)
            if ended and job_id == self._running:
                self._kill()
            return ended

    def _kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _run(self) -> None:
        with self._guard:  # starting takes seconds, for which the first scan need not wait
            if not self._stopping.is_set():
                self._started()
        while not self._stopping.is_set():
            if not ran(self._do_next, _report):
                self._stopping.wait(POLL_INTERVAL_SECONDS)

    def _do_next(self) -> None:
        job = self._jobs.take(POLL_INTERVAL_SECONDS, self._stopping.is_set)
        if job is None:
            return
        try:
            self._do(job)
        except Exception as error:  # one job's failure does not affect the others
            with self._guard:
                self._kill()  # its state is unknown
                self._jobs.end(job.id, State.FAILED, unexpected(error))
            raise
        finally:
            self._running = None

    def _do(self, job: J) -> None:
        with self._guard:
            found = self._jobs.find(job.id)
            if found is None or found.state is not State.RUNNING or self._stopping.is_set():
                return  # cancelled meanwhile; or the next server marks it as interrupted
            self._running = job.id
            worker = self._started()
        failure = TaskFailure(CANNOT_START) if worker is None else self._failure(worker, job)
        while not self._settled(job, failure):
            self._stopping.wait(POLL_INTERVAL_SECONDS)

    def _settled(self, job: J, failure: TaskFailure | None) -> bool:
        """Whether a job is recorded as finished, or left to the next server; False if the disk refuses it."""
        with self._guard:
            try:
                if not self._stopping.is_set():
                    self._jobs.record_result(job, failure)
            except OutputError as refused:
                _report(str(refused))
                return False
            return True

    def _started(self) -> Worker | None:
        """The worker; None if it cannot be started."""
        if self._worker is None:
            try:
                self._worker = self._start_worker()
            except Exception as error:  # an OSError, if there is too little memory for a process
                _report(without_message(error))
        return self._worker

    def _failure(self, worker: Worker, job: J, again: bool = True) -> TaskFailure | None:
        """Process a job; None if it succeeded.

        Args:
            again: whether a worker that died before the job began, as while it waited, is replaced.
        """
        model = self._models.get(job.model)
        if model is None:
            return TaskFailure(f"its model '{job.model}' is not available any more; submit the scan again")
        has_begun = False

        def on_step(step: Step) -> None:
            nonlocal has_begun
            has_begun = True
            self._jobs.set_progress(job.id, step)

        try:
            return worker.run(self._jobs.task(job, model), on_step)
        except WorkerDiedError as died:
            with self._guard:
                if self._worker is not worker:  # ended by ``cancel`` or ``stop``
                    return TaskFailure(str(died))
                self._worker = None
                other = self._started() if again and not has_begun else None
            return TaskFailure(str(died)) if other is None else self._failure(other, job, again=False)


def _report(error: str) -> None:
    print(f"zoomseg: {error}", file=sys.stderr, flush=True)
