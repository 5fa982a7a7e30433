"""Number of cores for compiled networks."""

from __future__ import annotations

import os

import pytest

from zoomseg.backends import cpu


@pytest.mark.parametrize(
    ("allowed", "asked", "threads"),
    [(3, None, 3), (8, None, 0), (8, "2", 2), (3, "5", 3), (8, "8", 0), (8, "0", 0), (8, "many", 0)],
)
def test_threads_are_limited_only_where_the_process_is(
    allowed: int, asked: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cpu.usable_threads() == threads
