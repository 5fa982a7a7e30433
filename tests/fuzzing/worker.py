"""A process that runs one command after the other, so that libraries are imported once.

    python worker.py GIGABYTES [MODULE ...]

Imports the modules and forks a child, in which the commands are run; when a command ends the child, another
one is forked. Requests are read from standard input and replies are written to standard output, one JSON
object per line. The output of a command, including that of native libraries, is written to files. A child is
limited to the given memory and to files of one gigabyte; an audit hook records files that it writes, removes
or renames outside the given folders, and processes that it starts.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parents[1]))

MAX_FILE_BYTES = 1024**3
GROWN = 0.4
"""A child that still uses this share of its memory limit after a command is replaced by a new one."""

FINISHED, RENEW = 77, 78
"""Exit codes of a child that was not ended by a command."""

_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.utime"), (0,)),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    "os.symlink": (1,),
}
"""Audit events of file changes, and the positions of their arguments that are paths."""

_STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
_HARMLESS = ("uname", "fc-list")
"""Programs that libraries run on first use."""


def _in_open_folder(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether paths are relative to an open folder (as used by `shutil.rmtree`). The event does not contain
    that folder's path; such changes are detected by listing the files before and after the command."""
    return event != "os.truncate" and isinstance(arguments[-1], int) and arguments[-1] >= 0


@dataclass(eq=False)
class Watch:
    """Records events outside ``allowed`` while it is switched on."""

    allowed: tuple[str, ...] = ()
    outside: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.allowed:
            return
        if event in _STARTING:
            if arguments[0] not in _HARMLESS:
                self.outside.append(f"{event} {arguments[0]!r:.200}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _CHANGING:
                self._look(event, path)
        else:
            for place in _PATHS.get(event, ()):
                if not _in_open_folder(event, arguments):
                    self._look(event, arguments[place])

    def _look(self, event: str, path: object) -> None:
        if isinstance(path, int):
            return
        where = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        if where != os.devnull and not any(where == a or where.startswith(a + os.sep) for a in self.allowed):
            self.outside.append(f"{event} {where!r:.300}")

    @contextmanager
    def on(self, allowed: Sequence[str]) -> Iterator[list[str]]:
        self.outside = []
        self.allowed = tuple(os.path.realpath(path) for path in allowed)
        try:
            yield self.outside
        finally:
            self.allowed = ()


@contextmanager
def _printing_to(folder: Path) -> Iterator[None]:
    """Redirect file descriptors 1 and 2, and Python's streams on them, to files in ``folder``."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _called(entry: str, arguments: Sequence[str]) -> tuple[int | str | None, str]:
    """The exit code of a command, or its traceback."""
    try:
        module, _, name = entry.partition(":")
        command: Callable[[list[str]], object] = getattr(importlib.import_module(module), name)
        code = command(list(arguments))
    except SystemExit as end:
        return (0 if end.code is None else end.code), ""
    except BaseException:
        return None, traceback.format_exc()
    return (code if isinstance(code, int) else 0), ""


def _data_bytes() -> int:
    """Memory of this process that counts towards the limit."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def answer(request: dict[str, Any], watch: Watch) -> dict[str, Any]:
    folder = Path(request["folder"])
    os.chdir(folder)
    tempfile.tempdir = request["temporary"]
    os.environ["TMPDIR"] = request["temporary"]
    with _printing_to(folder), watch.on(request["allowed"]) as outside:
        code, trace = _called(request["entry"], request["arguments"])
    return {"code": code, "traceback": trace, "outside": outside}


def _serve(requests: TextIO, answers: TextIO, most_bytes: int) -> int:
    """Run commands until there are none left or this process has grown too large; returns the exit code."""
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch()
    sys.addaudithook(watch.hook)
    for line in iter(requests.readline, ""):
        _tell(answers, answer(json.loads(line), watch))
        if _data_bytes() > GROWN * most_bytes:
            return RENEW
    return FINISHED


def _tell(answers: TextIO, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def main() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for module in sys.argv[2:]:
        importlib.import_module(module)
    _tell(answers, {"ready": True})
    while True:
        child = os.fork()
        if child == 0:
            os._exit(_serve(requests, answers, int(float(sys.argv[1]) * 1024**3)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == FINISHED:
            return
        if code != RENEW:
            _tell(
                answers,
                {"ended": f"signal {-code}" if code < 0 else f"exit code {code} of the process itself"},
            )


if __name__ == "__main__":
    main()
