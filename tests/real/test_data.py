"""The real data sets can be opened, and one case of each agrees with the data set's README."""

import os
from pathlib import Path

import numpy as np
import pytest

from zoomseg.core.volume import Volume
from zoomseg.datasets.advice import hounsfield
from zoomseg.datasets.layouts import open_dataset
from zoomseg.io.scans import read_image

DATA = os.environ.get("ZOOMSEG_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ZOOMSEG_DATA is not set: no real data on this machine")


@pytest.mark.parametrize(
    ("folder", "cases", "labels", "ct"),
    [
        ("btcv", 24, 13, True),
        ("chaos_mr", 16, 4, False),
        ("hippocampus", 208, 2, False),
        ("openkbp", 32, 7, True),
    ],
)
def test_real_data_sets_open_and_load(folder: str, cases: int, labels: int, ct: bool) -> None:
    dataset = open_dataset(Path(str(DATA)) / folder)
    assert (len(dataset.cases), len(dataset.schema.names), dataset.is_ct) == (cases, labels, ct)
    case = dataset.load(dataset.cases[0])
    assert case.labels is not None
    assert case.labels.grid == case.image.grid
    assert np.isfinite(case.image.data).all()
    present = set(np.unique(case.labels.data).tolist()) - {0}
    allowed = dataset.schema.names if case.annotated is None else case.annotated
    assert present
    assert present <= {dataset.schema.class_of(name) for name in allowed}


@pytest.mark.parametrize(
    ("folder", "ct"), [("btcv", True), ("openkbp", True), ("chaos_mr", False), ("hippocampus", False)]
)
def test_ct_is_known_by_its_numbers(folder: str, ct: bool) -> None:
    """Clipped to a window and stored with 8 bits (BTCV), set to -1000 outside the body (OpenKBP), or
    unchanged."""
    dataset = open_dataset(Path(str(DATA)) / folder)
    for case in dataset.cases[:6]:
        assert hounsfield(dataset.load(case).image) == (ct,), case.id


@pytest.mark.parametrize(
    ("file", "ct"),
    [
        ("ct_torso_3mm/example_ct.nii.gz", True),
        ("ct_torso_3mm/example_ct_sm.nii.gz", True),
        ("ct_torso_3mm/example_mr_sm.nii.gz", False),
        ("ct_fullres/chaos_ct_case.nii.gz", True),
    ],
)
def test_ct_of_one_file_is_known_by_its_numbers(file: str, ct: bool) -> None:
    image = read_image(Path(str(DATA)) / file)
    assert hounsfield(image) == (ct,)
    for low, high in ((-160, 240), (-200, 300), (-1000, 400)):
        assert hounsfield(Volume(image.data.astype(np.float32).clip(low, high), image.grid)) == (ct,)


def test_btcv_slope_and_intercept_give_hounsfield_units() -> None:
    dataset = open_dataset(Path(str(DATA)) / "btcv")
    image = dataset.load(dataset.cases[0]).image
    assert image.data.min() == -125
    assert image.data.max() == 275


def test_openkbp_is_partially_annotated() -> None:
    dataset = open_dataset(Path(str(DATA)) / "openkbp")
    assert all(case.annotated is not None for case in dataset.cases)
    assert any(len(case.annotated or ()) < len(dataset.schema.names) for case in dataset.cases)
