"""How sure a result is: an estimate of every organ's Dice, from what the prediction itself shows.

What probabilities promise (``stage.signs``) is too good: a network is sure of its errors, too. How much so
is learned from cases kept back. With few cases the estimate stays near the promise, and an organ's near that
of all organs: both are drawn there by a prior that is worth a few observations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.domain import TrainingDomain
from zoomseg.core.positions import usual_volume
from zoomseg.core.volume import Volume
from zoomseg.engine.predict import Result
from zoomseg.io.calibration import Calibration
from zoomseg.report.measure import Found, measure
from zoomseg.report.result import Evaluation
from zoomseg.report.summary import MISPLACED, UNUSUAL_VOLUME, OrganRow, organ_flags, organ_rows

_MOST = 0.99
"""A Dice beyond is taken for it, and one below 0.01 for that: logits of 0 and 1 are infinite."""
_SLOPE_PRECISION = 2.0
_ORGAN_PRECISION = 2.0
"""Of the normal priors of the slope, around 1, and of each organ's own offset, around 0."""

DOUBTED = 0.5
"""What is left of an organ's confidence that is misplaced, or of an unusual size."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """An organ of a case kept back: the Dice that its probabilities promised, and the one that it got."""

    case: str
    organ: str
    promised: float
    dice: float


def summed_up(
    case_id: str,
    result: Result,
    image: Volume,
    calibration: Calibration | None,
    organs: Iterable[str] | str = "all",
    domain: TrainingDomain | None = None,
) -> list[OrganRow]:
    """The rows of ``summary.csv`` of a case, one per organ in schema order. An organ's confidence is what its
    probabilities promise, as the model's calibration has it, in so far as the scan is like those of the
    training, and the organ like the organ there.

    Raises:
        GeometryError: labels and image lie on different grids.
        LabelError: an organ that the schema does not know.
    """
    chosen = result.schema.select(organs)
    found = measure(case_id, result.labels, image, chosen)
    cut = [organ for organ, signs in result.signs.items() if signs.cut]
    odd = {MISPLACED: result.misplaced, UNUSUAL_VOLUME: unusual_volumes(found, domain)}
    flags = organ_flags(result.schema, found, chosen, cut, odd)
    promised = {organ: dice for organ, dice in result.confidence.items() if organ in found}
    estimated = estimated_dice(promised, calibration)
    doubted = {organ for those in odd.values() for organ in those}
    sure = {
        organ: dice * result.trust * (DOUBTED if organ in doubted else 1.0)
        for organ, dice in estimated.items()
    }
    return organ_rows(case_id, found, flags, sure)


def unusual_volumes(found: Mapping[str, Found], domain: TrainingDomain | None) -> tuple[str, ...]:
    """Organs of a size far from any in training; of those that the scan cuts off, large ones alone."""
    if domain is None:
        return ()
    return tuple(
        name
        for name, own in found.items()
        if not usual_volume(own.volume_ml, domain.organs.get(name), whole=not own.touches_scan_border)
    )


def estimated_dice(promised: Mapping[str, float], calibration: Calibration | None) -> dict[str, float]:
    """By organ, 0 to 1; without a calibration, what the probabilities promise."""
    if calibration is None:
        return dict(promised)
    out = {}
    for organ, dice in promised.items():
        own = calibration.offset + calibration.organs.get(organ, 0.0)
        out[organ] = float(_logistic(np.array(own + calibration.slope * float(_logit([dice])[0]))))
    return out


def scored(promised: Mapping[tuple[str, str], float], scores: Evaluation) -> list[Scored]:
    """The organs of which both the promise (by case and organ) and the Dice are known."""
    return [
        Scored(case.id, score.organ, promised[case.id, score.organ], score.dice)
        for case in scores.cases
        for score in case.scores
        if (case.id, score.organ) in promised and math.isfinite(score.dice)
    ]


def calibrate(known: Sequence[Scored]) -> Calibration | None:
    """Learn from cases kept back; None if there are none.

    Logistic regression on Dice by maximum a posteriori: the prior says that promises are kept but for one
    offset, and that organs are alike.
    """
    if not known:
        return None
    organs = sorted({k.organ for k in known})
    own = np.array([[k.organ == organ for organ in organs] for k in known], dtype=np.float64)
    table = np.column_stack([np.ones(len(known)), _logit([k.promised for k in known]), own])
    expected = np.array([0.0, 1.0, *[0.0] * len(organs)])
    precision = np.array([0.0, _SLOPE_PRECISION, *[_ORGAN_PRECISION] * len(organs)])
    dice = np.clip([k.dice for k in known], 1 - _MOST, _MOST)
    offset, slope, *offsets = _posterior_mode(table, dice, expected, precision).tolist()
    cases = len({k.case for k in known})
    by_organ = dict(zip(organs, offsets, strict=True))
    return Calibration(offset=offset, slope=slope, organs=by_organ, cases=cases)


def _posterior_mode(
    table: FloatArray, share: FloatArray, expected: FloatArray, precision: FloatArray
) -> FloatArray:
    """Coefficients of a logistic regression on shares between 0 and 1, with independent normal priors."""
    # On the spot: only training needs it, and it would make every prediction start a third of a second later.
    from scipy import optimize

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        logit, off = table @ weights, weights - expected
        value = (np.logaddexp(0, logit) - share * logit).sum() + 0.5 * (precision * off**2).sum()
        return float(value), table.T @ (_logistic(logit) - share) + precision * off

    found = optimize.minimize(loss, expected, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    mode: FloatArray = found.x
    return mode


def _logit(shares: Sequence[float]) -> FloatArray:
    kept = np.clip(np.array(shares, dtype=np.float64), 1 - _MOST, _MOST)
    logits: FloatArray = np.log(kept / (1 - kept))
    return logits


def _logistic(values: FloatArray) -> FloatArray:
    out: FloatArray = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    return out
