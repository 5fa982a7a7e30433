"""A folder that one process at a time may write to."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from zoomseg.core.errors import OutputError, quoted
from zoomseg.io.files import writing

try:
    import fcntl
except ImportError:  # Windows: work goes on without locks, as on file systems that have none
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
"""Some clusters' file systems have no locks: work there goes on without."""

_LONGEST_HOLDER = 200


def locked(file: Path, used: str) -> IO[str]:
    """Lock a file, which is made where there is none, until it is closed or the process ends, however that
    ends: what a killed process leaves is the file alone, and the next one takes it over.

    Args:
        used: what to say of the file's folder if another process has it.

    Raises:
        OutputError: another process holds it, which is named; or the file cannot be written.
    """
    with writing(file):
        held = file.open("a+", encoding="utf-8", errors="replace")
        try:
            if fcntl is not None:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with held:
                held.seek(0)
                holder = quoted(held.read(_LONGEST_HOLDER)) or "another process"
            raise OutputError(f"{file.parent}: {used} ({holder})") from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                held.close()
                raise
        held.truncate(0)
        held.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}")
        held.flush()
    return held


@contextmanager
def waiting_for(folder: Path) -> Iterator[None]:
    """Wait until no other process is here with this folder. The folder itself is locked, so that no file of a
    lock is left among results; where that is not possible, work goes on without."""
    held = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if held is not None:
            with suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        if held is not None:
            os.close(held)
