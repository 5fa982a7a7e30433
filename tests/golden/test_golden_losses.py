"""A refactor changes no loss: the first 20 steps of every shipped recipe, compared with committed values.

If a change is intended to change training, ``uv run python tests/golden/losses.py`` updates them.
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
"""Relative tolerance. The order of summation in convolutions and matrix products depends on the CPU, and 20
steps amplify the differences, to 3e-6 between the instruction sets of one machine. A changed sampler, loss or
optimiser changes losses by several per cent."""


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
    """With the same seed in the same process: no state of the first run (generators, caches) affects the
    second."""
    assert SCRIPT["losses"](name) == first_run(name)
