"""Display of a batch on a cluster."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

pytest.importorskip("distributed", reason="needs the extra 'cluster'")

from zoomseg.cli import cluster_display
from zoomseg.cli.cluster_display import ClusterDisplay
from zoomseg.cluster.worker import Reply


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr(cluster_display.time, "monotonic", lambda: time[0])
    return time


def test_plain_lines(now: list[float]) -> None:
    text = io.StringIO()
    with ClusterDisplay(Console(file=text, width=100), 12) as display:
        display.leave_out(["a", "b"])
        display.count(0)
        now[0] = 1
        display.count(2)
        display.on_reply(Reply("c", None, ("a note",), 1.25))
        display.on_reply(Reply("d", "is no [scan]", (), 0.0))
        display.count(2)
        now[0] = 61.5
        display.count(3)
        now[0] = 62
        display.count(3)
    assert display.finished == 4
    assert text.getvalue().splitlines() == [
        "2 scans skipped, as their results are complete",
        "waiting for workers",
        "2 workers",
        "c  1.2 s",
        "c: a note",
        "failed: d: is no [scan]",
        "4 of 12 scans, 3 workers, 2.0 scans/min, 4 min left",
    ]


def test_a_bar_on_a_terminal(now: list[float]) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, color_system=None)
    with ClusterDisplay(console, 300) as display:
        now[0] = 30
        for number in range(20):
            display.on_reply(Reply(str(number), None, (), 1.0))
        display.count(64)
    assert "20/300" in text.getvalue()
    assert "64 workers, 40 scans/min" in text.getvalue()
