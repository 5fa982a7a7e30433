"""Length of a training."""

from __future__ import annotations

import pytest

from zoomseg.planning.training_length import TrainingLength


def test_length_in_steps() -> None:
    length = TrainingLength(200, None)
    assert length.progress(50, elapsed=1e9) == 0.25
    assert length.progress(400, elapsed=0) == 1.0
    assert length.remaining_seconds(0, 0.0) is None
    assert length.remaining_seconds(50, 10.0) == pytest.approx(30.0)


def test_length_in_seconds_ignores_steps() -> None:
    length = TrainingLength(None, 60.0)
    assert length.progress(10**9, elapsed=15.0) == 0.25
    assert length.remaining_seconds(1, 45.0) == 15.0
    assert length.remaining_seconds(1, 75.0) == 0.0
