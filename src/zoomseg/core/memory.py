"""The amount of memory to which this process may grow: limited by the machine's free memory, the process's
control groups and its resource limits. Swap is ignored, as work that pages takes too long."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from zoomseg.core.errors import MemoryLimitError

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from zoomseg.core.geometry import Index3

LEAVE_FREE = 0.9
"""Fraction of the free memory that is used by default: a process that takes all of it is killed."""

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


@dataclass(frozen=True)
class _Files:
    """The file names of a version of control groups."""

    limits: tuple[str, ...]
    used: str
    cache: str
    """Key in ``memory.stat``: pages of files that count as used, but are released before an allocation
    fails."""


_UNLIMITED = 1 << 62
"""Version 1 has a number close to 2^63 for no limit, version 2 has ``max``."""

_VERSION_1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


def format_bytes(amount: float) -> str:
    """An amount in readable form: ``1.34 GB`` (2^30 bytes)."""
    return f"{amount / UNITS['G']:.2f} GB" if amount >= 0.1 * UNITS["G"] else f"{amount / UNITS['M']:.0f} MB"


def used_ram() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def free_ram(root: Path = Path("/")) -> int:
    """The memory to which this process may grow before memory is short, or before the system refuses it or
    kills the process.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    room = min([psutil.virtual_memory().available, *_group_rooms(root), *_own_rooms()])
    return int(used_ram() + LEAVE_FREE * max(room, 0))


def total_ram(root: Path = Path("/")) -> int:
    """The memory that this process and others in its control groups can have at most, however much is free
    now.

    Args:
        root: as for ``free_ram``.
    """
    limits = (limit for _, _, limit in _group_limits(root))
    return min([int(psutil.virtual_memory().total), *limits])


FREE_SOME = (
    "close other programs, raise this process's limit, or make the file smaller (crop it, or resample it)"
)
COARSER = "use a model or recipe with a coarser grid, or crop the scan"


def require_ram(needed: float, what: str, todo: str = FREE_SOME) -> None:
    """Raise an error if ``needed`` further bytes are not free, before anything is allocated: an allocation
    would fail only after minutes of paging, or the system would kill the process.

    Raises:
        MemoryLimitError: not so much is free.
    """
    room = free_ram() - used_ram()
    if needed > room:
        raise MemoryLimitError(
            f"{what} takes about {format_bytes(needed)} of memory, {format_bytes(max(room, 0))} are free; "
            f"{todo}",
            math.ceil(needed),
        )


def require_ram_of(shape: Index3, voxel_bytes: int, what: str) -> None:
    """Raise an error if voxels would not fit into the free memory; a coarser grid has fewer of them.

    Raises:
        MemoryLimitError: not so much is free.
    """
    i, j, k = shape
    require_ram(i * j * k * voxel_bytes, f"{what} of {i} x {j} x {k} voxels", COARSER)


def _own_rooms() -> Iterator[int]:
    """What ``ulimit`` leaves: of address space, and of data. Windows has no such limits."""
    if sys.platform == "win32":
        return
    now = psutil.Process().memory_info()
    for kind, used in ((resource.RLIMIT_AS, now.vms), (resource.RLIMIT_DATA, getattr(now, "data", now.vms))):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft - used


def _group_rooms(root: Path) -> Iterator[int]:
    """What every control group of this process leaves, including parent groups, as each limits all groups
    below it. Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst of the Linux kernel."""
    for folder, files, limit in _group_limits(root):
        used = _number(folder / files.used)
        if used is not None:
            yield limit - used + _cache(folder / "memory.stat", files.cache)


def _group_limits(root: Path) -> Iterator[tuple[Path, _Files, int]]:
    """The control groups that have a limit, and it."""
    for folder, files in _groups(root):
        found = [_number(folder / name) for name in files.limits]
        limits = [limit for limit in found if limit is not None and limit < _UNLIMITED]
        if limits:
            yield folder, files, min(limits)


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, own = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            tops, files = [mounts, mounts / "unified"], _VERSION_2
        elif "memory" in controllers.split(","):
            tops, files = [mounts / "memory"], _VERSION_1
        else:
            continue
        # In a container this may be a path of the host, of which only the end, or nothing, is mounted.
        inside = Path(own.lstrip("/"))
        for top in tops:
            for folder in (inside, *inside.parents):
                yield top / folder, files


def _number(path: Path) -> int | None:
    """The number in a file; None if there is none: no such file, or ``max``."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _cache(path: Path, key: str) -> int:
    rows = (line.split() for line in _text(path).splitlines())
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == key), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
