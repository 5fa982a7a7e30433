"""What learning rate the progress of a training means."""

from __future__ import annotations

import math

from zoomseg.recipe.spec import Cosine, Polynomial, ScheduleSpec, StepDecay


def learning_rate_factor(spec: ScheduleSpec, progress: float, iterations: int) -> float:
    """Factor on the optimiser's learning rate at ``progress`` (0 to 1) of a schedule that was written
    for ``iterations`` steps: a shorter training runs through all of it, faster."""
    match spec:
        case StepDecay():
            return float(spec.factor ** math.floor(progress * iterations / spec.every))
        case Cosine():
            warm = _warm_up(spec.warmup_share, progress)
            rest = (progress - spec.warmup_share) / (1 - spec.warmup_share)
            return warm * (1 + math.cos(math.pi * max(0.0, rest))) / 2
        case Polynomial():
            return float(_warm_up(spec.warmup_share, progress) * (1 - progress) ** spec.power)


def _warm_up(share: float, progress: float) -> float:
    return 1.0 if share <= 0 or progress >= share else max(1e-2, progress / share)
