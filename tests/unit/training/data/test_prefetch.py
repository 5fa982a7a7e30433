"""Batches arrive in order from any thread, and the preparation of unneeded ones stops soon."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from zoomseg.training.data import prefetch
from zoomseg.training.data.patches import Batch
from zoomseg.training.data.prefetch import on_side_stream, prefetched


def made(step: int) -> int:
    return step * 10


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_come_in_the_steps_order(ahead: int) -> None:
    with closing(prefetched(made, 4, ahead)) as batches:
        assert list(itertools.islice(batches, 6)) == [40, 50, 60, 70, 80, 90]


def test_on_a_cpu_a_batch_is_made_when_it_is_asked_for() -> None:
    asked: list[int] = []
    batches = prefetched(asked.append, 0, 0)
    next(batches)
    next(batches)
    assert asked == [0, 1]


def test_later_ones_are_made_while_one_is_used() -> None:
    """Three threads wait for each other: steps 1 to 3 are being prepared when step 0 is ready."""
    meeting = threading.Barrier(4, timeout=120)

    def make(step: int) -> int:
        if 0 < step < 4:
            meeting.wait()
        return step

    with closing(prefetched(make, 0, 3)) as batches:
        assert next(batches) == 0
        meeting.wait()  # fails if they are not prepared before they are requested
        assert list(itertools.islice(batches, 3)) == [1, 2, 3]


def test_what_a_thread_meets_is_raised_where_the_batch_is_asked_for() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("case_7 is damaged")
        return step

    batches = prefetched(make, 0, 2)
    assert next(batches) == 0
    with pytest.raises(ValueError, match="case_7 is damaged"):
        next(batches)
    assert not [t for t in threading.enumerate() if t.name.startswith("zoomseg-batch")]


def test_closed_no_thread_is_left() -> None:
    batches = prefetched(made, 0, 3)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("zoomseg-batch")]


def test_on_a_cpu_a_batch_is_just_made() -> None:
    batch = Batch(("a",), {})
    assert on_side_stream(lambda: batch, torch.device("cpu")) is batch


def test_on_a_gpu_it_is_made_on_a_stream_of_its_own_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins record the calls: memory stays reserved while the training uses it."""
    told: list[object] = []

    @contextmanager
    def on(place: Any) -> Iterator[None]:
        told.append(place)
        yield
        told.append(f"left {place}")

    class Patch:
        device = torch.device("cuda")

        def record_stream(self, stream: str) -> None:
            told.append(f"kept for the {stream}")

    def make() -> Batch:
        told.append("made")
        data: Any = SimpleNamespace(
            image_BCIJK=Patch(), target_BIJK=torch.zeros(1), within_BIJK=None, stored={"coarse": Patch()}
        )
        return Batch(("a",), {"fine": data})

    class Side:
        def __str__(self) -> str:
            return "side stream"

        def synchronize(self) -> None:
            told.append("complete")

    side, place = Side(), torch.device("cuda:1")
    monkeypatch.setattr(prefetch, "_side_stream", lambda place: cast("torch.cuda.Stream", side))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda place: "default stream")
    on_side_stream(make, place)
    kept = ["kept for the default stream"] * 2
    assert told == [place, side, "made", "left side stream", "complete", *kept, "left cuda:1"]
