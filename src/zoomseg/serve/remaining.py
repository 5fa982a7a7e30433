"""Remaining time of a running job: from the progress of its last stage as soon as that is informative, before
that from the duration of other jobs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

RECENT = 5
"""Number of recent jobs considered: before, the machine may have been busier, or another one."""

TELLING = 0.05
"""Minimum share of a stage after which its pace is extrapolated."""


def remaining_by_pace(seconds: float, done: float) -> float | None:
    """Expected remaining seconds of a stage; None if unknown.

    Args:
        seconds: for which it has been running.
        done: the finished share.
    """
    return seconds * (1 - done) / done if TELLING <= done < 1 else None


def remaining_by_others(running: float, earlier: Sequence[float]) -> float | None:
    """Expected remaining seconds of a job; None if unknown, or if it already takes longer than expected.

    Args:
        running: seconds for which it has been running.
        earlier: duration of jobs of the same model and file format in seconds, newest first.
    """
    if not earlier:
        return None
    left = statistics.median(earlier[:RECENT]) - running
    return left if left > 0 else None
