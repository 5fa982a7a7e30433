"""Numpy's linear algebra on a single thread while networks compute.

OpenBLAS keeps its threads busy waiting for some time after every product, and they then compete with the
threads of the networks: on two cores, tiles took a third longer. The products here are too small to gain from
several threads.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_limits: Any = None


@contextmanager
def single_threaded() -> Iterator[None]:
    """The number of threads is the process's; it is restored when the last of those inside leaves."""
    global _inside, _limits
    with _lock:
        _inside += 1
        if _limits is None:
            _limits = _libraries().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _limits is not None:
                _limits.restore_original_limits()
                _limits = None


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries loaded at the first prediction, numpy's among them: looking for them takes as long as a
    small scan."""
    return ThreadpoolController()
