"""From promised to estimated Dice: by hand, from few cases and from many, and through a whole prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zoomseg.core.domain import TrainingDomain
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.positions import OrganPlaces
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.engine.predict import OrganSigns, Result
from zoomseg.io.calibration import Calibration
from zoomseg.report.confidence import Scored, calibrate, estimated_dice, scored, summed_up
from zoomseg.report.metrics import OrganScore
from zoomseg.report.result import CaseResult, Evaluation
from zoomseg.stage.signs import Signs


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_estimate_by_hand() -> None:
    calibration = Calibration(offset=-1.0, slope=0.5, organs={"liver": 0.25}, cases=3)
    promised = {"liver": logistic(2.0), "spleen": logistic(2.0), "aorta": 1.0}
    assert estimated_dice(promised, calibration) == {
        "liver": pytest.approx(logistic(0.25)),
        "spleen": pytest.approx(logistic(0.0)),
        "aorta": pytest.approx(logistic(-1 + 0.5 * math.log(99))),  # as of 0.99
    }
    assert estimated_dice(promised, None) == promised


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
    evaluation = Evaluation(("liver", "spleen", "aorta"), 1.0, (CaseResult("a", tuple(scores)),))
    promised = {("a", "liver"): 0.9, ("a", "spleen"): 0.7, ("b", "aorta"): 0.4}
    assert scored(promised, evaluation) == [Scored("a", "liver", 0.9, 0.8)]


def test_rows_of_a_prediction() -> None:
    schema = LabelSchema.consecutive(("liver", "spleen", "aorta"))
    grid = Grid.from_spacing((6, 6, 6), (10.0, 10.0, 10.0))
    classes = torch.zeros(grid.shape, dtype=torch.uint8)
    classes[2:4, 2:4, 2:4] = 1
    classes[0, 1, 1] = 3
    signs = Signs(8, 8.0, 0.9, 0.9, 0.1, 0)
    said = {
        "liver": OrganSigns(signs, True),
        "aorta": OrganSigns(signs, False),
        "spleen": OrganSigns(signs, False),
    }
    result = Result("a", LabelMap(classes, grid, schema), said, {}, (), {})
    calibration = Calibration(offset=-1.0, slope=1.0, organs={}, cases=1)
    rows = summed_up("a", result, Volume(torch.full((1, 6, 6, 6), 7.0), grid), calibration)
    assert [(row.organ, row.volume_ml, row.median_intensity, row.flags) for row in rows] == [
        ("liver", pytest.approx(8.0), 7.0, ("touches_region_border",)),
        ("spleen", 0.0, None, ("missing",)),  # found by the stage, but not in the label map
        ("aorta", pytest.approx(1.0), 7.0, ("touches_scan_border",)),
    ]
    sure = pytest.approx(logistic(math.log(9) - 1))
    assert [row.confidence for row in rows] == [sure, None, sure]


def test_an_unlike_scan_and_an_unlikely_organ_are_less_sure() -> None:
    schema = LabelSchema.consecutive(("liver", "spleen"))
    grid = Grid.from_spacing((6, 6, 6), (10.0, 10.0, 10.0))
    classes = torch.zeros(grid.shape, dtype=torch.uint8)
    classes[2:4, 2:4, 2:4], classes[1, 1, 1] = 1, 2
    said = {organ: OrganSigns(Signs(8, 8.0, 0.8, 0.9, 0.1, 0), False) for organ in schema.names}
    labels = LabelMap(classes, grid, schema)
    result = Result("a", labels, said, {}, (), {}, trust=0.5, misplaced=("liver",))
    domain = TrainingDomain(
        modality=None,
        intensities=((0.0,) * 19,),
        darkest=(0.0, 0.0),
        cross_section_cm2=(1.0, 1.0),
        organs={organ: OrganPlaces(volume_ml=(5.0, 10.0), offsets_mm={}) for organ in schema.names},
    )
    rows = summed_up("a", result, Volume(torch.zeros(1, 6, 6, 6), grid), None, domain=domain)
    assert [(row.flags, row.confidence) for row in rows] == [
        (("misplaced",), pytest.approx(0.2)),
        (("unusual_volume",), pytest.approx(0.2)),  # 1 ml, of at least 5 in training
    ]
