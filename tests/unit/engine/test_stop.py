"""A run is asked to stop before it is made to."""

from __future__ import annotations

import signal

import pytest

from zoomseg.engine.stop import stop_signals


def test_the_first_signal_asks_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
