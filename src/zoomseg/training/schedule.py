"""Learning rate schedules."""

from __future__ import annotations

import math

from zoomseg.recipe.spec import Cosine, Polynomial, ScheduleSpec, StepDecay


def learning_rate_factor(spec: ScheduleSpec, progress: float, step: int) -> float:
    """Factor on the optimiser's learning rate after ``step`` steps, at ``progress`` (0 to 1) of the training.

    A training shorter than the recipe's runs through the whole cosine or polynomial, faster. Of a step decay,
    it runs the first part: compressed to a fortieth of the steps, six decays by ten would make the learning
    rate too low to learn anything after the first few hundred.
    """
    match spec:
        case StepDecay():
            return float(spec.factor ** (step // spec.every))
        case Cosine():
            warm = _warm_up(spec.warmup_share, progress)
            rest = (progress - spec.warmup_share) / (1 - spec.warmup_share)
            return warm * (1 + math.cos(math.pi * max(0.0, rest))) / 2
        case Polynomial():
            return float(_warm_up(spec.warmup_share, progress) * (1 - progress) ** spec.power)


def _warm_up(share: float, progress: float) -> float:
    return 1.0 if share <= 0 or progress >= share else max(1e-2, progress / share)
