"""What cannot be held is refused before it is made."""

from __future__ import annotations

import psutil
import pytest

from zoomseg.core.errors import MemoryLimitError
from zoomseg.core.sizes import require_memory


def test_no_more_than_the_machine_has() -> None:
    there = psutil.virtual_memory().total
    require_memory(there, "a grid", "crop it")
    with pytest.raises(MemoryLimitError, match=r"^a grid would need [\d,.]+ GB of memory, .*; crop it$"):
        require_memory(2.0 * there, "a grid", "crop it")
