"""Studies evaluate many predictions, and no test of them looks at the pictures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.pictures import undrawn


@pytest.fixture(scope="module", autouse=True)
def without_pictures() -> Iterator[None]:
    with undrawn():
        yield
