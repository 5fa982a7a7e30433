"""From expected to estimated Dice: by hand, from few cases and from many, and through a complete
prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoomseg.anatomy.positions import TypicalPosition
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.inference.confidence import dice_intervals, estimated_dice, organ_rows_of
from zoomseg.io.calibration import Calibration
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.pipeline.cascade import OrganUncertainty, Prediction
from zoomseg.pipeline.uncertainty import Uncertainty


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_estimate_by_hand() -> None:
    calibration = Calibration(offset=-1.0, slope=0.5, organs={"liver": 0.25}, cases=3)
    expected_dice = {"liver": logistic(2.0), "spleen": logistic(2.0), "aorta": 1.0}
    assert estimated_dice(expected_dice, calibration) == {
        "liver": pytest.approx(logistic(0.25)),
        "spleen": pytest.approx(logistic(0.0)),
        "aorta": pytest.approx(logistic(-1 + 0.5 * math.log(99))),  # as for an expected Dice of 0.99
    }
    assert estimated_dice(expected_dice, None) == expected_dice


def test_the_interval_by_hand() -> None:
    calibration = Calibration(offset=0.0, slope=1.0, organs={}, cases=9, residuals=(-1.5, 0.5))
    estimated = {"liver": logistic(2.0), "aorta": 0.98, "spleen": 0.03}
    assert dice_intervals(estimated, calibration) == {
        "liver": (pytest.approx(logistic(0.5)), pytest.approx(logistic(2.5))),
        "aorta": (pytest.approx(logistic(math.log(49) - 1.5)), pytest.approx(logistic(math.log(49) + 0.5))),
        "spleen": (0.0, pytest.approx(logistic(math.log(3 / 97) + 0.5))),  # 0.007 and less is rounded to 0
    }
    assert dice_intervals({"liver": 0.985}, calibration)["liver"][1] == 1.0
    assert dice_intervals(estimated, None) == {}
    assert dice_intervals(estimated, calibration.model_copy(update={"residuals": None})) == {}


def test_rows_of_a_prediction() -> None:
    schema = LabelSchema.consecutive(("liver", "spleen", "aorta"))
    grid = Grid.from_spacing((6, 6, 6), (10.0, 10.0, 10.0))
    classes = np.zeros(grid.shape, dtype=np.uint8)
    classes[2:4, 2:4, 2:4] = 1
    classes[0, 1, 1] = 3
    signs = Uncertainty(8, 8.0, 0.9, 0)
    said = {
        "liver": OrganUncertainty(signs, True),
        "aorta": OrganUncertainty(signs, False),
        "spleen": OrganUncertainty(signs, False),
    }
    result = Prediction("a", LabelMap(classes, grid, schema), said, {}, (), {})
    calibration = Calibration(offset=-1.0, slope=1.0, organs={}, cases=1)
    rows = organ_rows_of("a", result, Volume(np.full((1, 6, 6, 6), 7.0, dtype=np.float32), grid), calibration)
    assert [(row.organ, row.volume_ml, row.median_intensity, row.flags) for row in rows] == [
        ("liver", pytest.approx(8.0), 7.0, ("touches_region_border",)),
        ("spleen", 0.0, None, ("missing",)),  # found by the stage, but not in the label map
        ("aorta", pytest.approx(1.0), 7.0, ("touches_scan_border",)),
    ]
    sure = pytest.approx(logistic(math.log(9) - 1))
    assert [row.confidence for row in rows] == [sure, None, sure]
    assert [row.dice_range for row in rows] == [None] * 3


def test_less_trust_lowers_the_interval_at_its_lower_end() -> None:
    schema = LabelSchema.consecutive(("liver",))
    grid = Grid.from_spacing((6, 6, 6), (10.0, 10.0, 10.0))
    classes = np.zeros(grid.shape, dtype=np.uint8)
    classes[2:4, 2:4, 2:4] = 1
    said = {"liver": OrganUncertainty(Uncertainty(8, 8.0, 0.9, 0), False)}
    calibration = Calibration(offset=0.0, slope=1.0, organs={}, cases=9, residuals=(-1.0, 1.0))
    image = Volume(np.zeros((1, 6, 6, 6), dtype=np.float32), grid)
    high = pytest.approx(logistic(math.log(9) + 1))
    for confidence_factor, low in ((1.0, logistic(math.log(9) - 1)), (0.25, 0.25 * 0.9)):
        result = Prediction(
            "a", LabelMap(classes, grid, schema), said, {}, (), {}, confidence_factor=confidence_factor
        )
        (row,) = organ_rows_of("a", result, image, calibration)
        assert row.confidence == pytest.approx(confidence_factor * 0.9)
        assert row.dice_range == (pytest.approx(low), high)


def test_an_unlike_scan_and_an_unlikely_organ_are_less_sure() -> None:
    schema = LabelSchema.consecutive(("liver", "spleen"))
    grid = Grid.from_spacing((6, 6, 6), (10.0, 10.0, 10.0))
    classes = np.zeros(grid.shape, dtype=np.uint8)
    classes[2:4, 2:4, 2:4], classes[1, 1, 1] = 1, 2
    said = {organ: OrganUncertainty(Uncertainty(8, 8.0, 0.8, 0), False) for organ in schema.names}
    labels = LabelMap(classes, grid, schema)
    result = Prediction("a", labels, said, {}, (), {}, confidence_factor=0.5, misplaced=("liver",))
    domain = TrainingDomain(
        modality=None,
        intensities=((0.0,) * 19,),
        darkest=(0.0, 0.0),
        cross_section_cm2=(1.0, 1.0),
        organs={organ: TypicalPosition(volume_ml=(5.0, 10.0), offsets_mm={}) for organ in schema.names},
    )
    rows = organ_rows_of(
        "a", result, Volume(np.zeros((1, 6, 6, 6), dtype=np.float32), grid), None, domain=domain
    )
    assert [(row.flags, row.confidence) for row in rows] == [
        (("misplaced",), pytest.approx(0.2)),
        (("unusual_volume",), pytest.approx(0.2)),  # 1 ml, of at least 5 in training
    ]
