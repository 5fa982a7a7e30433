"""What a model knows of its own errors: how, on cases kept back, Dice followed from the signs that its
answers gave. Part of ``model.json``; fitted and used by ``report.confidence``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Sign = Literal["promised", "unsure", "earlier_promised", "resized", "odd_volume", "suspicious"]
"""``promised``: logit of the Dice that probabilities promise · ``unsure``: share of doubtful voxels ·
``earlier_promised``: as ``promised``, of the stage before, less this one's · ``resized``: size of the
natural logarithm of the volume over that of the stage before · ``odd_volume``: by how many standard
deviations the volume is unusual, beyond the first two · ``suspicious``: how many flags say that it may be cut
or in the wrong place."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class UsualVolume(_Record):
    """Of the natural logarithm of an organ's volume in ml, over training cases that show all of it."""

    mean: float
    deviation: Annotated[float, Field(gt=0)]


class Calibration(_Record):
    """The logit of an organ's Dice is ``offset`` + its own offset in ``organs`` + the sum of its signs times
    ``weights``. ``offset`` and ``weights`` stand for organs that were not there to be learned from, too."""

    offset: float
    weights: dict[Sign, float]
    organs: dict[str, float]
    volumes: dict[str, UsualVolume]
    cases: Annotated[int, Field(ge=1)]
    """Kept back, from which it was learned."""
