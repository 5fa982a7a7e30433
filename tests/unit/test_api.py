"""Models as objects: what the commands do, from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoomseg
from helpers.tiny_dataset import tiny_case, tiny_dataset, tiny_recipe
from zoomseg import api
from zoomseg.core.errors import GeometryError, LabelError, MemoryLimitError, ModelError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import Volume
from zoomseg.inference import memory_limits
from zoomseg.io import bundle
from zoomseg.io.scans import write_image
from zoomseg.recipe.load import dump


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("api")
    data = tiny_dataset(root / "data")
    (root / "r.yaml").write_text(dump(tiny_recipe(together=True, iterations=120, lr=2e-2)))
    zoomseg.train(data.root, root / "model", str(root / "r.yaml"), folds=4, device="cpu")
    return root / "model"


def test_a_loaded_model_predicts_files_and_volumes_alike(trained: Path, tmp_path: Path) -> None:
    model = zoomseg.load(trained, device="cpu")
    image, truth = tiny_case(7)
    write_image(tmp_path / "scan.nii.gz", image)
    one, two = model.predict(image), model.predict(tmp_path / "scan.nii.gz")
    assert np.array_equal(one.labels.data, two.labels.data)
    overlap = (one.labels.data > 0) & (truth.data > 0)
    assert 2 * int(overlap.sum()) / int((one.labels.data > 0).sum() + (truth.data > 0).sum()) > 0.7
    assert one.schema.names == ("left kidney", "right kidney")
    assert [row.organ for row in one.summary] == ["left kidney", "right kidney"]
    assert one.summary[0].volume_ml == pytest.approx(int((one.labels.data == 1).sum()) * 0.012)
    assert one.probabilities is not None
    assert one.probabilities.source == "fine"
    total = one.probabilities.probabilities.sum(axis=0)
    assert np.allclose(total, np.ones_like(total), atol=1e-3)


def test_a_model_trained_from_python_has_its_graphs(trained: Path) -> None:
    assert set(bundle.load(trained).graphs) == {"coarse", "fine"}


def test_notes_are_results_and_warnings(trained: Path, tmp_path: Path) -> None:
    model, (image, _) = zoomseg.load(trained, device="cpu"), tiny_case(7)
    wide = Grid.from_spacing(image.grid.shape, (6.0, 6.0, 3.0))
    with pytest.warns(UserWarning, match="^scan: the body in it measures"):
        found = model.predict(Volume(image.data, wide))
    assert [note.split(" measures")[0] for note in found.notes] == ["the body in it"]
    assert all(row.confidence is None or row.confidence < 0.2 for row in found.summary)


def test_a_scan_of_another_unit_is_refused(trained: Path, tmp_path: Path) -> None:
    image, _ = tiny_case(7)
    write_image(tmp_path / "scan.nii.gz", Volume(image.data / 4 + 150, image.grid))
    with pytest.raises(ScanError, match=r"^the scan is not in the unit"):
        zoomseg.load(trained, device="cpu").predict(tmp_path / "scan.nii.gz")


def test_a_scan_that_does_not_fit_is_refused_before_it_is_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoomseg.load(trained, device="cpu")
    write_image(tmp_path / "scan.nii.gz", tiny_case(7)[0])
    monkeypatch.setattr(memory_limits, "free_ram", lambda: 1)
    monkeypatch.setattr(api, "read_scan", lambda *given, **named: pytest.fail("it was read"))
    with pytest.raises(MemoryLimitError, match=r"the scan and its label map would need .* are free; close"):
        model.predict(tmp_path / "scan.nii.gz")


def test_organs_are_chosen_by_name(trained: Path) -> None:
    model = zoomseg.load(trained, device="cpu")
    found = model.predict(tiny_case(7)[0], organs=["right kidney"])
    assert set(np.unique(found.labels.data).tolist()) <= {0, 2}
    assert [row.organ for row in found.summary] == ["right kidney"]
    with pytest.raises(LabelError, match="unknown label 'spleen'"):
        model.predict(tiny_case(7)[0], organs=["spleen"])


def test_wrong_channels_and_missing_models_are_refused(trained: Path, tmp_path: Path) -> None:
    image, _ = tiny_case(7)
    with pytest.raises(GeometryError, match="2 channel"):
        zoomseg.load(trained, device="cpu").predict(Volume(np.repeat(image.data, 2, axis=0), image.grid))
    with pytest.raises(ModelError):
        zoomseg.load(tmp_path / "nothing")


def test_training_resumes_from_python(trained: Path) -> None:
    data = trained.parent / "data"
    before = zoomseg.load(trained, device="cpu").predict(tiny_case(5)[0]).labels.data
    again = zoomseg.train(data, trained, resume=True, device="cpu")
    assert np.array_equal(again.predict(tiny_case(5)[0]).labels.data, before)


def test_a_model_is_fine_tuned_from_python(trained: Path, tmp_path: Path) -> None:
    data = trained.parent / "data"
    zoomseg.train(data, tmp_path / "m", str(trained.parent / "r.yaml"), init=trained, epochs=1, device="cpu")
    assert bundle.load(tmp_path / "m").provenance["init"] == {
        "model": "model",
        "recipe": "tiny",
        "tensors": 50,
    }
