"""Batches made beside the training: while a GPU computes a step, threads make those of the next ones."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import torch

from zoomseg.training.data.patches import Batch


def prefetched(make: Callable[[int], Batch], first: int, ahead: int) -> Generator[Batch]:
    """``make(first)``, ``make(first + 1)`` ... without end, in order.

    Args:
        ahead: so many are being made, each in a thread, before they are asked for; 0: each when it is. To be
            closed when no more are wanted.
    """
    if ahead == 0:
        yield from map(make, itertools.count(first))
    pool = ThreadPoolExecutor(ahead, "zoomseg-batch")
    try:
        coming = deque(pool.submit(make, step) for step in range(first, first + ahead))
        for step in itertools.count(first + ahead):
            batch = coming.popleft().result()
            coming.append(pool.submit(make, step))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def on_side_stream(make: Callable[[], Batch], place: torch.device) -> Batch:
    """A batch that is complete; on a GPU made on a stream of its own, so that the many small copies to it do
    not each wait for all that the training has given it to do."""
    if place.type != "cuda":
        return make()
    # A thread begins on the first GPU: leaving a stream would open that one, too, for whoever uses another.
    with torch.cuda.device(place):
        stream = _side_stream(place)
        with torch.cuda.stream(stream):
            batch = make()
        stream.synchronize()
        for tensor in batch.tensors:
            if tensor.device.type == "cuda":  # its memory is free only when the training is done with it
                tensor.record_stream(torch.cuda.default_stream(place))
    return batch


@functools.cache
def _side_stream(place: torch.device) -> torch.cuda.Stream:
    """Before the training's, as its kernels are many and small."""
    return torch.cuda.Stream(place, priority=-1)  # type: ignore[no-untyped-call]
