"""Threads that must not end: an error in one round is reported, and the next round is tried."""

from __future__ import annotations

from collections.abc import Callable

from zoomseg.core.errors import OutputError, without_message


def ran(work: Callable[[], object], report: Callable[[str], object]) -> bool:
    """Call a function; returns False if it raised an exception, which is reported: an unexpected one without
    its message."""
    try:
        work()
    except OutputError as error:  # a disk error may be temporary
        report(str(error))
    except Exception as error:
        report(without_message(error))
    else:
        return True
    return False
