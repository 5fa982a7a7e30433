"""The worker process: it keeps models loaded, and may die without affecting the server.

Server and worker exchange JSON through a pipe. A hostile scan that exploits a reading library affects this
process only, which the server restarts. It also does so after every unexpected error: those of a GPU may
persist in a process (CUDA's "sticky" errors) and would fail every later scan.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zoomseg.core.errors import ScanError, ZoomSegError, quoted, without_message
from zoomseg.serve.job_queue import Step

if TYPE_CHECKING:
    from zoomseg.inference.batch import ScanOutcome
    from zoomseg.inference.predictor import Predictor
    from zoomseg.io.scans import ScanInput
    from zoomseg.pipeline.sliding_window import TileProgress

PROGRESS_INTERVAL_SECONDS = 0.1
_PATH = re.compile(r"(?<![\w.:/])/[^\s:;,'\")]+/[^\s:;,'\")]*")
"""An absolute path of several folders."""

READING = "reading"
"""Step of a job before its model's first stage."""

WRITING = "writing"
"""Step after the last stage: the label map on the scan's grid, volumes, files."""


@dataclass(frozen=True)
class Task:
    """A scan to be segmented. ``case`` is the name of its results in ``out``."""

    case: str
    scan: str
    out: str
    model: str
    """Folder of the model."""
    wanted: dict[str, Any] = field(default_factory=dict)
    """Further settings of the function that segments; JSON."""


Segment = Callable[[Task, "Predictor", Callable[[Step], None]], None]
"""Processes a task with its model, and reports progress."""


@dataclass(frozen=True)
class TaskFailure:
    """Why a task failed. ``may_pass``: a later attempt may succeed, as after a full disk; ``unexpected``: the
    error may affect later tasks of the same process, too (see ``batch.Failed``)."""

    reason: str
    may_pass: bool = False
    unexpected: bool = False


class TemporaryError(ZoomSegError):
    """A task failed for a reason that may pass."""


class UnexpectedError(ZoomSegError):
    """A task failed by an error that does not concern its scan alone."""


class WorkerDiedError(Exception):
    """The process ended during a task; the message states how."""


class Worker(Protocol):
    """Processes tasks, one after the other."""

    def run(self, task: Task, on_step: Callable[[Step], None]) -> TaskFailure | None:
        """Process a task, of which at least one step is reported; None if it succeeded.

        Raises:
            WorkerDiedError: the worker cannot be used any more.
        """

    def kill(self) -> None:
        """End the worker at once, from any thread; a running task ends with WorkerDiedError."""


class ProcessWorker:
    """A worker in a separate process, spawned rather than forked, as the server has threads."""

    def __init__(self, device: str, run_task: Segment | None = None, models: Iterable[Path] = ()) -> None:
        """
        Args:
            run_task: processes a task; a function of a module, as the new process imports it. By default,
                the task is segmented by this module.
            models: folders of models that are loaded at once, so that the first scan need not wait for them.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=work,
            args=(theirs, device, run_task, [str(folder) for folder in models]),
            name="zoomseg-worker",
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def run(self, task: Task, on_step: Callable[[Step], None]) -> TaskFailure | None:
        """As ``Worker.run``."""
        try:
            self._pipe.send_bytes(json.dumps(asdict(task)).encode())
            while True:
                message = json.loads(self._pipe.recv_bytes())
                if "step" not in message:
                    break
                on_step(Step(**message["step"]))
        except (EOFError, OSError) as error:
            self._process.join()
            raise WorkerDiedError(_how_it_ended(self._process.exitcode)) from error
        failure = None if message["failure"] is None else TaskFailure(**message["failure"])
        if failure is not None and failure.unexpected:
            self.kill()
        return failure

    def kill(self) -> None:
        """As ``Worker.kill``."""
        self._process.kill()
        self._process.join()


def _how_it_ended(code: int | None) -> str:
    if code == -signal.SIGKILL:
        # The process does not know by whom.
        return "the process that segments was killed: by the system (memory exhausted) or by a user"
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    return f"the process that segments ended {how}; see the server's output"


# --- in the worker's process ----------------------------------------------------------------------


def work(pipe: Connection, device: str, carry_out: Segment | None = None, models: Sequence[str] = ()) -> None:
    """Load models, and process the tasks that arrive through the pipe until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # left to the server, which ends this process
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="zoomseg-parent", daemon=True).start()
    os.umask(0o077)  # results contain patient data
    predictors = loaded(models, device)
    while True:
        try:
            task = Task(**json.loads(pipe.recv_bytes()))
        except EOFError:
            return
        failure = _failure(task, predictors, device, _step_sender(pipe), carry_out or run_task)
        _send(pipe, {"failure": None if failure is None else asdict(failure)})


