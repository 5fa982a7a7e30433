"""Numpy's linear algebra on a single thread while networks compute.

OpenBLAS keeps its threads busy waiting for some time after every product, and they then compete with the
threads of the networks: on two cores, tiles took a third longer. The products here are too small to gain from
several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

_lock = threading.Lock()
_inside = 0
_limits: threadpool_limits | None = None


@contextmanager
def single_threaded() -> Iterator[None]:
    """The number of threads is the process's; it is restored when the last of those inside leaves."""
    global _inside, _limits
    with _lock:
        _inside += 1
        if _limits is None:
            _limits = threadpool_limits(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _limits is not None:
                _limits.restore_original_limits()
                _limits = None
