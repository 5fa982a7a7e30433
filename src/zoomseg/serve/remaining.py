"""How long a running job will take yet: from its own last stage as soon as that tells something, before that
from how long others took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

RECENT = 5
"""Jobs that are looked at: the machine may have been busier, or another, before."""

TELLING = 0.05
"""Share of a stage that must be done before its pace is that of the rest."""


def remaining_by_pace(seconds: float, done: float) -> float | None:
    """Seconds that a stage is expected to take yet; None if nothing is known.

    Args:
        seconds: for which it has been running.
        done: the share of it that is done.
    """
    return seconds * (1 - done) / done if TELLING <= done < 1 else None


def remaining_by_others(running: float, earlier: Sequence[float]) -> float | None:
    """Seconds that a job is expected to take yet; None if nothing is known, or it takes longer than expected.

    Args:
        running: seconds for which it has been running.
        earlier: seconds that jobs of the same model and file format took, oldest first.
    """
    if not earlier:
        return None
    left = statistics.median(earlier[-RECENT:]) - running
    return left if left > 0 else None
