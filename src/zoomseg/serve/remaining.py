"""How long a running job will take yet, from how long others took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

RECENT = 5
"""Jobs that are looked at: the machine may have been busier, or another, before."""


def remaining_seconds(running: float, earlier: Sequence[float]) -> float | None:
    """Seconds that a job is expected to take yet; None if nothing is known, or it takes longer than expected.

    Args:
        running: seconds for which it has been running.
        earlier: seconds that jobs of the same model and file format took, oldest first.
    """
    if not earlier:
        return None
    left = statistics.median(earlier[-RECENT:]) - running
    return left if left > 0 else None
