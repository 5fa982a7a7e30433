"""How long a running job will take yet."""

from __future__ import annotations

import pytest

from zoomseg.serve.remaining import remaining_seconds


@pytest.mark.parametrize(
    ("running", "earlier", "expected"),
    [
        (0.0, [], None),  # nothing is known
        (10.0, [40.0], 30.0),
        (10.0, [30.0, 500.0, 40.0], 30.0),  # one that took long does not count for much
        (10.0, [1000.0] * 9 + [20.0] * 5, 10.0),  # what was long ago does not count
        (40.0, [40.0], None),  # it takes longer than expected: nothing more is known
    ],
)
def test_what_remains_is_the_median_of_the_last_ones(
    running: float, earlier: list[float], expected: float | None
) -> None:
    assert remaining_seconds(running, earlier) == expected
