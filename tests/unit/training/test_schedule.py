"""Learning rates by the progress of a training, or by its steps."""

from __future__ import annotations

import math

import pytest

from zoomseg.recipe.spec import Cosine, Polynomial, StepDecay
from zoomseg.training.schedule import learning_rate_factor


def test_step_decay_falls_at_the_published_iterations() -> None:
    spec = StepDecay(every=30_000, factor=0.1)
    steps = (0, 29_999, 30_001, 60_001, 199_999)
    at = [learning_rate_factor(spec, step / 200_000, step) for step in steps]
    assert at == pytest.approx([1, 1, 0.1, 0.01, 1e-6])


def test_step_decay_counts_steps_also_under_a_time_budget() -> None:
    """A training of an hour is the first part of one of days."""
    assert learning_rate_factor(StepDecay(every=30_000), 0.9, 5_000) == 1
    assert learning_rate_factor(StepDecay(every=1200, factor=0.5), 0.2, 2_400) == 0.25


def test_cosine_warms_up_and_ends_at_zero() -> None:
    spec = Cosine(warmup_share=0.1)
    assert learning_rate_factor(spec, 0.05, 1) == pytest.approx(0.5)
    assert learning_rate_factor(spec, 0.1, 1) == pytest.approx(1.0)
    assert learning_rate_factor(spec, 0.55, 1) == pytest.approx(0.5)
    assert learning_rate_factor(spec, 1.0, 1) == pytest.approx(0.0, abs=1e-12)


def test_polynomial() -> None:
    spec = Polynomial(power=2.0)
    assert learning_rate_factor(spec, 0.5, 1) == pytest.approx(0.25)
    assert not math.isclose(learning_rate_factor(Polynomial(power=1.0), 0.5, 1), 0.25)


@pytest.mark.parametrize("schedule", [Cosine, Polynomial])
def test_a_schedule_is_more_than_its_warm_up(schedule: type[Cosine | Polynomial]) -> None:
    with pytest.raises(ValueError, match="less than 1"):
        schedule(warmup_share=1.0)
