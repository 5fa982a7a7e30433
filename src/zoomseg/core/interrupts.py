"""Being asked to stop. SIGINT (Ctrl-C) and SIGTERM are one wish, in every command:

- The first is answered at once, by a line that says what happens now; the work ends where nothing is lost.
- The second ends the process at once. Files are written beside and renamed: none looks complete that is not.

The answer comes from a thread of its own: Python runs signal handlers in its main thread, between two
instructions, and a convolution there may take a minute.
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

ONE_WISH_SECONDS = 0.5
"""Signals that come within this time are one: a terminal signals all processes of a command, and a launcher
among them (torchrun, timeout) passes it on."""

Handler = Callable[[int, FrameType | None], None]

STOPPING = "stopping; finished results are kept"
GO_ON = "the same command resumes from here"
SAVING = "stopping after this step; the state is saved, and --resume continues from it"


class InterruptedWorkError(ZoomSegError):
    """A command was asked to stop; the message says what it leaves."""

    exit_code = INTERRUPTED


class InterruptedTrainingError(InterruptedWorkError):
    """Training was asked to stop; its state is on disk."""


@dataclass
class _Command:
    """The process's command, if it is one."""

    answers: list[str] = field(default_factory=lambda: [STOPPING])
    """What a signal would be answered with, by every ``asked`` that is open; the innermost is last."""
    running: bool = False
    asked: str | None = None
    """What the first signal is answered with, once it has come."""
    answered: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        self.running, self.asked = True, None
        self.answered.clear()


_command = _Command()


@contextmanager
def answering() -> Iterator[None]:
    """Around a whole command: answers signals at once, and raises KeyboardInterrupt where nothing inside asks
    for something else. To be used in the main thread, which alone may handle signals."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=_answer, args=(read,), name="zoomseg-signals", daemon=True)
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _command.begin()
    before = _handled(_asking(STOPPING, _interrupt))
    watcher.start()
    try:
        yield
    finally:
        if _command.asked is None:
            _restored(before)
            signal.set_wakeup_fd(wakeup)
            os.close(write)
            watcher.join()
            os.close(read)
            _command.running = False
        else:  # until the process has ended it may be asked again
            _command.answered.wait(ONE_WISH_SECONDS)


@contextmanager
def asked(answer: str, ask: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM calls ``ask``, in the main thread, and a command answers it with
    ``answer``. Outside of a command a second one raises KeyboardInterrupt. In other threads, which get no
    signals, nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _command.answers.append(answer)
    before = _handled(_asking(answer, ask))
    try:
        yield
    finally:
        _restored(before)
        _command.answers.pop()


def _asking(answer: str, ask: Callable[[], None]) -> Handler:
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if _command.running:
            if _command.asked is None:
                _command.asked = answer
                ask()
        elif count == 1:
            ask()
        else:  # who asks twice does not want to wait
            raise KeyboardInterrupt

    return handle


def _handled(handler: Handler) -> dict[signal.Signals, Any]:
    """Installs it; returns what was there."""
    return {number: signal.signal(number, handler) for number in SIGNALS}


def _restored(before: Mapping[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM as an event that a training looks at between its steps."""
    stop = threading.Event()
    with asked(SAVING, stop.set):
        yield stop


@contextmanager
def ending(account: Callable[[], str]) -> Iterator[None]:
    """An interruption inside ends the command with what it leaves, as ``account`` says then.

    Raises:
        InterruptedWorkError: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedWorkError(f"stopped; {account()}") from None


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _answer(wakeups: int) -> None:
    """Answers the signals whose numbers come through a pipe, until it is closed."""
    first: float | None = None
    while numbers := os.read(wakeups, 64):
        if not set(numbers) & set(SIGNALS):
            continue
        now = time.monotonic()
        if first is None:
            first = now
            # The main thread may have acted on it already, and left what it was in; or be in a long call.
            _say(f"zoomseg: {_command.asked or _command.answers[-1]}. Press Ctrl-C again to end immediately")
            _command.answered.set()
        elif now - first > ONE_WISH_SECONDS:
            _say("zoomseg: stopped immediately")
            if sys.stderr.isatty():  # a progress display may have hidden the cursor
                _say("\x1b[?25h", end="")
            os._exit(INTERRUPTED)


def _say(text: str, end: str = "\n") -> None:
    """By ``sys.stderr``: a progress display puts itself in its place, and the line above its bars."""
    print(text, file=sys.stderr, end=end, flush=True)
