"""The model that comes with ZoomSeg on scans that it was not trained on."""

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from zoomseg.core.case import Case
from zoomseg.core.volume import Volume
from zoomseg.engine.device import Device
from zoomseg.engine.predict import Predictor
from zoomseg.io import bundle
from zoomseg.io.scans import read_image, read_label_values

DATA = os.environ.get("ZOOMSEG_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ZOOMSEG_DATA is not set: no real data on this machine")

LEAST = {"spleen": 0.92, "left kidney": 0.9, "right kidney": 0.85, "liver": 0.93, "aorta": 0.85}
"""Dice with a machine's reference of a torso CT at 3 mm, of another hospital than the training scans."""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(bundle.load(bundle.ABDOMEN_CT), Device(torch.device("cpu"), None))


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
    found = predictor.predict(Case("torso", image), keep=False).labels.data.numpy()
    for organ, least in LEAST.items():
        sided = organ.split()
        known = f"{sided[1]}_{sided[0]}" if len(sided) == 2 else organ
        assert dice(found == schema.class_of(organ), reference == names[known]) > least, organ


def test_a_slab_and_raw_intensities_far_beyond_the_window(predictor: Predictor) -> None:
    """Seven centimetres of a liver at full resolution, air and metal left as they are."""
    folder = Path(str(DATA)) / "ct_fullres"
    image = read_image(folder / "chaos_ct_case.nii.gz")
    reference, _ = read_label_values(folder / "chaos_ct_case_label.nii.gz")
    loud = image.data.clone()
    loud[0, :40, :40] = 30000
    found = predictor.predict(Case("slab", Volume(loud, image.grid)), keep=False).labels.data.numpy()
    assert dice(found == predictor.bundle.schema.class_of("liver"), reference > 0) > 0.9
