"""What a row of the benchmark did and when: the protocol between the rows' processes and the benchmark.

A row writes one JSON file: its steps as stretches of time (seconds since the epoch, so that the benchmark can
lay them beside the memory that it watched from outside), how many tiles its network computed, and the peak of
GPU memory. Only the standard library is needed here, as rows run in environments of their own.
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
"""What steps of different programs have in common. ``start``: imports, weights, and what no step claims;
``prepare``: from the scan's voxels to the network's; ``merge``: from its answer to the label map; ``other``:
both of these, tile by tile, where a program does not tell them apart."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Segment:
    """A stretch of time that one step took; a step may have several."""

    step: str
    group: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"step '{self.step}': no group '{self.group}'; allowed: {', '.join(GROUPS)}")


@dataclass(frozen=True)
class Account:
    """What a row's process says about itself."""

    program: str
    """Name and version."""
    segments: tuple[Segment, ...]
    tiles: int
    peak_vram_mb: float = 0.0


class Clock:
    """Steps of a process. Steps may lie within each other: each counts only what no inner one does."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        """``settle`` waits for work that is under way elsewhere (a GPU) before a step ends."""
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
        """The function as a step."""

        def call(*arguments: P.args, **named: P.kwargs) -> T:
            with self.step(name, group):
                return function(*arguments, **named)

        return call

    def _turn(self) -> None:
        """The innermost open step ends its stretch here; a new one begins."""
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
