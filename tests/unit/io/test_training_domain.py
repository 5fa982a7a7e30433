"""Valid training domains in ``model.json``."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from zoomseg.io.training_domain import TrainingDomain

DOMAIN = TypeAdapter(TrainingDomain)
GOOD = {
    "modality": "CT",
    "intensities": [list(range(19))],
    "darkest": [-125, -100],
    "cross_section_cm2": [300, 900],
    "organs": {"liver": {"volume_ml": [900, 2000], "offsets_mm": {"spleen": [[0, 1], [2, 3], [-4, 5]]}}},
}


def test_it_comes_back_as_it_was() -> None:
    known = DOMAIN.validate_python(GOOD)
    assert DOMAIN.validate_json(DOMAIN.dump_json(known)) == known
    assert known.organs["liver"].volume_ml == (900.0, 2000.0)
    assert known.organs["liver"].offsets_mm["spleen"] == ((0.0, 1.0), (2.0, 3.0), (-4.0, 5.0))


@pytest.mark.parametrize(
    "change",
    [
        {"intensities": []},
        {"intensities": [[1.0, 2.0]]},
        {"intensities": [[float("nan")] * 19]},
        {"darkest": [0, -1]},
        {"cross_section_cm2": [0, 1e400]},
        {"organs": {"liver": {"volume_ml": [2, 1], "offsets_mm": {}}}},
        {"organs": {"liver": {"volume_ml": None, "offsets_mm": {"x": [[0, 1], [2, 3]]}}}},
        {"organs": {"liver": {"volume_ml": None, "offsets_mm": {"x": [[0, 1], [2, 3], [5, 4]]}}}},
        {"more": 1},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DOMAIN.validate_python(GOOD | change)
