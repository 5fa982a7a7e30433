"""Jobs are carried out one after the other, by a worker that is replaced when it dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from zoomseg.core.errors import DatasetError
from zoomseg.serve.jobs import Job, Jobs, State, Step
from zoomseg.serve.organs import notes_of_result
from zoomseg.serve.worker import Task, Worker, WorkerDiedError

LOOK_EVERY_SECONDS = 0.5
"""How often a runner that has nothing to do looks whether it should stop."""


class Runner:
    """A thread that takes jobs from the queue and hands them to a worker."""

    def __init__(self, jobs: Jobs, models: Mapping[str, Path], start_worker: Callable[[], Worker]) -> None:
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
        """Begin with what waits."""
        self._thread.start()

    def stop(self) -> None:
        """End; a job that runs is marked interrupted, those that wait stay for the next server."""
        self._stopping.set()
        with self._guard:
            if self._running is not None:
                self._jobs.end(self._running, State.INTERRUPTED, "the server was stopped while this ran")
            self._kill()
        self._thread.join()

    def cancel(self, job_id: str) -> bool:
        """End a job that waits or runs; False if it has ended already."""
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
        with self._guard:  # starting takes seconds, which the first scan need not wait for
            if not self._stopping.is_set():
                self._worker = self._start_worker()
        while not self._stopping.is_set():
            job = self._jobs.take(LOOK_EVERY_SECONDS)
            if job is not None:
                self._do(job)

    def _do(self, job: Job) -> None:
        with self._guard:
            found = self._jobs.find(job.id)
            if found is None or found.state is not State.RUNNING or self._stopping.is_set():
                return  # cancelled meanwhile; or it is marked interrupted by the next server
            self._running = job.id
            worker = self._worker = self._worker or self._start_worker()
        state, error = self._outcome(worker, job)
        notes = self._notes(job) if state is State.FINISHED else ()
        with self._guard:
            self._running = None
            self._jobs.end(job.id, state, error, notes)

    def _notes(self, job: Job) -> tuple[str, ...]:
        """Of a job's result, read once: they do not change any more."""
        try:
            return tuple(notes_of_result(self._jobs.out(job), job.id))
        except DatasetError:
            return ()  # what is left of a result is shown all the same

    def _outcome(self, worker: Worker, job: Job) -> tuple[State, str | None]:
        def tell(step: Step) -> None:
            self._jobs.tell(job.id, step)

        model = self._models.get(job.model)
        if model is None:
            return State.FAILED, f"its model '{job.model}' is not served any more; upload the scan again"
        task = Task(job.id, str(self._jobs.scan(job)), str(self._jobs.out(job)), str(model))
        try:
            error = worker.run(task, tell)
        except WorkerDiedError as died:
            with self._guard:
                if self._worker is worker:
                    self._worker = None
            return State.FAILED, str(died)
        return (State.FINISHED, None) if error is None else (State.FAILED, error)
