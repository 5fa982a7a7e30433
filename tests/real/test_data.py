"""The real data sets open, and one case of each reads as its README says."""

import os
from pathlib import Path

import pytest
import torch

from zoomseg.io.dataset import open_dataset

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
    assert torch.isfinite(case.image.data).all()
    present = set(torch.unique(case.labels.data).tolist()) - {0}
    allowed = dataset.schema.names if case.annotated is None else case.annotated
    assert present
    assert present <= {dataset.schema.class_of(name) for name in allowed}


def test_btcv_slope_and_intercept_give_hounsfield_units() -> None:
    dataset = open_dataset(Path(str(DATA)) / "btcv")
    image = dataset.load(dataset.cases[0]).image
    assert image.data.min() == -125
    assert image.data.max() == 275


def test_openkbp_is_partially_annotated() -> None:
    dataset = open_dataset(Path(str(DATA)) / "openkbp")
    assert all(case.annotated is not None for case in dataset.cases)
    assert any(len(case.annotated or ()) < len(dataset.schema.names) for case in dataset.cases)
