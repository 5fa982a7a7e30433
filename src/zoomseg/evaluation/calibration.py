"""Calibration of a model's confidence on held-out cases: the relation between Dice and the Dice expected from
probabilities.

With few cases the estimate stays close to the expected Dice, and an organ's close to that of all organs: both
are regularised by a prior that is equivalent to a few observations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from zoomseg.evaluation.result import Evaluation
from zoomseg.inference.confidence import MAX_DICE, FloatArray, estimated_dice, logistic, logit
from zoomseg.io.calibration import Calibration

_SLOPE_PRECISION = 2.0
_ORGAN_PRECISION = 2.0
"""Precision of the normal priors of the slope, around 1, and of each organ's own offset, around 0."""
_TAIL = 0.05
"""Share of organs below, and above, a 90 % interval."""
_PARTS = 10
"""Maximum number of parts into which cases are divided; each part's residuals come from a fit to the
others."""


@dataclass(frozen=True)
class Scored:
    """An organ of a held-out case: the Dice expected from its probabilities, and the measured one."""

    case: str
    organ: str
    expected_dice: float
    dice: float


def scored(expected_dice: Mapping[tuple[str, str], float], scores: Evaluation) -> list[Scored]:
    """The organs with both an expected Dice (by case and organ) and a measured one."""
    return [
        Scored(case.id, score.organ, expected_dice[case.id, score.organ], score.dice)
        for case in scores.cases
        for score in case.scores
        if (case.id, score.organ) in expected_dice and math.isfinite(score.dice)
    ]


def calibrate(known: Sequence[Scored]) -> Calibration | None:
    """Fit the calibration to held-out cases; None if there are none.

    Logistic regression on Dice by maximum a posteriori: according to the prior, expected values are correct
    up to one offset, and organs are alike.
    """
    if not known:
        return None
    return _fitted(known).model_copy(update={"residuals": _residuals(known)})


def _residuals(known: Sequence[Scored]) -> tuple[float, float] | None:
    """Split-conformal bounds (Lei et al. 2018, J Am Stat Assoc 113:1094-1111), separately for each tail, by
    cross-validation; None if there are too few organs to bound the tails by the outermost ones."""
    cases = sorted({k.case for k in known})
    off: list[float] = []
    for part in range(min(_PARTS, len(cases))):
        left_out = set(cases[part::_PARTS])
        others = [k for k in known if k.case not in left_out]
        if not others:
            return None
        found, own = _fitted(others), [k for k in known if k.case in left_out]
        expected = [estimated_dice({k.organ: k.expected_dice}, found)[k.organ] for k in own]
        off += (logit([k.dice for k in own]) - logit(expected)).tolist()
    rank = math.ceil((len(off) + 1) * (1 - _TAIL))
    if rank > len(off):
        return None
    off.sort()
    return min(0.0, off[-rank]), max(0.0, off[rank - 1])


def _fitted(known: Sequence[Scored]) -> Calibration:
    organs = sorted({k.organ for k in known})
    own = np.array([[k.organ == organ for organ in organs] for k in known], dtype=np.float64)
    table = np.column_stack([np.ones(len(known)), logit([k.expected_dice for k in known]), own])
    expected = np.array([0.0, 1.0, *[0.0] * len(organs)])
    precision = np.array([0.0, _SLOPE_PRECISION, *[_ORGAN_PRECISION] * len(organs)])
    dice = np.clip([k.dice for k in known], 1 - MAX_DICE, MAX_DICE)
    offset, slope, *offsets = _posterior_mode(table, dice, expected, precision).tolist()
    cases = len({k.case for k in known})
    by_organ = dict(zip(organs, offsets, strict=True))
    return Calibration(offset=offset, slope=slope, organs=by_organ, cases=cases)


def _posterior_mode(
    table: FloatArray, share: FloatArray, expected: FloatArray, precision: FloatArray
) -> FloatArray:
    """Coefficients of a logistic regression on shares between 0 and 1, with independent normal priors."""

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        logit, off = table @ weights, weights - expected
        value = (np.logaddexp(0, logit) - share * logit).sum() + 0.5 * (precision * off**2).sum()
        return float(value), table.T @ (logistic(logit) - share) + precision * off

    found = optimize.minimize(loss, expected, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    mode: FloatArray = found.x
    return mode
