"""Locks: only one process at a time may write to a folder."""

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
from zoomseg.io.files import open_unlinked, writing

try:
    import fcntl
except ImportError:  # Windows: no locks, as on file systems without them
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
"""Some clusters' file systems have no locks: they are then not used."""

_MAX_HOLDER_LENGTH = 200


def locked(file: Path, used: str) -> IO[str]:
    """Lock a file, which is created if necessary, until it is closed or the process ends, in any way: a
    killed process leaves only the file, which the next one uses.

    Args:
        used: the error message if another process has locked the file's folder.

    Raises:
        OutputError: another process has locked it, which is named; or the file cannot be written, or is a
            link.
    """
    with writing(file):
        descriptor = open_unlinked(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        held = os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")
        try:
            if fcntl is not None:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with held:
                held.seek(0)
                holder = quoted(held.read(_MAX_HOLDER_LENGTH)) or "another process"
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
    """Wait until no other process has locked this folder. The folder itself is locked, so that no lock file
    remains among results; if that is not possible, there is no lock."""
    held = None
    try:
        with suppress(OSError):
            if fcntl is not None:
                held = os.open(folder, os.O_RDONLY)
                fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        if held is not None:
            os.close(held)
