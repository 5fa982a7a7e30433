"""Threads go on after an error, and report it."""

from __future__ import annotations

import pytest

from zoomseg.core.errors import OutputError
from zoomseg.serve.background import ran


@pytest.mark.parametrize(
    ("error", "said"),
    [(OutputError("the disk is full"), "the disk is full"), (ValueError("Doe^Jane"), "ValueError")],
)
def test_an_error_is_reported_without_what_may_be_a_patient_s(error: Exception, said: str) -> None:
    def fail() -> None:
        raise error

    reports: list[str] = []
    assert not ran(fail, reports.append)
    assert reports[0].endswith(said)
    assert "Doe" not in reports[0]
    assert ran(lambda: None, reports.append)
    assert len(reports) == 1
