"""The record that each row's process writes for the benchmark: its steps and their times.

A row writes one JSON file: the time intervals of its steps (in seconds since the epoch, so that the benchmark
can relate them to the memory that it samples from outside), the number of tiles that its network computed,
and the peak of GPU memory. This module needs only the standard library, as rows run in separate environments.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

GROUPS = ("start", "read", "prepare", "network", "other", "merge", "write")
"""Groups of corresponding steps in different programs. ``start``: imports, weights, and time that belongs to
no step; ``prepare``: from the scan's voxels to the network's input; ``merge``: from its output to the label
map; ``other``: both of these, tile by tile, in a program that does not distinguish them."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Segment:
    """A time interval of one step; a step may have several."""

    step: str
    group: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"step '{self.step}': no group '{self.group}'; allowed: {', '.join(GROUPS)}")


@dataclass(frozen=True)
class Account:
    """The record of a row's process."""

    program: str
    """Name and version."""
    segments: tuple[Segment, ...]
    tiles: int
    peak_vram_mb: float = 0.0


class Clock:
    """Records the steps of a process. Steps may be nested: the time of an inner one is not counted in the
    outer one."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        """``settle`` waits for pending work on another device (a GPU) before a step ends."""
        self._settle = settle
        self._open: list[tuple[str, str]] = []
        self._since = 0.0
        self.segments: list[Segment] = []

    @contextmanager
    def step(self, name: str, group: str) -> Iterator[None]:
        self._turn()
        self._open.append((name, group))
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, group: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function, recorded as a step whenever it is called."""

        def call(*arguments: P.args, **named: P.kwargs) -> T:
            with self.step(name, group):
                return function(*arguments, **named)

        return call

    def _turn(self) -> None:
        """End the current interval, which belongs to the innermost open step, and begin a new one."""
        self._settle()
        now = time.time()
        if self._open:
            self.segments.append(Segment(*self._open[-1], self._since, now))
        self._since = now


def write_account(account: Account, path: Path) -> None:
    path.write_text(json.dumps(asdict(account), indent=1), encoding="utf-8")


def read_account(path: Path) -> Account:
    raw = json.loads(path.read_text(encoding="utf-8"))
    segments = tuple(Segment(**segment) for segment in raw.pop("segments"))
    return Account(segments=segments, **raw)
