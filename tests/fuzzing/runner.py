"""Runs inputs in a worker process that may crash, hang or exceed its memory, and reports each outcome."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fuzzing.inputs import Input

MEMORY_GB = 4.0
HANG_S = 20.0
"""Limit of processor time, as wall-clock time depends on other processes. The wall-clock time may be three
times as long, which limits processes that only wait."""

LAST_LINES = 4_000
"""Number of bytes at the end of the output that are examined."""

COMMANDS = (
    *(
        "zoomseg.inference.outputs",
        "zoomseg.evaluation.evaluate",
        "zoomseg.training.training_run",
        "zoomseg.planning.plan",
    ),
    *(
        "zoomseg.datasets.audit",
        "zoomseg.datasets.dicom",
        "zoomseg.io.dicom.write.results",
        "zoomseg.io.seg_nrrd",
    ),
    *(
        "zoomseg.io.dicom.write.seg",
        "zoomseg.io.dicom.write.rtstruct",
        "zoomseg.cli.training_display",
        "zoomseg.cli.prediction_display",
    ),
    *("zoomseg.export.run", "fuzzing.packages", "zoomseg.importing.nnunet.run", "fuzzing.imports"),
)
"""Modules that commands import; they are imported before a child is forked."""

_POLL_S = 0.1
_CACHES = ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")
"""Variables for the cache folders of libraries."""

_WORKER = Path(__file__).with_name("worker.py")

Listing = Mapping[str, tuple[int, int]]
"""Path below a folder -> size in bytes and time of the last change."""


@dataclass(frozen=True)
class Ran:
    """Result of one input: a ``code``, a ``traceback``, or a process that ended."""

    code: int | str | None
    traceback: str
    ended: str
    """How the process ended, if it did not survive the command."""
    hung: bool
    outside: tuple[str, ...]
    """Files changed outside the command's folders, processes started, and network connections."""
    stdout: str
    stderr: str
    left: tuple[str, ...]
    """Temporary files left by a command that ended by itself."""
    seconds: float


@dataclass(eq=False)
class Runner:
    """A worker process that is started on demand and imports ``modules``. ``home`` is a folder to which
    commands may write."""

    home: Path
    modules: tuple[str, ...] = COMMANDS
    memory_gb: float = MEMORY_GB
    hang_s: float = HANG_S
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def run(self, given: Input) -> Ran:
        before, began = _listing(given), time.monotonic()
        answer, hung, ended = self._answered(given)
        changed = _differences(before, _listing(given))
        stdout, stderr = (_printed(given.folder / name) for name in ("stdout", "stderr"))
        return Ran(
            answer.get("code"),
            answer.get("traceback", ""),
            ended,
            hung,
            (*answer.get("outside", ()), *changed),
            stdout,
            stderr,
            tuple(_left_over(given)) if answer else (),
            time.monotonic() - began,
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Terminate the worker and its child."""
        if self._process is not None:
            with suppress(psutil.Error):
                for child in _children(self._process):
                    child.kill()
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _answered(self, given: Input) -> tuple[dict[str, Any], bool, str]:
        """The worker's reply; if there is none, whether the command hung, or how its process ended."""
        process = self._process = self._process or self._started()
        request = {
            "entry": given.entry,
            "arguments": given.arguments,
            "folder": str(given.folder),
            "temporary": str(given.temporary),
            "allowed": [str(given.out.parent), str(given.temporary), str(self.home)],
        }
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout is not None
        if self._hangs(process):
            self.close()
            return {}, True, ""
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return ({}, False, answer["ended"]) if "ended" in answer else (answer, False, "")

    def _hangs(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the reply exceeds the time limit."""
        assert process.stdout is not None
        busy, began = _processor_seconds(process), time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not selector.select(_POLL_S):
                if (
                    _processor_seconds(process) - busy > self.hang_s
                    or time.monotonic() - began > 3 * self.hang_s
                ):
                    return True
        return False

    def _started(self) -> subprocess.Popen[bytes]:
        self.home.mkdir(parents=True, exist_ok=True)
        own = {name: str(self.home) for name in _CACHES}
        settings = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "100"}
        process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(self.memory_gb), *self.modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **own, **settings},
        )
        assert process.stdout is not None
        process.stdout.readline()  # wait for all imports, which no command's time includes
        return process


def _processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor seconds of the worker and its children."""
    total = 0.0
    with suppress(psutil.Error):
        for one in (psutil.Process(process.pid), *_children(process)):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def _printed(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "backslashreplace") if path.exists() else ""


def _listing(given: Input) -> Listing:
    """All files of an input, except those that the command may write, and its output."""
    own = {given.out.parent, given.temporary}
    found = {}
    for folder, folders, files in os.walk(given.folder):
        folders[:] = [name for name in folders if Path(folder) / name not in own]
        for name in (*folders, *files):
            path = Path(folder) / name
            status = path.lstat()
            if path.parent != given.folder or name not in ("stdout", "stderr"):
                size = 0 if path.is_dir() else status.st_size
                changed = 0 if path == given.folder else status.st_mtime_ns
                found[str(path)] = (size, changed)
    return found


def _differences(before: Listing, after: Listing) -> Iterator[str]:
    for path in sorted({*before, *after}):
        if path not in after:
            yield f"removed {path!r}"
        elif path not in before:
            yield f"new {path!r}"
        elif before[path] != after[path]:
            yield f"changed {path!r}"


def _left_over(given: Input) -> Iterator[str]:
    yield from (str(path) for path in sorted(given.temporary.iterdir()))
    # The lock file of a training stays in its folder: if it were removed, two processes could hold it.
    hidden = (path for path in given.out.parent.rglob(".*") if not path.is_dir() and path.name != ".lock")
    yield from (str(path) for path in sorted(hidden))
