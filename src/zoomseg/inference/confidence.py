"""The confidence of a result: an estimate of every organ's Dice, from the prediction itself.

The Dice expected from probabilities (``pipeline.uncertainty``) is too optimistic, as networks are also
certain of their errors. The correction is learned from held-out cases (``evaluation.calibration``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from zoomseg.anatomy.measurements import OrganMeasurement, measure
from zoomseg.anatomy.positions import usual_volume
from zoomseg.core.volume import Volume
from zoomseg.inference.summary import MISPLACED, UNUSUAL_VOLUME, OrganRow, organ_flags, organ_rows
from zoomseg.io.calibration import Calibration
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.pipeline.cascade import Prediction

MAX_DICE = 0.99
"""A higher Dice is replaced by this, and one below 0.01 by 0.01: logits of 0 and 1 are infinite."""
DOUBTED = 0.5
"""Factor for the confidence of an organ that is misplaced or of unusual size."""

FloatArray = npt.NDArray[np.float64]


def organ_rows_of(
    case_id: str,
    result: Prediction,
    image: Volume,
    calibration: Calibration | None,
    organs: Iterable[str] | str = "all",
    domain: TrainingDomain | None = None,
) -> list[OrganRow]:
    """The rows of ``summary.csv`` of a case, one per organ in schema order. An organ's confidence is the
    calibrated Dice expected from its probabilities, reduced as far as the scan, or the organ in it, is unlike
    those of the training.

    Raises:
        GeometryError: labels and image lie on different grids.
        LabelError: an organ that is not in the schema.
    """
    chosen = result.schema.select(organs)
    found = measure(case_id, result.labels, image, chosen)
    cut = [organ for organ, signs in result.uncertainty.items() if signs.cut]
    odd = {MISPLACED: result.misplaced, UNUSUAL_VOLUME: unusual_volumes(found, domain)}
    flags = organ_flags(result.schema, found, chosen, cut, odd, result.implausible)
    expected_dice = {organ: dice for organ, dice in result.confidence.items() if organ in found}
    estimated = estimated_dice(expected_dice, calibration)
    doubted = {organ for those in odd.values() for organ in those}
    sure = {
        organ: dice * result.confidence_factor * (DOUBTED if organ in doubted else 1.0)
        for organ, dice in estimated.items()
    }
    ranges = {
        organ: (min(low, sure[organ]), high)  # a lower factor does not contradict a good result
        for organ, (low, high) in dice_intervals(estimated, calibration).items()
    }
    return organ_rows(case_id, found, flags, sure, ranges)


def unusual_volumes(found: Mapping[str, OrganMeasurement], domain: TrainingDomain | None) -> tuple[str, ...]:
    """Organs with a volume far from any in training; of those that the scan cuts off, only large ones."""
    if domain is None:
        return ()
    return tuple(
        name
        for name, own in found.items()
        if not usual_volume(own.volume_ml, domain.organs.get(name), whole=not own.touches_scan_border)
    )


def estimated_dice(expected_dice: Mapping[str, float], calibration: Calibration | None) -> dict[str, float]:
    """By organ, 0 to 1; without a calibration, the Dice expected from the probabilities."""
    if calibration is None:
        return dict(expected_dice)
    out = {}
    for organ, dice in expected_dice.items():
        own = calibration.offset + calibration.organs.get(organ, 0.0)
        out[organ] = float(logistic(np.array(own + calibration.slope * float(logit([dice])[0]))))
    return out


def dice_intervals(
    estimated: Mapping[str, float], calibration: Calibration | None
) -> dict[str, tuple[float, float]]:
    """By organ, a range that contains the Dice nine times in ten; empty if the calibration has none."""
    if calibration is None or calibration.residuals is None:
        return {}
    low, high = calibration.residuals
    return {organ: (_moved(dice, low), _moved(dice, high)) for organ, dice in estimated.items()}


def _moved(dice: float, by: float) -> float:
    """Shift on the logit scale, where ``MAX_DICE`` and more become 1, and likewise at the other end."""
    moved = float(logistic(logit([dice]) + by)[0])
    return 1.0 if moved >= MAX_DICE else 0.0 if moved <= 1 - MAX_DICE else moved


def logit(shares: Sequence[float]) -> FloatArray:
    kept = np.clip(np.array(shares, dtype=np.float64), 1 - MAX_DICE, MAX_DICE)
    logits: FloatArray = np.log(kept / (1 - kept))
    return logits


def logistic(values: FloatArray) -> FloatArray:
    out: FloatArray = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    return out
