"""Means and counts over cases, with the conventions for missing organs."""

from __future__ import annotations

import json
import math

import pytest

from zoomseg.evaluation.attribution import Attribution
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation, UnscoredCase, mean, summarise
from zoomseg.evaluation.tolerances import Tolerances

NAN, INF = math.nan, math.inf
BOTH = OrganScore("liver", 0.9, 0.8, 4.0, 1.0, 110.0, 100.0)
WORSE = OrganScore("liver", 0.5, 0.4, 8.0, 3.0, 40.0, 50.0)
MISSED = OrganScore("liver", 0.0, 0.0, INF, INF, 0.0, 20.0)
SPURIOUS = OrganScore("liver", 0.0, 0.0, INF, INF, 6.0, 0.0)
NEITHER = OrganScore("liver", NAN, NAN, NAN, NAN, 0.0, 0.0)
SPLEEN = OrganScore("spleen", 0.3, 0.2, 10.0, 5.0, 10.0, 20.0)


def evaluation(*cases: tuple[OrganScore, ...]) -> Evaluation:
    results = tuple(CaseResult(f"case_{i}", scores) for i, scores in enumerate(cases))
    return Evaluation(("liver", "spleen"), Tolerances.same(1.0), results)


def test_organ_that_only_one_map_has_lowers_dice_but_not_distances():
    row = summarise("liver", [BOTH, WORSE, MISSED, SPURIOUS])
    assert row.dice == pytest.approx((0.9 + 0.5) / 4)
    assert row.nsd == pytest.approx((0.8 + 0.4) / 4)
    assert (row.hd95_mm, row.assd_mm) == (6.0, 2.0)
    assert (row.cases, row.missed, row.spurious) == (4, 1, 1)


def test_volume_errors():
    row = summarise("liver", [BOTH, WORSE, MISSED, SPURIOUS])
    assert row.volume_error_ml == pytest.approx((10 - 10 - 20 + 6) / 4)
    assert row.volume_error_percent == pytest.approx((10 - 20 - 100) / 3)


def test_standard_deviation_is_that_of_a_sample():
    row = summarise("liver", [BOTH, WORSE])
    assert row.dice_sd == pytest.approx(0.4 / math.sqrt(2))
    assert math.isnan(summarise("liver", [BOTH]).dice_sd)


def test_mean_is_over_organs_not_over_cases():
    found = evaluation((BOTH, SPLEEN), (WORSE,), (WORSE,))
    assert found.mean["dice"] == pytest.approx(((0.9 + 0.5 + 0.5) / 3 + 0.3) / 2)


def test_cases_without_the_organ_are_not_counted():
    found = evaluation((BOTH, SPLEEN), (NEITHER, SPLEEN))
    liver, spleen = found.summary
    assert (liver.cases, liver.dice) == (1, 0.9)
    assert spleen.cases == 2


def test_mean_of_nothing():
    assert math.isnan(mean([]))
    assert math.isnan(mean([NAN, INF]))


def test_json_has_null_where_there_is_no_number():
    found = Evaluation(
        ("liver", "spleen"),
        Tolerances.same(2.0),
        (CaseResult("a", (MISSED,)),),
        (UnscoredCase("b", "is damaged"),),
    )
    data = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert data["mean"] == {"dice": 0.0, "nsd": 0.0, "hd95_mm": None, "assd_mm": None}
    assert data["organs"]["liver"]["missed"] == 1
    assert data["organs"]["liver"]["hd95_mm"] is None
    assert data["organs"]["spleen"]["dice"] is None
    assert data["organs"]["spleen"]["cases"] == 0
    assert (data["tolerance_mm"], data["failed"]) == (2.0, {"b": "is damaged"})


def test_worst_organ_of_a_case():
    assert CaseResult("a", (BOTH, SPLEEN)).worst == SPLEEN
    assert CaseResult("a", (NEITHER,)).worst is None
    larger = OrganScore("aorta", 0.0, 0.0, INF, INF, 0.0, 90.0)
    assert CaseResult("a", (MISSED, larger)).worst == larger


def test_attributions_are_means_over_the_cases_that_have_any():
    """If both maps lack the organ nothing can be lost; if the reference does, nothing can be recalled."""
    told = (
        Attribution(0.75, 0.0, 0.125, 0.25, 0.0),
        Attribution(0.25, 0.5, 0.0, 0.25, 0.0),
        Attribution(NAN, 0.0, 0.0, 0.0, 1.0),
        Attribution(NAN, NAN, NAN, NAN, NAN),
    )
    cases = tuple(CaseResult(f"c{n}", (BOTH,), {"liver": a}) for n, a in enumerate(told))
    found = Evaluation(("liver", "spleen"), Tolerances.same(1.0), (*cases, CaseResult("d", (WORSE,))))
    liver, spleen = found.summary
    assert (liver.region_recall, liver.region_recall_worst) == (0.5, 0.25)
    assert liver.lost_coarse == pytest.approx(0.5 / 3)
    assert liver.lost_region == pytest.approx(0.125 / 3)
    assert liver.lost_boundary == pytest.approx(0.5 / 3)
    assert liver.lost_elsewhere == pytest.approx(1 / 3)
    assert math.isnan(spleen.lost_elsewhere)
    assert found.attributed
    assert not Evaluation(("liver",), Tolerances.same(1.0), (CaseResult("d", (WORSE,)),)).attributed
    assert found.as_json()["organs"]["spleen"]["region_recall"] is None  # type: ignore[index]
