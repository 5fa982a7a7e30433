"""Scans like and unlike those of the training, made of blocks of fat and muscle in air."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import tiny_dataset
from zoomseg.core.case import Case
from zoomseg.core.domain import MAX_CASES, Likeness, TrainingDomain
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.engine import domain
from zoomseg.engine.domain import compare
from zoomseg.engine.fingerprint import spread
from zoomseg.recipe.spec import IntensitySpec, Window, ZScore

CT = Window(kind="window", lower=-125, upper=275)
MR = ZScore(kind="zscore")
GRID = Grid.from_spacing((60, 50, 40), (5.0, 5.0, 5.0))
SCHEMA = LabelSchema.consecutive(["liver"])


def scan(seed: int = 0, fat: int = 6, wide: int = 44) -> Case:
    """Air, ``fat`` voxels of fat around muscle, ``wide`` voxels across and 30 deep; HU."""
    rng = np.random.default_rng(seed)
    data = np.full(GRID.shape, -1000.0)
    edge = (60 - wide) // 2
    data[edge : edge + wide, 10:40] = -70
    data[edge + fat : edge + wide - fat, 10 + fat : 40 - fat] = 55
    data += rng.normal(0, 12, GRID.shape)
    return Case(f"scan_{seed}", Volume(torch.from_numpy(data[None].astype(np.float32)), GRID))


def changed(case: Case, data: torch.Tensor) -> Case:
    return replace(case, image=Volume(data, case.image.grid))


def trained(intensity: IntensitySpec = CT, channel: str = "CT") -> TrainingDomain:
    cases = [scan(seed, fat=4 + seed) for seed in range(5)]
    if isinstance(intensity, ZScore):
        cases = [changed(case, case.image.data + 1100) for case in cases]
    return domain.describe([domain.sample(case) for case in cases], intensity, [channel], SCHEMA.names)


def test_what_training_shows_by_hand() -> None:
    known = trained()
    assert known.modality == "CT"
    assert known.darkest == (-125.0, -125.0)
    # 44 x 30 voxels of 25 mm2.
    assert known.cross_section_cm2 == pytest.approx((330.0, 330.0), rel=0.01)
    assert len(known.intensities) == 5
    assert all(list(row) == sorted(row) for row in known.intensities)
    assert known.intensities[0][-1] == pytest.approx(75, abs=5)


def test_a_scan_like_them_is_not_remarked_upon() -> None:
    assert compare(trained(), scan(9), CT) == Likeness((), 1.0)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_however_it_is_stored(order: tuple[int, int, int]) -> None:
    turned = Orientation(order, (True, False, True))
    case = scan(9)
    stored = Volume(case.image.reoriented(turned).data.contiguous(), turned.grid(GRID))
    assert compare(trained(), replace(case, image=stored), CT) == Likeness((), 1.0)


@pytest.mark.parametrize("modality", ["MR", "PT", "CR"])
def test_another_modality_is_refused(modality: str) -> None:
    line = rf"^the scan is of modality {modality}, the model was trained on CT; take a model .* --any-scan"
    with pytest.raises(ScanError, match=line):
        compare(trained(), replace(scan(9), modality=modality), CT)
    assert compare(trained(), replace(scan(9), modality="CT"), CT).warnings == ()
    assert compare(trained(channel="channel_0"), replace(scan(9), modality=modality), CT).warnings == ()


UNITS = {
    "stored values": lambda x: x + 1024,
    "mr": lambda x: (x + 1000) / 3,
    "pet": lambda x: ((x + 1000) / 100).clamp(min=0),
    "a tenth": lambda x: (x / 10).clamp(min=-20),
}


@pytest.mark.parametrize("unit", UNITS)
def test_another_unit_is_refused(unit: str) -> None:
    case = scan(9)
    other = changed(case, UNITS[unit](case.image.data))
    with pytest.raises(
        ScanError, match=r"^the scan is not in the unit .* theirs at -125 at most; convert it to Hounsfield"
    ):
        compare(trained(), other, CT)
    assert compare(trained(), other, CT, any_scan=True).trust == 0.0
    assert (
        compare(trained(), other, CT, any_scan=True)
        .warnings[0]
        .startswith("plainly unlike the training scans: the scan")
    )


def test_intensities_far_from_all_are_refused_and_from_some_warned_of() -> None:
    case = scan(9)
    lungs = changed(case, case.image.data.clamp(min=-125) * 2 + 200)  # fat at 60, muscle at 310
    lungs.image.data[:, :, :10] = -1000
    with pytest.raises(ScanError, match=r"^the scan's intensities are not like those"):
        compare(trained(), lungs, CT)
    bright = changed(case, torch.where(case.image.data > -300, case.image.data + 60, case.image.data))
    found = compare(trained(), bright, CT)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("its intensities are unlike those of the training scans (")
    assert 0.5 < found.trust < 1.0


def test_a_thin_body_is_warned_of_and_trusted_less() -> None:
    found = compare(trained(), scan(9, wide=22), CT)
    (text,) = [w for w in found.warnings if "cm2" in w]
    assert "measures 165 cm2 across, in the training scans 330 to 330" in text
    assert 0.3 < found.trust <= 0.5


def test_hounsfield_units_are_refused_by_a_model_of_mr() -> None:
    known = trained(MR, "MR")
    assert known.darkest[0] > 0
    alike = changed(scan(9), scan(9).image.data + 1100)
    assert compare(known, alike, MR).warnings == ()
    with pytest.raises(
        ScanError, match=r"^the scan has values far below zero, down to -10.*it may be CT; take"
    ):
        compare(known, scan(9), MR)


def test_few_negative_values_of_interpolation_are_no_hounsfield_units() -> None:
    known = trained(MR, "MR")
    alike = scan(9).image.data + 1100
    alike[:, :, ::8] -= 130  # ringing around the air
    assert compare(known, changed(scan(9), alike), MR).warnings == ()


def test_one_training_case_is_enough_to_know_the_unit() -> None:
    known = domain.describe([domain.sample(scan(0))], CT, ["CT"], SCHEMA.names)
    assert compare(known, scan(9), CT).warnings == ()


def test_organs_that_were_not_drawn_are_not_learned() -> None:
    labels = torch.zeros(GRID.shape, dtype=torch.uint8)
    labels[20:30, 20:30, 10:20] = 1
    case = replace(scan(0), labels=LabelMap(labels, GRID, SCHEMA))
    assert domain.sample(case).organs["liver"].volume_ml == pytest.approx(125.0)
    assert domain.sample(replace(case, annotated=frozenset())).organs == {}
    known = domain.describe([domain.sample(case)] * 5, CT, ["CT"], SCHEMA.names)
    assert known.organs["liver"].volume_ml == pytest.approx((125.0, 125.0))


def test_many_cases_are_thinned_out() -> None:
    ids = [f"{n}" for n in range(1000)]
    some = spread(ids, MAX_CASES)
    assert len(some) <= MAX_CASES
    assert some[0] == "0"
    assert int(some[-1]) > 900


def test_of_a_data_set(tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "data", 3)
    found = domain.samples(data, data.ids[:2])
    assert [sorted(sample.organs) for sample in found] == [["left kidney", "right kidney"]] * 2
