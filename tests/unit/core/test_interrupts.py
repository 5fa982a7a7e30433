"""A run is first asked to stop, then forced to."""

from __future__ import annotations

import signal
import threading

import pytest

from zoomseg.core import interrupts as module
from zoomseg.core.interrupts import (
    InterruptedWorkError,
    handling_interrupts,
    interruptible,
    on_interrupt,
    stop_signals,
)


def test_the_first_signal_asks_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_that_is_not_asked_leaves_the_signals_as_they_were() -> None:
    before = [signal.getsignal(number) for number in module.SIGNALS]
    threads = threading.active_count()
    with handling_interrupts():
        assert [signal.getsignal(number) for number in module.SIGNALS] != before
    assert [signal.getsignal(number) for number in module.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_what_asks_inside_goes_first() -> None:
    told: list[str] = []
    with on_interrupt("outer", lambda: told.append("outer")):
        with on_interrupt("inner", lambda: told.append("inner")):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert told == ["inner", "outer"]


def test_an_interruption_ends_with_what_it_leaves() -> None:
    with pytest.raises(InterruptedWorkError) as end, interruptible(lambda: "3 of 4 cases done"):
        raise KeyboardInterrupt
    assert str(end.value) == "stopped; 3 of 4 cases done"
    assert end.value.exit_code == 130
