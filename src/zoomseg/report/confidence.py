"""How sure a result is: an estimate of every organ's Dice, from what the prediction itself shows.

What probabilities promise (``stage.signs``) is too good: a network is sure of its errors, too. How much so
is learned from cases kept back, organ by organ, with weights for further signs that all organs share. With
few cases the estimate stays near the promise, as both are drawn to it by a prior of a few observations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from zoomseg.core.volume import LabelMap, Volume
from zoomseg.engine.predict import OrganSigns, Result
from zoomseg.io.calibration import Calibration, Sign, UsualVolume
from zoomseg.report.measure import Found, measure
from zoomseg.report.summary import MISSING, TOUCHES_SCAN_BORDER, OrganRow, organ_flags, organ_rows

SIGNS: tuple[Sign, ...] = (
    *("promised", "unsure", "earlier_promised", "resized", "odd_volume", "suspicious"),
)
_MOST = 0.99
"""Dice beyond are taken for it, as logits of 0 and 1 are infinite; the same below."""
_PRIOR_SHARED = 2.0
_PRIOR_ORGAN = 2.0
"""Precisions of the normal priors of what all organs share, and of each organ's own offset."""
_LARGEST_RATIO = 4.0
_USUAL_DEVIATIONS = 2.0
_MOST_DEVIATIONS = 5.0
_LEAST_CASES_OF_A_VOLUME = 5

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What one organ of one case shows, in the order of ``SIGNS``."""

    organ: str
    signs: tuple[float, ...]


@dataclass(frozen=True)
class Scored:
    """An organ of a case kept back, and how well it was found."""

    case: str
    evidence: Evidence
    dice: float


def summed_up(
    case_id: str,
    result: Result,
    image: Volume,
    calibration: Calibration | None,
    organs: Iterable[str] | str = "all",
) -> tuple[list[OrganRow], list[Evidence]]:
    """The rows of ``summary.csv`` of a case, one per organ in schema order; and what its organs showed.

    Raises:
        GeometryError: labels and image lie on different grids.
        LabelError: an organ that the schema does not know.
    """
    labels: LabelMap = result.labels
    chosen = labels.schema.select(organs)
    found = measure(case_id, labels, image, chosen)
    cut = [organ for organ, signs in result.signs.items() if signs.cut]
    flags = organ_flags(labels.schema, found, chosen, cut)
    volumes = {} if calibration is None else calibration.volumes
    shown = {
        organ: _evidence(organ, signs, found[organ], flags[organ], volumes.get(organ))
        for organ, signs in result.signs.items()
        if organ in found
    }
    sure = {organ: estimated_dice(evidence, calibration) for organ, evidence in shown.items()}
    return organ_rows(case_id, found, flags, sure), list(shown.values())


def estimated_dice(evidence: Evidence, calibration: Calibration | None) -> float:
    """Between 0 and 1; without a calibration, what the probabilities promise."""
    if calibration is None:
        return _logistic(evidence.signs[SIGNS.index("promised")])
    weighted = (calibration.weights.get(n, 0.0) * v for n, v in zip(SIGNS, evidence.signs, strict=True))
    return _logistic(calibration.offset + calibration.organs.get(evidence.organ, 0.0) + math.fsum(weighted))


def _evidence(
    organ: str, signs: OrganSigns, found: Found, flags: tuple[str, ...], usual: UsualVolume | None
) -> Evidence:
    promised = _logit(signs.own.expected_dice)
    earlier, resized = 0.0, 0.0
    if signs.earlier is not None:
        earlier = _logit(signs.earlier.expected_dice) - promised
        resized = min(abs(math.log(signs.own.volume_ml / signs.earlier.volume_ml)), math.log(_LARGEST_RATIO))
    odd = 0.0
    if usual is not None and not found.touches_scan_border:
        deviations = abs(math.log(found.volume_ml) - usual.mean) / usual.deviation
        odd = min(max(0.0, deviations - _USUAL_DEVIATIONS), _MOST_DEVIATIONS)
    suspicious = float(len(set(flags) - {MISSING, TOUCHES_SCAN_BORDER}))
    return Evidence(organ, (promised, signs.own.unsure, earlier, resized, odd, suspicious))


def calibrate(scored: Sequence[Scored], volumes: Mapping[str, UsualVolume]) -> Calibration | None:
    """Learn from cases kept back; None if there are none.

    Logistic regression on Dice by maximum a posteriori: the prior says that promises are kept (weight 1 for
    ``promised``, 0 for all else), so that an organ seen in few cases is judged like the others.
    """
    if not scored:
        return None
    organs = sorted({s.evidence.organ for s in scored})
    signs = np.array([s.evidence.signs for s in scored])
    own = np.array([[s.evidence.organ == organ for organ in organs] for s in scored], dtype=np.float64)
    table = np.concatenate([np.ones((len(scored), 1)), signs, own], axis=1)
    expected = np.zeros(table.shape[1])
    expected[1 + SIGNS.index("promised")] = 1.0
    shared = np.full(1 + len(SIGNS), _PRIOR_SHARED)
    shared[0] = 0.0
    precision = np.concatenate([shared, np.full(len(organs), _PRIOR_ORGAN)])
    dice = np.clip([s.dice for s in scored], 1 - _MOST, _MOST)
    fitted = _posterior_mode(table, dice, expected, precision)
    return Calibration(
        offset=float(fitted[0]),
        weights={name: float(w) for name, w in zip(SIGNS, fitted[1:], strict=False)},
        organs={organ: float(w) for organ, w in zip(organs, fitted[1 + len(SIGNS) :], strict=True)},
        volumes=dict(volumes),
        cases=len({s.case for s in scored}),
    )


def _posterior_mode(
    table: FloatArray, share: FloatArray, expected: FloatArray, precision: FloatArray
) -> FloatArray:
    """Coefficients of a logistic regression on shares between 0 and 1, with independent normal priors."""

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        logit = table @ weights
        off = weights - expected
        value = np.logaddexp(0, logit) - share * logit
        probability = 1 / (1 + np.exp(-np.clip(logit, -700, 700)))
        slope = table.T @ (probability - share) + precision * off
        return float(value.sum() + 0.5 * (precision * off**2).sum()), slope

    found = optimize.minimize(loss, expected, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    mode: FloatArray = found.x
    return mode


def usual_volumes(volumes_ml: Mapping[str, Sequence[float]]) -> dict[str, UsualVolume]:
    """Of volumes by organ, all greater than 0; organs with too few are left out."""
    usual = {}
    for organ, values in volumes_ml.items():
        logs = np.log(np.array(values, dtype=np.float64))
        if len(logs) >= _LEAST_CASES_OF_A_VOLUME and logs.std() > 0:
            usual[organ] = UsualVolume(mean=float(logs.mean()), deviation=float(logs.std(ddof=1)))
    return usual


def _logit(share: float) -> float:
    kept = min(max(share, 1 - _MOST), _MOST)
    return math.log(kept / (1 - kept))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(value))
