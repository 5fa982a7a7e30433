"""The included model on scans that it was not trained on."""

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.core.errors import ScanError
from zoomseg.core.volume import Volume
from zoomseg.inference.domain_similarity import compare
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.scans import read_image, read_label_values

DATA = os.environ.get("ZOOMSEG_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ZOOMSEG_DATA is not set: no real data on this machine")

LEAST = {
    "spleen": 0.95,
    "left kidney": 0.95,
    "right kidney": 0.94,
    "gallbladder": 0.88,
    "liver": 0.94,
    "aorta": 0.89,
    "stomach": 0.75,
}
"""Lowest accepted Dice on a torso CT at 3 mm from another hospital than the training scans, with a reference
made by another program. The stomach had 0.85 before the coarse network was trained alone, and has 0.77 since
(`benchmarks/results/2026-11-30-abdomen-ct.md`)."""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(bundle.load(bundle.ABDOMEN_CT), Device("cpu"))


@pytest.fixture(scope="module")
def torso() -> tuple[Volume, npt.NDArray[np.int64], dict[str, int]]:
    folder = Path(str(DATA)) / "ct_torso_3mm"
    values, _ = read_label_values(folder / "example_ct_reference.nii.gz")
    names = json.loads((folder / "example_seg_labels.json").read_text())
    return read_image(folder / "example_ct.nii.gz"), values, names


def dice(found: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> float:
    return 2 * float((found & reference).sum()) / float(found.sum() + reference.sum())


def test_a_torso_of_another_hospital(
    predictor: Predictor, torso: tuple[Volume, npt.NDArray[np.int64], dict[str, int]]
) -> None:
    image, reference, names = torso
    schema = predictor.bundle.schema
    result = predictor.predict(Case("torso", image), keep=False)
    found = result.labels.data
    assert result.confidence_factor == 1.0
    assert result.notes == ()  # nothing is found in the pelvis, from which it would have to be removed
    for organ, least in LEAST.items():
        sided = organ.split()
        known = f"{sided[1]}_{sided[0]}" if len(sided) == 2 else organ
        assert dice(found == schema.class_of(organ), reference == names[known]) > least, organ


def test_a_slab_and_raw_intensities_far_beyond_the_window(predictor: Predictor) -> None:
    """Seven centimetres of a liver at full resolution, with unclipped intensities of air and metal."""
    folder = Path(str(DATA)) / "ct_fullres"
    image = read_image(folder / "chaos_ct_case.nii.gz")
    reference, _ = read_label_values(folder / "chaos_ct_case_label.nii.gz")
    loud = image.data.copy()
    loud[0, :40, :40] = 30000
    found = predictor.predict(Case("slab", Volume(loud, image.grid)), keep=False).labels.data
    assert dice(found == predictor.bundle.schema.class_of("liver"), reference > 0) > 0.9


@pytest.mark.parametrize("scan", ["chaos_mr/imagesTr/chaos_02_0000", "ct_torso_3mm/example_mr_sm"])
def test_magnetic_resonance_is_refused(predictor: Predictor, scan: str) -> None:
    image = read_image(Path(str(DATA)) / f"{scan}.nii.gz")
    with pytest.raises(ScanError, match=r"^the scan is not in the unit .* convert it to Hounsfield units"):
        predictor.predict(Case("mr", image))


def test_a_head_is_warned_of(predictor: Predictor) -> None:
    image = read_image(Path(str(DATA)) / "openkbp" / "imagesTr" / "pt_13_0000.nii.gz")
    model = predictor.bundle
    assert model.domain is not None
    found = compare(model.domain, Case("head", image), model.recipe.intensity)
    assert found.confidence_factor < 0.75
    assert "cm2 across" in found.warnings[0]
