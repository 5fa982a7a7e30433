"""Scans like and unlike those of the training, made of blocks of fat and muscle in air."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.block_scans import CT, GRID, MR, SCHEMA, changed, scan, trained
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Orientation
from zoomseg.core.volume import Volume
from zoomseg.inference.domain_similarity import compare
from zoomseg.io.training_domain import DomainSimilarity
from zoomseg.planning import training_domain


def test_a_scan_like_them_is_not_remarked_upon() -> None:
    assert compare(trained(), scan(9), CT) == DomainSimilarity((), 1.0)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_however_it_is_stored(order: tuple[int, int, int]) -> None:
    turned = Orientation(order, (True, False, True))
    case = scan(9)
    stored = Volume(case.image.reoriented(turned).data, turned.grid(GRID))
    assert compare(trained(), replace(case, image=stored), CT) == DomainSimilarity((), 1.0)


@pytest.mark.parametrize("modality", ["MR", "PT", "CR"])
def test_another_modality_is_refused(modality: str) -> None:
    line = rf"^the scan is of modality {modality}, the model was trained on CT; use a model .* --any-scan"
    with pytest.raises(ScanError, match=line):
        compare(trained(), replace(scan(9), modality=modality), CT)
    assert compare(trained(), replace(scan(9), modality="CT"), CT).warnings == ()
    assert compare(trained(channel="channel_0"), replace(scan(9), modality=modality), CT).warnings == ()


UNITS = {
    "stored values": lambda x: x + 1024,
    "mr": lambda x: (x + 1000) / 3,
    "pet": lambda x: ((x + 1000) / 100).clip(min=0),
    "a tenth": lambda x: (x / 10).clip(min=-20),
}


@pytest.mark.parametrize("unit", UNITS)
def test_another_unit_is_refused(unit: str) -> None:
    case = scan(9)
    other = changed(case, UNITS[unit](case.image.data))
    with pytest.raises(
        ScanError, match=r"^the scan is not in the unit .* theirs at -125 at most; convert it to Hounsfield"
    ):
        compare(trained(), other, CT)
    assert compare(trained(), other, CT, any_scan=True).confidence_factor == 0.0
    assert (
        compare(trained(), other, CT, any_scan=True)
        .warnings[0]
        .startswith("clearly unlike the training scans: the scan")
    )


def test_intensities_far_from_all_are_refused_and_from_some_warned_of() -> None:
    case = scan(9)
    lungs = changed(case, case.image.data.clip(min=-125) * 2 + 200)  # fat at 60, muscle at 310
    lungs.image.data[:, :, :10] = -1000
    with pytest.raises(ScanError, match=r"^the scan's intensities differ from those"):
        compare(trained(), lungs, CT)
    bright = changed(case, np.where(case.image.data > -300, case.image.data + 60, case.image.data))
    found = compare(trained(), bright, CT)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("its intensities are unlike those of the training scans (")
    assert 0.5 < found.confidence_factor < 1.0


def test_a_thin_body_is_warned_of_and_trusted_less() -> None:
    found = compare(trained(), scan(9, wide=22), CT)
    (text,) = [w for w in found.warnings if "cm2" in w]
    assert "measures 165 cm2 across, in the training scans 330 to 330" in text
    assert 0.3 < found.confidence_factor <= 0.5


def test_hounsfield_units_are_refused_by_a_model_of_mr() -> None:
    known = trained(MR, "MR")
    assert known.darkest[0] > 0
    alike = changed(scan(9), scan(9).image.data + 1100)
    assert compare(known, alike, MR).warnings == ()
    with pytest.raises(
        ScanError, match=r"^the scan has values far below zero, down to -10.*it may be CT; use"
    ):
        compare(known, scan(9), MR)


def test_few_negative_values_of_interpolation_are_no_hounsfield_units() -> None:
    known = trained(MR, "MR")
    alike = scan(9).image.data + 1100
    alike[:, :, ::8] -= 130  # ringing around the air
    assert compare(known, changed(scan(9), alike), MR).warnings == ()


def test_one_training_case_is_enough_to_know_the_unit() -> None:
    known = training_domain.describe([training_domain.sample(scan(0))], CT, ["CT"], SCHEMA.names)
    assert compare(known, scan(9), CT).warnings == ()
