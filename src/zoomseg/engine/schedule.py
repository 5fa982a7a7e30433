"""How far training is, and what learning rate that means."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoomseg.recipe.spec import Cosine, Polynomial, ScheduleSpec, StepDecay


@dataclass(frozen=True)
class Length:
    """Either a number of steps, or seconds; a time budget makes the schedule follow the clock."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, elapsed: float) -> float:
        """Share done, 0 to 1."""
        if self.seconds is not None:
            return min(1.0, elapsed / max(self.seconds, 1e-9))
        assert self.steps is not None
        return min(1.0, step / self.steps)

    def remaining_seconds(self, step: int, elapsed: float) -> float | None:
        """Expected time left; None before the first step."""
        if self.seconds is not None:
            return max(0.0, self.seconds - elapsed)
        assert self.steps is not None
        return None if step == 0 else elapsed / step * (self.steps - step)


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
