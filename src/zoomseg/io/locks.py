"""A folder that one process at a time may write to."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from zoomseg.core.errors import OutputError, quoted
from zoomseg.io.files import writing

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
"""Some clusters' file systems have no locks: work there goes on without."""

_LONGEST_HOLDER = 200


def locked(file: Path, used: str = "", wait: bool = False) -> IO[str]:
    """Lock a file, which is made where there is none, until it is closed or the process ends, however that
    ends: what a killed process leaves is the file alone, and the next one takes it over.

    Args:
        used: what to say of the file's folder if another process has it.
        wait: until the other process lets it go, instead.

    Raises:
        OutputError: another process holds it, which is named; or the file cannot be written.
    """
    with writing(file):
        held = file.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
