"""A calibration is read as written, or refused."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from zoomseg.io.calibration import Calibration

GOOD = {"offset": -0.5, "slope": 0.9, "organs": {"liver": 0.1}, "cases": 5}


def test_values_come_back() -> None:
    known = Calibration(offset=-0.5, slope=0.9, organs={"liver": 0.1}, cases=5)
    assert Calibration.model_validate(GOOD) == known
    assert known.model_dump() == GOOD | {"residuals": None}  # missing in an earlier version
    likely = GOOD | {"residuals": [-1.5, 0.5]}
    assert Calibration.model_validate_json(json.dumps(likely)).residuals == (-1.5, 0.5)
    assert Calibration.model_validate(likely).residuals == (-1.5, 0.5)  # as parsed JSON has it


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", float("nan")),
        ("slope", float("inf")),
        ("slope", "1"),
        ("organs", {"a": None}),
        ("cases", 0),
        ("residuals", (0.5, 1.0)),
        ("residuals", ["-1.5", "0.5"]),
    ],
)
def test_what_is_none_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        Calibration.model_validate(GOOD | {key: value})
    with pytest.raises(ValidationError, match="more"):
        Calibration.model_validate(GOOD | {"more": 1})
