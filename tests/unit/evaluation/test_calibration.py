"""Confidence learned from cases kept back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoomseg.evaluation.calibration import Scored, calibrate, scored
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation
from zoomseg.evaluation.tolerances import Tolerances
from zoomseg.inference.confidence import estimated_dice


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def drawn(cases: int, offset: dict[str, float], slope: float, rng: np.random.Generator) -> list[Scored]:
    out = []
    for case in range(cases):
        for organ, own in offset.items():
            promised = rng.uniform(0.0, 4.0)
            out.append(Scored(f"{case}", organ, logistic(promised), logistic(own + slope * promised)))
    return out


def test_many_cases_are_learned_from() -> None:
    known = drawn(300, {"liver": -0.5, "spleen": -1.5}, 0.7, np.random.default_rng(0))
    found = calibrate(known)
    assert found is not None
    assert found.cases == 300
    estimates = [estimated_dice({k.organ: k.promised}, found)[k.organ] for k in known]
    assert estimates == pytest.approx([k.dice for k in known], abs=0.01)
    assert found.slope == pytest.approx(0.7, abs=0.05)


def test_a_single_organ_of_a_single_case_is_met_half_way() -> None:
    """One look at one organ moves the others as much as that organ's prior lets it."""
    found = calibrate([Scored("a", "liver", 0.9, 0.5)])
    assert found is not None
    sure = estimated_dice({"liver": 0.9, "spleen": 0.9, "aorta": 0.95}, found)
    assert sure["liver"] == pytest.approx(0.5, abs=0.02)
    assert sure["spleen"] < sure["aorta"]  # promises still count


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
    promised = {("a", "liver"): 0.9, ("a", "spleen"): 0.7, ("b", "aorta"): 0.4}
    assert scored(promised, evaluation) == [Scored("a", "liver", 0.9, 0.8)]
