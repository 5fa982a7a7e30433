"""Interruption of commands. SIGINT (Ctrl-C) and SIGTERM have the same effect in every command:

- The first one prints a line at once that states what happens now; the work ends where nothing is lost.
- The second one ends the process at once. Files are written under another name and then renamed, so that no
  incomplete file looks complete.

A separate thread prints the line: Python runs signal handlers in its main thread, between two instructions,
and a convolution there may take a minute.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from zoomseg.core.errors import INTERRUPTED, ZoomSegError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SAME_SIGNAL_SECONDS = 0.5
"""Signals within this time count as one: a terminal signals all processes of a command, and launchers among
them (torchrun, timeout) forward the signal."""

Handler = Callable[[int, FrameType | None], None]

STOPPING = "stopping; finished results are kept"
GO_ON = "the same command resumes from here"
SAVING = "stopping after this step; the state is saved, and --resume continues from it"


class InterruptedWorkError(ZoomSegError):
    """A command was interrupted; the message states what is left."""

    exit_code = INTERRUPTED


class InterruptedTrainingError(InterruptedWorkError):
    """Training was interrupted; its state is on disk."""


@dataclass
class _Command:
    """The process's command, if there is one."""

    messages: list[str] = field(default_factory=lambda: [STOPPING])
    """The line that a signal would print, for every open ``on_interrupt``; the innermost is last."""
    running: bool = False
    first_message: str | None = None
    """The line of the first signal, once it has arrived."""
    printed: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        self.running, self.first_message = True, None
        self.printed.clear()


_command = _Command()


@contextmanager
def handling_interrupts() -> Iterator[None]:
    """Handle signals during a whole command: print a line at once, and raise KeyboardInterrupt unless an
    inner ``on_interrupt`` handles the signal. For the main thread only, as no other can handle signals."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=_print_messages, args=(read,), name="zoomseg-signals", daemon=True)
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _command.begin()
    before = _install(_handler(STOPPING, _interrupt))
    watcher.start()
    try:
        yield
    finally:
        if _command.first_message is None:
            _restore(before)
            signal.set_wakeup_fd(wakeup)
            os.close(write)
            watcher.join()
            os.close(read)
            _command.running = False
        else:  # further signals may arrive until the process has ended
            _command.printed.wait(SAME_SIGNAL_SECONDS)


@contextmanager
def on_interrupt(message: str, callback: Callable[[], None]) -> Iterator[None]:
    """Call ``callback`` in the main thread at the first SIGINT or SIGTERM inside the context; the command
    prints ``message``. Outside of a command, a second signal raises KeyboardInterrupt. In other threads,
    which receive no signals, nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _command.messages.append(message)
    before = _install(_handler(message, callback))
    try:
        yield
    finally:
        _restore(before)
        _command.messages.pop()


def _handler(message: str, callback: Callable[[], None]) -> Handler:
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if _command.running:
            if _command.first_message is None:
                _command.first_message = message
                callback()
        elif count == 1:
            callback()
        else:  # a second signal means that the user does not want to wait
            raise KeyboardInterrupt

    return handle


def _install(handler: Handler) -> dict[signal.Signals, Any]:
    """Install a handler; returns the previous handlers."""
    return {number: signal.signal(number, handler) for number in SIGNALS}


def _restore(before: Mapping[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM as an event that a training checks between its steps."""
    stop = threading.Event()
    with on_interrupt(SAVING, stop.set):
        yield stop


@contextmanager
def interruptible(message: Callable[[], str]) -> Iterator[None]:
    """Turn an interruption inside the context into an error with the given message.

    Raises:
        InterruptedWorkError: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedWorkError(f"stopped; {message()}") from None


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _print_messages(wakeups: int) -> None:
    """Print a line for the signals whose numbers arrive through a pipe, until the pipe is closed."""
    first: float | None = None
    while numbers := os.read(wakeups, 64):
        if not set(numbers) & set(SIGNALS):
            continue
        now = time.monotonic()
        if first is None:
            first = now
            # The main thread may already have reacted and left the context, or be in a long call.
            what = _command.first_message or _command.messages[-1]
            _print(f"zoomseg: {what}. Press Ctrl-C again to end immediately")
            _command.printed.set()
        elif now - first > SAME_SIGNAL_SECONDS:
            _print("zoomseg: stopped immediately")
            if sys.stderr.isatty():  # a progress display may have hidden the cursor
                _print("\x1b[?25h", end="")
            os._exit(INTERRUPTED)


def _print(text: str, end: str = "\n") -> None:
    """Write to ``sys.stderr``, which a progress display replaces so that the line appears above its bars."""
    print(text, file=sys.stderr, end=end, flush=True)
