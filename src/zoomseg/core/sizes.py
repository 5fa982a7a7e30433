"""Whether something can be held at all, asked before it is made."""

from __future__ import annotations

import psutil

from zoomseg.core.errors import MemoryLimitError


def require_memory(needed: float, what: str, remedy: str) -> None:
    """Refuse what has more bytes than the whole machine: a slip in a recipe or a header, of which an
    allocation would fail only after minutes of paging, if the system does not end the process.

    Raises:
        MemoryLimitError: says ``what`` would need how much, and the ``remedy``.
    """
    there = psutil.virtual_memory().total
    if needed > there:
        raise MemoryLimitError(
            f"{what} would need {needed / 2**30:,.1f} GB of memory, the machine has {there / 2**30:,.1f} GB; "
            f"{remedy}"
        )
