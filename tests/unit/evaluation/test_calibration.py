"""Calibration of confidence on held-out cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoomseg.evaluation.calibration import Scored, calibrate, scored
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation
from zoomseg.evaluation.tolerances import Tolerances
from zoomseg.inference.confidence import dice_intervals, estimated_dice


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def drawn(cases: int, offset: dict[str, float], slope: float, rng: np.random.Generator) -> list[Scored]:
    out = []
    for case in range(cases):
        for organ, own in offset.items():
            log_odds = rng.uniform(0.0, 4.0)
            out.append(Scored(f"{case}", organ, logistic(log_odds), logistic(own + slope * log_odds)))
    return out


def test_many_cases_are_learned_from() -> None:
    known = drawn(300, {"liver": -0.5, "spleen": -1.5}, 0.7, np.random.default_rng(0))
    found = calibrate(known)
    assert found is not None
    assert found.cases == 300
    estimates = [estimated_dice({k.organ: k.expected_dice}, found)[k.organ] for k in known]
    assert estimates == pytest.approx([k.dice for k in known], abs=0.01)
    assert found.slope == pytest.approx(0.7, abs=0.05)


def test_a_single_organ_of_a_single_case_is_met_half_way() -> None:
    """One observation of one organ moves the others as much as that organ's prior allows."""
    found = calibrate([Scored("a", "liver", 0.9, 0.5)])
    assert found is not None
    sure = estimated_dice({"liver": 0.9, "spleen": 0.9, "aorta": 0.95}, found)
    assert sure["liver"] == pytest.approx(0.5, abs=0.02)
    assert sure["spleen"] < sure["aorta"]  # expected values still count


def test_an_organ_seen_once_is_judged_much_like_the_others() -> None:
    known = drawn(200, {"liver": -0.5}, 1.0, np.random.default_rng(1))
    found = calibrate([*known, Scored("x", "spleen", 0.9, 0.1)])
    assert found is not None
    sure = estimated_dice({"liver": 0.9, "spleen": 0.9}, found)
    assert sure["liver"] == pytest.approx(logistic(math.log(9) - 0.5), abs=0.02)
    assert 0.6 < sure["spleen"] < sure["liver"]


def test_extremes_stay_finite() -> None:
    found = calibrate([Scored("a", "liver", 1.0, 0.0), Scored("b", "liver", 0.0, 1.0)])
    assert found is not None
    assert all(0 < dice < 1 for dice in estimated_dice({"liver": 1.0, "x": 0.0}, found).values())
    assert calibrate([]) is None


def score(organ: str, dice: float) -> OrganScore:
    return OrganScore(organ, dice, math.nan, math.nan, math.nan, 1.0, 1.0)


def test_only_organs_with_promise_and_dice_are_learned_from() -> None:
    scores = [score("liver", 0.8), score("spleen", math.nan), score("aorta", 0.5)]
    evaluation = Evaluation(
        ("liver", "spleen", "aorta"), Tolerances.same(1.0), (CaseResult("a", tuple(scores)),)
    )
    expected_dice = {("a", "liver"): 0.9, ("a", "spleen"): 0.7, ("b", "aorta"): 0.4}
    assert scored(expected_dice, evaluation) == [Scored("a", "liver", 0.9, 0.8)]


def noisy(cases: int, rng: np.random.Generator) -> list[Scored]:
    """Expected values with a constant offset, a skewed error and occasional failures."""
    out = []
    for case in range(cases):
        for organ in ("liver", "spleen", "aorta", "pancreas"):
            log_odds = rng.uniform(1.0, 3.0)
            error = 0.5 * (1 - rng.exponential()) - (4.0 if rng.uniform() < 0.02 else 0.0)
            out.append(Scored(f"{case}", organ, logistic(log_odds), logistic(log_odds - 0.5 + error)))
    return out


@pytest.mark.parametrize("cases", [10, 60])
def test_nine_of_ten_further_organs_lie_in_their_interval(cases: int) -> None:
    rng, inside = np.random.default_rng(5), []
    for _ in range(20):  # one calibration alone covers as its few cases happen to be
        found = calibrate(noisy(cases, rng))
        assert found is not None
        for new in noisy(50, rng):
            estimated = estimated_dice({new.organ: new.expected_dice}, found)
            ((low, high),) = dice_intervals(estimated, found).values()
            inside.append(low <= new.dice <= high)
    assert 0.87 < np.mean(inside) < 0.95


def test_too_few_organs_tell_no_interval() -> None:
    known = noisy(5, np.random.default_rng(3))
    full, fewer = calibrate(known), calibrate(known[:-4])
    assert full is not None
    assert full.residuals is not None  # of 20 organs
    assert fewer is not None
    assert fewer.residuals is None  # of 16
    single = calibrate([Scored("a", f"organ {n}", 0.9, 0.8) for n in range(40)])
    assert single is not None
    assert single.residuals is None  # one case leaves no other to learn from
