"""Length and progress of a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingLength:
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
