"""Common parts of compiled networks: their type, and the number of threads. Without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import ModelError

Float32Array = npt.NDArray[np.float32]
Network = Callable[[Float32Array], Float32Array]
"""Input ``[B, C, *tile]`` -> probabilities ``[B, classes, ...]``, for any B and any tile that the network
accepts. Only one call at a time, which may overwrite the output of the previous one."""
Channels = tuple[int, int]
"""Numbers of a network's input and output channels."""
Precision = Literal["fastest", "float32"]
"""``fastest`` allows bfloat16 where the CPU multiplies it natively."""


def require_channels(found: tuple[object, object], expected: Channels | None) -> None:
    """
    Args:
        found: of the graph; anything but a number if it leaves them open.
        expected: of the recipe; None: any.

    Raises:
        ModelError: they differ.
    """
    if expected is not None and found != expected:
        raise ModelError(
            f"the graph turns {found[0]} channels into {found[1]}, but the recipe {expected[0]} into "
            f"{expected[1]}"
        )


def usable_threads() -> int:
    """Number of cores that this process may use if there are fewer than in the machine, otherwise 0: the
    runtime's choice. ``OMP_NUM_THREADS`` is respected, as by torch."""
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        allowed = min(allowed, int(asked))
    return allowed if allowed < cores else 0
