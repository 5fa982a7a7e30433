"""How much memory this process may grow to: what the machine has free, what the control groups that the
process is in leave, what its resource limits allow. Swap counts for nothing: work that pages does not end.
"""

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
"""Of the memory that is free so much may be taken where nothing is said: the system ends who takes all."""

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


@dataclass(frozen=True)
class _Files:
    """The names that a version of control groups has for its figures."""

    limits: tuple[str, ...]
    used: str
    cache: str
    """In ``memory.stat``: pages of files that count as used, and are given up before anything is refused."""


_VERSION_1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


def spoken(amount: float) -> str:
    """For people: ``1.34 GB`` (2^30 bytes)."""
    return f"{amount / UNITS['G']:.2f} GB" if amount >= 0.1 * UNITS["G"] else f"{amount / UNITS['M']:.0f} MB"


def used_ram() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def free_ram(root: Path = Path("/")) -> int:
    """What this process may grow to before memory is short, or before the system refuses it or ends it.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    room = min([psutil.virtual_memory().available, *_group_rooms(root), *_own_rooms()])
    return int(used_ram() + LEAVE_FREE * max(room, 0))


FREE_SOME = (
    "close other programs, raise this process's limit, or make the file smaller (crop it, or resample it)"
)
COARSER = "use a model or recipe with a coarser grid, or crop the scan"


def require_ram(needed: float, what: str, todo: str = FREE_SOME) -> None:
    """Refuse what would take ``needed`` bytes beside what is there, before any is taken: an allocation would
    fail only after minutes of paging, if the system does not end the process.

    Raises:
        MemoryLimitError: not so much is free.
    """
    room = free_ram() - used_ram()
    if needed > room:
        raise MemoryLimitError(
            f"{what} takes about {spoken(needed)} of memory, {spoken(max(room, 0))} are free; {todo}",
            math.ceil(needed),
        )


def require_ram_of(shape: Index3, voxel_bytes: int, what: str) -> None:
    """Refuse voxels that would not fit beside what is there; a coarser grid has fewer of them.

    Raises:
        MemoryLimitError: not so much is free.
    """
    i, j, k = shape
    require_ram(i * j * k * voxel_bytes, f"{what} of {i} x {j} x {k} voxels", COARSER)


def _own_rooms() -> Iterator[int]:
    """By ``ulimit``: of address space, and of data. Windows has none."""
    if sys.platform == "win32":
        return
    now = psutil.Process().memory_info()
    for kind, used in ((resource.RLIMIT_AS, now.vms), (resource.RLIMIT_DATA, getattr(now, "data", now.vms))):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft - used


def _group_rooms(root: Path) -> Iterator[int]:
    """Of every control group that this process is in, its parents' included, as each limits all below it.
    Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst of the Linux kernel."""
    for folder, files in _groups(root):
        limits = [limit for name in files.limits if (limit := _number(folder / name)) is not None]
        used = _number(folder / files.used)
        if limits and used is not None:
            yield min(limits) - used + _cache(folder / "memory.stat", files.cache)


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
        # In a container the path may be one of the host's, of which only the end, or nothing, is mounted.
        inside = Path(own.lstrip("/"))
        for top in tops:
            for folder in (inside, *inside.parents):
                yield top / folder, files


def _number(path: Path) -> int | None:
    """None if there is none: no such file, or ``max``."""
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
