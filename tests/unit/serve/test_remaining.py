"""Remaining time of a running job."""

from __future__ import annotations

import pytest

from zoomseg.serve.remaining import remaining_by_others, remaining_by_pace


@pytest.mark.parametrize(
    ("running", "earlier", "expected"),
    [
        (0.0, [], None),  # nothing is known
        (10.0, [40.0], 30.0),
        (10.0, [30.0, 500.0, 40.0], 30.0),  # a single long job has little influence
        (10.0, [20.0] * 5 + [1000.0] * 9, 10.0),  # old jobs are ignored
        (40.0, [40.0], None),  # it takes longer than expected, hence unknown
    ],
)
def test_what_remains_is_the_median_of_the_last_ones(
    running: float, earlier: list[float], expected: float | None
) -> None:
    assert remaining_by_others(running, earlier) == expected


@pytest.mark.parametrize(
    ("seconds", "done", "expected"),
    [(10.0, 0.25, 30.0), (3.0, 0.04, None), (9.0, 0.9, 1.0), (9.0, 1.0, None)],
)
def test_a_stage_goes_on_at_its_pace(seconds: float, done: float, expected: float | None) -> None:
    assert remaining_by_pace(seconds, done) == pytest.approx(expected)
