"""A simulated folder of weights becomes one model: the task's parts are found and combined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import totalsegmentator_weights
from helpers.tiny_dataset import CPU
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import Volume
from zoomseg.importing.nnunet.run import read_models
from zoomseg.importing.totalsegmentator.run import import_task
from zoomseg.importing.totalsegmentator.tasks import TASKS
from zoomseg.inference.load import PredictionSettings, ready_predictor
from zoomseg.io import bundle


def scan() -> Volume:
    """Stored left to right reversed, as most CTs are."""
    data = np.random.default_rng(0).normal(60, 60, size=(20, 22, 18)).astype(np.float32)
    return Volume(data[None], Grid(data.shape, np.diag([-1.5, 1.5, 1.5, 1.0])))


def test_the_parts_of_a_task_are_joined_in_its_order(tmp_path: Path) -> None:
    home = totalsegmentator_weights.write(tmp_path / "home", "total_mr")
    import_task(home, tmp_path / "model", "total_mr")
    model = bundle.load(tmp_path / "model")
    assert model.schema.names == TASKS["total_mr"].labels
    assert model.schema.values == tuple(range(1, 51))
    assert [len(stage.labels) for stage in model.recipe.stages] == [29, 21]
    assert [stage.grid.overlap for stage in model.recipe.stages] == [(0.2, 0.2, 0.2)] * 2
    assert model.recipe.orientation == "canonical"
    predictor = ready_predictor(model, CPU, PredictionSettings("torch"))
    labels = predictor.predict(Case("a", scan()), keep=False).labels.data
    # Where the second part found something, the result is that of this part alone, on the reoriented scan.
    (part,) = (home / "nnunet" / "results").glob("Dataset851_*/*")
    turned = Volume(scan().data[:, ::-1], Grid(scan().grid.shape, np.diag([1.5, 1.5, 1.5, 1.0])))
    second = ready_predictor(read_models(part)["0"], CPU, PredictionSettings("torch", overlap=0.2))
    alone = second.predict(Case("a", turned), keep=False)
    muscles = alone.labels.data[::-1]
    assert (muscles > 0).mean() > 0.5
    # Where two logits are equal within float32 precision, either label is correct.
    assert (labels[muscles > 0] != muscles[muscles > 0] + 29).mean() < 1e-3


def test_a_task_of_one_part_has_its_labels_named_by_the_table(tmp_path: Path) -> None:
    home = totalsegmentator_weights.write(tmp_path / "home", "body")
    import_task(home / "nnunet" / "results", tmp_path / "model", "body")
    model = bundle.load(tmp_path / "model")
    assert model.schema.names == ("body_trunc", "body_extremities")
    assert model.recipe.largest_component == ("body_trunc",)
    assert model.recipe.stages[0].grid.overlap == 0.5
    assert model.recipe.name == "totalsegmentator-body"


def test_weights_that_are_not_there_are_named_and_never_downloaded(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"task 'total' needs the weights of data set 291, 292, 293, 294, 295"
    ):
        import_task(tmp_path, tmp_path / "model")
    with pytest.raises(ModelError, match="unknown task 'teeth'; supported: total, total_fast"):
        import_task(tmp_path, tmp_path / "model", "teeth")


def test_two_versions_of_a_data_set_are_not_guessed_between(tmp_path: Path) -> None:
    home = totalsegmentator_weights.write(tmp_path / "home", "body")
    (there,) = (home / "nnunet" / "results").iterdir()
    there.rename(there.with_name("Dataset299_older"))
    totalsegmentator_weights.write(tmp_path / "home", "body")
    with pytest.raises(
        ModelError, match=r"holds 2 models of data set 299 \(Dataset299_TotalSegm.*, Dataset299_o"
    ):
        import_task(home, tmp_path / "model", "body")


def test_a_data_set_of_other_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = totalsegmentator_weights.write(tmp_path / "home", "breasts")
    (there,) = (home / "nnunet" / "results").iterdir()
    there.rename(there.with_name("Dataset299_body"))
    (model,) = there.with_name("Dataset299_body").iterdir()
    model.rename(model.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres"))
    with pytest.raises(ModelError, match=r"Dataset299_body has 1 labels, data set 299 .* has 2"):
        import_task(home, tmp_path / "model", "body")
