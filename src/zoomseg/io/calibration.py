"""What a model knows of its own errors: how, on cases kept back, Dice followed from what its probabilities
promised. Part of ``model.json``; fitted and used by ``inference.confidence``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Calibration(BaseModel):
    """The logit of an organ's Dice is ``offset`` + its own offset in ``organs`` (0 for others) + ``slope``
    times the logit of the Dice that its probabilities promise."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    offset: float
    slope: float
    organs: dict[str, float]
    cases: Annotated[int, Field(ge=1)]
    """Kept back, from which it was learned."""
    residuals: tuple[Annotated[float, Field(le=0)], Annotated[float, Field(ge=0)]] | None = None
    """The 5th and 95th percentile of the logit of a Dice minus the estimated one, of cases that the estimate
    was not learned from. None: there were too few organs, or an earlier version learned it."""
