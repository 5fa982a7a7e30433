"""Calibration of a model's confidence: the relation between Dice and the Dice expected from probabilities, on
held-out cases. Part of ``model.json``; fitted by ``evaluation.calibration`` and used by
``inference.confidence``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict


class Calibration(BaseModel):
    """The logit of an organ's Dice is ``offset`` + its own offset in ``organs`` (0 for others) + ``slope``
    times the logit of the Dice expected from its probabilities."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    offset: float
    slope: float
    organs: dict[str, float]
    cases: Annotated[int, Field(ge=1)]
    """Number of held-out cases on which it was fitted."""
    residuals: (
        Annotated[tuple[Annotated[float, Field(le=0)], Annotated[float, Field(ge=0)]], Strict(False)] | None
    ) = None
    """The 5th and 95th percentile of the logit of a Dice minus the estimated one, of cases on which the
    estimate was not fitted; a list in JSON. None: there were too few organs, or it is of an earlier
    version."""
