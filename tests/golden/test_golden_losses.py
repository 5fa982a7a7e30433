"""A refactor changes no loss: the first 20 steps of every shipped recipe against committed numbers.

Where a change is meant to change training, ``uv run python tests/golden/losses.py`` writes them anew.
"""

from __future__ import annotations

import functools
import json
import runpy
from pathlib import Path

import pytest

from zoomseg.recipe.load import names

SCRIPT = runpy.run_path(str(Path(__file__).with_name("losses.py")))
GOLDEN = json.loads(SCRIPT["GOLDEN"].read_text())

TOLERANCE = 1e-3
"""Relative. Convolutions and matrix products sum in another order on other CPUs, and 20 steps amplify that:
to 3e-6 between the instruction sets of one machine. A changed sampler, loss or optimiser moves losses by
percents."""


@functools.cache
def first_run(name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = SCRIPT["losses"](name)
    return found


def test_every_shipped_recipe_is_covered() -> None:
    assert sorted(GOLDEN) == sorted(names())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_losses(name: str) -> None:
    found = first_run(name)
    assert found.keys() == GOLDEN[name].keys()
    for stage, expected in GOLDEN[name].items():
        assert len(found[stage]) == 20
        assert found[stage] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_second_run_is_equal_to_the_last_bit(name: str) -> None:
    """One seed, one process: no state of the first run (generators, caches) reaches the second."""
    assert SCRIPT["losses"](name) == first_run(name)