def loaded(models: Iterable[str], device: str) -> dict[str, Predictor]:
    """Predictors of those models that can be loaded; the others' first task tries again and reports why, also
    if the error is unexpected."""
    from zoomseg.io.dicom.write.results import load_writers

    load_writers()
    found = {}
    for model in models:
        with suppress(Exception):
            found[model] = load_predictor(model, device, lambda _: None)
    return found


def _end_with_parent() -> None:
    """End with the parent: a server that was killed must not leave a worker behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def _step_sender(pipe: Connection) -> Callable[[Step], None]:
    """Sends progress, rarely enough to be read in time; the last step of a stage is always sent."""
    last = [0.0]

    def send(step: Step) -> None:
        now = time.monotonic()
        if step.done >= step.total or now - last[0] > PROGRESS_INTERVAL_SECONDS:
            last[0] = now
            _send(pipe, {"step": asdict(step)})

    return send


def _failure(
    task: Task,
    predictors: dict[str, Predictor],
    device: str,
    on_step: Callable[[Step], None],
    carry_out: Segment,
) -> TaskFailure | None:
    """Process a task; None if it succeeded."""
    try:
        on_step(Step(READING, 0, 0))
        if task.model not in predictors:
            predictors[task.model] = load_predictor(task.model, device, on_step)
        carry_out(task, predictors[task.model], on_step)
    except ZoomSegError as error:
        return TaskFailure(
            _without_paths(str(error), task),
            may_pass=isinstance(error, TemporaryError),
            unexpected=isinstance(error, UnexpectedError),
        )
    except Exception as error:  # one scan's failure does not affect the server
        print(without_message(error), file=sys.stderr)
        return TaskFailure(unexpected(error), unexpected=True)
    return None


def unexpected(error: Exception) -> str:
    """The reason of a failure that is shown to users, where the server's output has more."""
    return f"unexpected error ({type(error).__name__}); see the server's output"


def _without_paths(error: str, task: Task) -> str:
    """An error for users, without paths of the server."""
    known = ((task.scan, "the scan"), (task.out, "the results"), (task.model, "the model"))
    for path, name in (*known, (str(Path(task.scan).parent), "the job")):
        for shown in (path, quoted(path)):
            error = error.replace(shown, name)
    return _PATH.sub("a file of the server", error)


def load_predictor(model: str, device: str, on_step: Callable[[Step], None]) -> Predictor:
    """A predictor for a model, loaded as by `zoomseg predict`."""
    from zoomseg.inference import load

    def register(case: str, done: int, total: int) -> None:
        on_step(Step("registering atlases", done, total))

    return load.load_predictor([model], device, on_registration=register)


def run_task(task: Task, predictor: Predictor, on_step: Callable[[Step], None]) -> None:
    """Segment a scan as `zoomseg predict` does, and write the scan itself as NIfTI beside the result.

    Raises:
        ScanError: the scan cannot be used.
        UnexpectedError: an error that is none of ours.
        ZoomSegError: any other failure.
    """
    from zoomseg.inference.batch import ExtraOutputs, Failed, Segmented
    from zoomseg.inference.outputs import segment_to_folder
    from zoomseg.io.dicom.write.results import DicomResult
    from zoomseg.io.scans import write_array

    notes: list[str] = []
    last = predictor.bundle.recipe.stages[-1].name
    scan, out = one_scan(Path(task.scan), notes.append), Path(task.out)

    def follow(_: str, progress: TileProgress) -> None:
        on_step(Step(progress.stage, progress.done, progress.tiles))
        if progress.stage == last and progress.done >= progress.tiles:
            on_step(Step(WRITING, 0, 0))

    def on_result(outcome: ScanOutcome) -> None:
        match outcome:
            case Failed(_, reason, unexpected=True):
                raise UnexpectedError(reason)
            case Failed(_, reason):
                raise ScanError(reason)
            case Segmented(_, _, image):
                if not task.scan.endswith(".nii.gz"):
                    voxels = image.data[0]
                    write_array(out / "scan.nii.gz", voxels, image.grid, like=scan.paths[0])

    segment_to_folder(
        [replace(scan, id=task.case)],
        out,
        predictor,
        on_result=on_result,
        on_progress=follow,
        extra=ExtraOutputs(dicom=() if scan.dicom is None else tuple(DicomResult), slicer=True),
        notes=notes,
    )


def one_scan(path: Path, on_note: Callable[[str], None], described: bool = True) -> ScanInput:
    """The scan of a task. Unusable series, such as localizers, are ignored if there is a usable one.

    Args:
        described: as for ``io.scans.find_scans``.
    """
    from zoomseg.io.dicom.read.series_discovery import Refused
    from zoomseg.io.scans import find_scans

    found = find_scans(path, on_note, described=described)
    usable = [scan for scan in found if not isinstance(scan.dicom, Refused)] or found[:1]
    if len(usable) > 1:
        names = ", ".join(scan.id for scan in usable)
        raise ScanError(f"{path} holds {len(usable)} series ({names}); submit each of them by itself")
    return usable[0]
