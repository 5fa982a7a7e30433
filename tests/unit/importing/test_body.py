"""A model restricted to the body predicts the same inside it, and background outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import nnunet_models
from helpers.tiny_dataset import CPU
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import Volume
from zoomseg.importing.body import within_body
from zoomseg.importing.nnunet.run import import_models, read_models
from zoomseg.inference.load import ready_predictor
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle


@pytest.fixture
def model(tmp_path: Path) -> Bundle:
    return read_models(nnunet_models.write(tmp_path / "given"))["0"]


def test_air_is_background_and_its_tiles_are_not_computed(model: Bundle) -> None:
    data = np.full((48, 30, 20), -1000, dtype=np.float32)
    body = np.zeros(data.shape, dtype=bool)
    body[4:20, 6:24, :] = True
    data[body] = np.random.default_rng(0).normal(60, 60, size=int(body.sum())).clip(-150, 300)
    case = Case("a", Volume(data[None], Grid(data.shape, np.diag([1.25, 1.5, 3.0, 1.0]))))
    everywhere = ready_predictor(model, CPU).predict(case)
    inside = ready_predictor(within_body(model), CPU).predict(case)
    assert inside.records[0].tiles < everywhere.records[0].tiles
    assert (everywhere.labels.data[~body] > 0).any()
    assert not inside.labels.data[~body].any()
    assert (inside.labels.data[body] > 0).any()


def test_what_is_no_ct_has_no_such_mask(model: Bundle) -> None:
    with pytest.raises(ModelError, match="first channel is 'T2': leave --body out"):
        within_body(replace(model, channel_names=("T2",)))


def test_it_is_asked_for_at_import(tmp_path: Path) -> None:
    given = nnunet_models.write(tmp_path / "given")
    import_models([given], tmp_path / "model", body=True)
    assert bundle.load(tmp_path / "model").recipe.stages[0].roi.kind == "body_mask"


def test_every_model_must_be_of_ct(tmp_path: Path) -> None:
    ct, other = nnunet_models.write(tmp_path / "ct"), nnunet_models.write(tmp_path / "other")
    dataset = other / "dataset.json"
    dataset.write_text(dataset.read_text().replace('"CT"', '"image"'))
    with pytest.raises(ModelError, match="first channel is 'image': leave --body out"):
        import_models([ct, other], tmp_path / "model", body=True)
