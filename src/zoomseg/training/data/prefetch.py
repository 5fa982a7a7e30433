"""Prefetch of batches: while a GPU computes a step, threads prepare the batches of the next ones."""

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
        ahead: number of batches prepared in advance, each in a thread; 0: each is made when requested. The
            iterator is to be closed when no more are needed.
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


def on_side_stream(make: Callable[[], Batch], device: torch.device) -> Batch:
    """A complete batch; on a GPU made on a separate stream, so that its many small copies do not each wait
    for all pending work of the training."""
    if device.type != "cuda":
        return make()
    # A thread starts on the first GPU: leaving a stream would initialise that one, too, if another is used.
    with torch.cuda.device(device):
        stream = _side_stream(device)
        with torch.cuda.stream(stream):
            batch = make()
        stream.synchronize()
        for tensor in batch.tensors:
            if tensor.device.type == "cuda":  # its memory is released only after the training has used it
                tensor.record_stream(torch.cuda.default_stream(device))
    return batch


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """With priority over the training's stream, as its kernels are many and small."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
