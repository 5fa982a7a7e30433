"""Being asked to stop: SIGINT and SIGTERM become an event that long work looks at between its steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from zoomseg.core.errors import INTERRUPTED, ZoomSegError


class InterruptedTrainingError(ZoomSegError):
    """Training was asked to stop; its state is on disk."""

    exit_code = INTERRUPTED


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event; the second one ends at once. Beside the main thread, which
    alone gets signals, an event that nobody sets."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():  # who asks twice does not want to wait
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
