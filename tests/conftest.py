"""Settings of all tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

# One thread each: tests are small, and several processes share the cores.
torch.set_num_threads(1)

# The same examples on every run, so that a red test is red for everybody. To look for new ones:
# pytest --hypothesis-profile=explore
settings.register_profile(
    "fixed", derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that several processes end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
