"""The process that segments: it keeps models loaded, and may die without taking the server along.

Server and worker speak JSON through a pipe. A hostile scan that breaks a reading library breaks this process,
which the server starts again.
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
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zoomseg.core.errors import ScanError, ZoomSegError, quoted
from zoomseg.serve.job_queue import Step

if TYPE_CHECKING:
    from zoomseg.inference.batch import Outcome
    from zoomseg.inference.predictor import Predictor
    from zoomseg.io.scans import ScanInput
    from zoomseg.pipeline.sliding_window import TileProgress

TELL_EVERY_SECONDS = 0.1
_PATH = re.compile(r"(?<![\w.:/])/[^\s:;,'\")]+/[^\s:;,'\")]*")
"""An absolute one of several folders."""

READING = "reading"
"""What a job does before its model's first stage."""

WRITING = "writing"
"""What it does after the last one: the label map on the scan's grid, volumes, files."""


@dataclass(frozen=True)
class Task:
    """A scan to be segmented. ``case`` names its results in ``out``."""

    case: str
    scan: str
    out: str
    model: str
    """Folder of the model."""
    wanted: dict[str, Any] = field(default_factory=dict)
    """What else the function that segments must know; JSON."""


Segment = Callable[[Task, "Predictor", Callable[[Step], None]], None]
"""Carries out a task with its model, and tells how far it is."""


class WorkerDiedError(Exception):
    """The process ended while it worked; the message says how."""


class Worker(Protocol):
    """What carries out tasks, one after the other."""

    def run(self, task: Task, tell: Callable[[Step], None]) -> str | None:
        """Carry out a task; None, or why it failed.

        Raises:
            WorkerDiedError: the worker is of no use any more.
        """

    def kill(self) -> None:
        """End it at once, from any thread; a task that runs ends with WorkerDiedError."""


class ProcessWorker:
    """A worker in a process of its own, started afresh (not forked: the server has threads)."""

    def __init__(self, device: str, segment: Segment | None = None) -> None:
        """
        Args:
            segment: carries out a task; a function of a module, as the new process imports it. As
                ``segment`` of this module, if left out.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(theirs, device, segment), name="zoomseg-worker", daemon=True
        )
        self._process.start()
        theirs.close()

    def run(self, task: Task, tell: Callable[[Step], None]) -> str | None:
        """As ``Worker.run``."""
        try:
            self._pipe.send_bytes(json.dumps(asdict(task)).encode())
            while True:
                said = json.loads(self._pipe.recv_bytes())
                if "step" not in said:
                    error: str | None = said["error"]
                    return error
                tell(Step(**said["step"]))
        except (EOFError, OSError) as error:
            self._process.join()
            raise WorkerDiedError(_how_it_ended(self._process.exitcode)) from error

    def kill(self) -> None:
        """As ``Worker.kill``."""
        self._process.kill()
        self._process.join()


def _how_it_ended(code: int | None) -> str:
    if code == -signal.SIGKILL:
        # By whom, no process is told.
        return "the process that segments was killed: by the system, if memory ran out, or by somebody"
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    return f"the process that segments ended {how}; see the server's output"


# --- in the worker's process ----------------------------------------------------------------------


def work(pipe: Connection, device: str, carry_out: Segment | None = None) -> None:
    """Carry out the tasks that come through the pipe, until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the server alone, which ends this process
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="zoomseg-parent", daemon=True).start()
    predictors: dict[str, Predictor] = {}
    while True:
        try:
            task = Task(**json.loads(pipe.recv_bytes()))
        except EOFError:
            return
        _send(pipe, {"error": _error_of(task, predictors, device, _teller(pipe), carry_out or segment)})


def _end_with_parent() -> None:
    """A server that was killed must not leave one behind that computes for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _send(pipe: Connection, said: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(said).encode())


def _teller(pipe: Connection) -> Callable[[Step], None]:
    """Sends steps on, few enough to be read as they come; the last of a stage always."""
    last = [0.0]

    def tell(step: Step) -> None:
        now = time.monotonic()
        if step.done >= step.total or now - last[0] > TELL_EVERY_SECONDS:
            last[0] = now
            _send(pipe, {"step": asdict(step)})

    return tell


def _error_of(
    task: Task,
    predictors: dict[str, Predictor],
    device: str,
    tell: Callable[[Step], None],
    carry_out: Segment,
) -> str | None:
    try:
        tell(Step(READING, 0, 0))
        if task.model not in predictors:
            predictors[task.model] = load_predictor(task.model, device, tell)
        carry_out(task, predictors[task.model], tell)
    except ZoomSegError as error:
        return _without_paths(str(error), task)
    except Exception as error:  # one scan's failure is not the server's
        # What the error says may hold a patient's name: only where and what it is is told.
        print("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__, file=sys.stderr)
        return f"unexpected error ({type(error).__name__}); see the server's output"
    return None


def _without_paths(error: str, task: Task) -> str:
    """An error as a user may see it, who knows no path of the server."""
    known = ((task.scan, "the scan"), (task.out, "the results"), (task.model, "the model"))
    for path, name in (*known, (str(Path(task.scan).parent), "the job")):
        for shown in (path, quoted(path)):
            error = error.replace(shown, name)
    return _PATH.sub("a file of the server", error)


def load_predictor(model: str, device: str, tell: Callable[[Step], None]) -> Predictor:
    """A model ready to segment, as `zoomseg predict` would load it."""
    from zoomseg.inference import load

    def register(case: str, done: int, total: int) -> None:
        tell(Step("registering atlases", done, total))

    return load.load_predictor([model], device, on_registration=register)


def segment(task: Task, predictor: Predictor, tell: Callable[[Step], None]) -> None:
    """Segment a scan as `zoomseg predict` does, and leave the scan itself as NIfTI beside the result.

    Raises:
        ScanError: the scan cannot be used.
        ZoomSegError: what else hinders.
    """
    from zoomseg.inference.batch import ExtraOutputs, Failed, Segmented
    from zoomseg.inference.outputs import segment_to_folder
    from zoomseg.io.dicom.write.results import DicomResult
    from zoomseg.io.scans import write_array

    notes: list[str] = []
    last = predictor.bundle.recipe.stages[-1].name
    scan, out = one_scan(Path(task.scan), notes.append), Path(task.out)

    def follow(_: str, progress: TileProgress) -> None:
        tell(Step(progress.stage, progress.done, progress.tiles))
        if progress.stage == last and progress.done >= progress.tiles:
            tell(Step(WRITING, 0, 0))

    def settle(outcome: Outcome) -> None:
        match outcome:
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
        on_result=settle,
        on_progress=follow,
        beside=ExtraOutputs(dicom=() if scan.dicom is None else tuple(DicomResult), slicer=True),
        notes=notes,
    )


def one_scan(path: Path, tell: Callable[[str], None]) -> ScanInput:
    """The scan in an upload. Series that cannot be used, as localizers, do not count beside one that can."""
    from zoomseg.io.dicom.read.series_discovery import Refused
    from zoomseg.io.scans import find_scans

    found = find_scans(path, tell)
    usable = [scan for scan in found if not isinstance(scan.dicom, Refused)] or found[:1]
    if len(usable) > 1:
        names = ", ".join(scan.id for scan in usable)
        raise ScanError(f"{path} holds {len(usable)} series ({names}); upload one at a time")
    return usable[0]
