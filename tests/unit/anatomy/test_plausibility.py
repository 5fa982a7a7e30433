"""Flags of organs in impossible positions, and no flags if the scan's end may be the reason."""

from __future__ import annotations

import pytest

from zoomseg.anatomy.measurements import NO_SIDES, OrganMeasurement
from zoomseg.anatomy.plausibility import plausibility_flags, position_notes
from zoomseg.core.geometry import Box, Sides
from zoomseg.core.labels import LabelSchema

SCHEMA = LabelSchema.consecutive(("Liver", "spleen", "kidney_R", "kidney_L", "urinary bladder", "stomach"))
FEET: Sides = ((False, False), (False, False), (True, False))
HEAD: Sides = ((False, False), (False, False), (False, True))


def at(x: float, z: float, cut: Sides = NO_SIDES) -> OrganMeasurement:
    box = Box((1, 1, 1), (2, 2, 2))
    return OrganMeasurement(1, 1.0, 0.0, 0.0, box, ((x, 0.0, z), (x, 0.0, z)), (x, 0.0, z), cut)


DEFAULT_SETTINGS = {
    "Liver": at(60, 100),
    "spleen": at(-80, 100),
    "kidney_R": at(50, 40),
    "kidney_L": at(-50, 50),
    "urinary bladder": at(0, -200),
    "stomach": at(-40, 100),
}


def test_a_usual_patient() -> None:
    assert plausibility_flags(SCHEMA, DEFAULT_SETTINGS) == {}


def test_swapped_kidneys() -> None:
    found = DEFAULT_SETTINGS | {"kidney_R": at(-50, 40), "kidney_L": at(50, 50)}
    assert plausibility_flags(SCHEMA, found) == {
        "kidney_R": ("sides_swapped",),
        "kidney_L": ("sides_swapped",),
    }


def test_a_mirrored_scan() -> None:
    """A network that recognises organs by appearance labels the liver as liver on either side, but a kidney
    by its side."""
    found = DEFAULT_SETTINGS | {"Liver": at(-60, 100), "spleen": at(80, 100), "stomach": at(40, 100)}
    assert plausibility_flags(SCHEMA, found) == dict.fromkeys(
        ("Liver", "spleen", "stomach"), ("mirrored_scan?",)
    )


def test_a_scan_upside_down() -> None:
    found = {organ: at(f.centroid_mm[0], -f.centroid_mm[2]) for organ, f in DEFAULT_SETTINGS.items()}
    flags = plausibility_flags(SCHEMA, found)
    assert flags == dict.fromkeys(
        ("Liver", "spleen", "kidney_R", "kidney_L", "urinary bladder"), ("upside_down?",)
    )


def test_one_kidney_may_lie_over_the_liver() -> None:
    """Not both: an organ is above another if it is above any of that name."""
    assert plausibility_flags(SCHEMA, DEFAULT_SETTINGS | {"kidney_L": at(-50, 120)}) == {}


@pytest.mark.parametrize(
    ("liver", "kidneys", "flagged"),
    [
        (NO_SIDES, NO_SIDES, True),
        (HEAD, NO_SIDES, False),
        (NO_SIDES, FEET, False),
        (FEET, HEAD, True),
    ],
)
def test_what_the_scan_cuts_off_is_not_held_against_it(liver: Sides, kidneys: Sides, flagged: bool) -> None:
    """A liver below two kidneys: its centre may be above theirs, unless the scan contains its upper end."""
    found = {"Liver": at(60, 10, liver), "kidney_R": at(50, 40, kidneys), "kidney_L": at(-50, 40, kidneys)}
    assert bool(plausibility_flags(SCHEMA, found)) == flagged


def test_two_kinds_of_flags() -> None:
    found = {organ: at(-f.centroid_mm[0], -f.centroid_mm[2]) for organ, f in DEFAULT_SETTINGS.items()}
    flags = plausibility_flags(SCHEMA, found)
    assert flags["Liver"] == ("mirrored_scan?", "upside_down?")
    assert flags["kidney_R"] == ("sides_swapped", "upside_down?")


def test_notes_name_each_kind_with_its_organs() -> None:
    found = {organ: at(-f.centroid_mm[0], -f.centroid_mm[2]) for organ, f in DEFAULT_SETTINGS.items()}
    flags = plausibility_flags(SCHEMA, found)
    assert position_notes({"aorta": ("misplaced",), **flags}) == (
        "left organs lie to the right of right ones (kidney_L, kidney_R); is the scan mirrored?",
        "organs lie on the opposite side of the body (Liver, spleen, stomach); is the scan mirrored?",
        "organs of the upper body lie below those of the lower one "
        "(kidney_L, kidney_R, Liver, spleen, urinary bladder); is the scan upside down?",
    )
    assert position_notes({"aorta": ("misplaced",)}) == position_notes({}) == ()


def test_nothing_found() -> None:
    assert plausibility_flags(SCHEMA, {}) == {}
