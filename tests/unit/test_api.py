"""Models as objects: what the commands do, from Python."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import zoomseg
from helpers.tiny_dataset import tiny_case, tiny_dataset, tiny_recipe
from zoomseg import api
from zoomseg.api import Result
from zoomseg.core.errors import (
    DatasetError,
    GeometryError,
    LabelError,
    MemoryLimitError,
    ModelError,
    OutputError,
    ScanError,
    TrainingError,
    ZoomSegError,
)
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import Volume
from zoomseg.evaluation.saved import read_scores
from zoomseg.inference import memory_limits
from zoomseg.inference.batch import Failed
from zoomseg.inference.memory_limits import MemoryLimits
from zoomseg.io import bundle
from zoomseg.io.scans import read_label_values, write_image
from zoomseg.recipe.load import dump
from zoomseg.training import validation
from zoomseg.training.validation import Validation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("api")
    data = tiny_dataset(root / "data")
    (root / "r.yaml").write_text(dump(tiny_recipe(together=True, iterations=120, lr=2e-2)))
    zoomseg.train(data.root, root / "model", str(root / "r.yaml"), folds=4, device="cpu")
    return root / "model"


@pytest.mark.slow
def test_a_loaded_model_predicts_files_and_volumes_alike(trained: Path, tmp_path: Path) -> None:
    model = zoomseg.load(trained, device="cpu")
    image, truth = tiny_case(7)
    write_image(tmp_path / "scan.nii.gz", image)
    one = model.predict(image, probabilities=True)
    two = model.predict(tmp_path / "scan.nii.gz", probabilities=True)
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
    labels_alone = model.predict(image)
    assert np.array_equal(labels_alone.labels.data, one.labels.data)
    assert labels_alone.probabilities is None


def test_a_model_trained_from_python_has_its_graphs(trained: Path) -> None:
    assert set(bundle.load(trained).graphs) == {"coarse", "fine"}


def test_held_out_cases_are_scored_and_calibrate_the_model(trained: Path) -> None:
    (case,) = json.loads((trained / "training" / "job.json").read_text())["validation"]
    scores = read_scores(trained / "validation")
    assert scores is not None
    assert [scored.id for scored in scores.cases] == [case]
    assert json.loads((trained / "validation" / "summary.json").read_text())["cases"] == 1
    calibration = bundle.load(trained).calibration
    assert calibration is not None
    assert calibration.cases == 1


def test_a_held_out_case_that_cannot_be_segmented_is_a_warning(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = read_scores(trained / "validation")
    assert scores is not None
    found = Validation(scores, (Failed("case_2", "damaged"),))
    monkeypatch.setattr(validation, "validate", lambda *given: found)
    with pytest.warns(UserWarning, match="^case_2: damaged$") as told:
        zoomseg.train(trained.parent / "data", trained, resume=True, device="cpu")
    (warning,) = (one for one in told if "damaged" in str(one.message))
    assert warning.filename == __file__


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
    with pytest.raises(ScanError, match=r"^the scan is not in the unit.*or any_scan=True in Python"):
        zoomseg.load(trained, device="cpu").predict(tmp_path / "scan.nii.gz")
    with pytest.warns(UserWarning, match="not in the unit"):
        found = zoomseg.load(trained, device="cpu", any_scan=True).predict(tmp_path / "scan.nii.gz")
    assert found.labels.grid.same_as(image.grid)


def test_what_the_commands_refuse_is_refused_in_python(trained: Path, tmp_path: Path) -> None:
    """Otherwise one of the two would be ignored, and with it cases that should be held out."""
    data = trained.parent / "data"
    with pytest.raises(DatasetError, match="fold 2 is given without the number of folds"):
        zoomseg.train(data, tmp_path / "m", str(trained.parent / "r.yaml"), fold=2, device="cpu")
    with pytest.raises(TrainingError, match="give seconds or epochs, not both"):
        zoomseg.train(data, tmp_path / "m", seconds=60, epochs=5, device="cpu")
    with pytest.raises(DatasetError, match="tolerance_mm and tolerance exclude each other"):
        zoomseg.evaluate(data, data, tmp_path / "scores", tolerance_mm=2, tolerance="flare22")
    assert not any(tmp_path.iterdir())


def test_a_scan_that_does_not_fit_is_refused_before_it_is_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoomseg.load(trained, device="cpu")
    write_image(tmp_path / "scan.nii.gz", tiny_case(7)[0])
    monkeypatch.setattr(memory_limits, "free_ram", lambda: 1)
    monkeypatch.setattr(api, "read_scan", lambda *given, **named: pytest.fail("it was read"))
    with pytest.raises(MemoryLimitError, match=r"the scan and its label map would need .* are free; close"):
        model.predict(tmp_path / "scan.nii.gz")


def test_predictions_are_held_as_a_whole_only_for_their_probabilities(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, held = zoomseg.load(trained, device="cpu"), []
    write_image(tmp_path / "scan.nii.gz", tiny_case(7)[0])
    admit, fit = model._predictor.admit, MemoryLimits.fit

    def admitted(*given: Any, keep: bool) -> None:
        held.append(keep)
        admit(*given, keep=keep)

    def fitted(self: MemoryLimits, view: Any, work: Any, whole: bool, *more: Any) -> Any:
        held.append(whole)
        return fit(self, view, work, whole, *more)

    monkeypatch.setattr(model._predictor, "admit", admitted)
    monkeypatch.setattr(MemoryLimits, "fit", fitted)
    model.predict(tmp_path / "scan.nii.gz")
    assert held[:2] == [False, True]  # the last stage reads the first
    assert set(held[2:]) == {False}
    held.clear()
    model.predict(tmp_path / "scan.nii.gz", probabilities=True)
    assert set(held) == {True}


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
    same: dict[str, Any] = {"recipe": str(trained.parent / "r.yaml"), "folds": 4, "fold": 0, "seed": 0}
    for given in ({}, same):
        again = zoomseg.train(data, trained, resume=True, device="cpu", **given)
        assert np.array_equal(again.predict(tiny_case(5)[0]).labels.data, before)


@pytest.mark.parametrize(
    "given", [{"recipe": "zhou2016-2d-vote"}, {"folds": 5}, {"fold": 3}, {"seed": 1}, {"init": "abdomen-ct"}]
)
def test_a_resumed_training_keeps_its_settings(trained: Path, given: dict[str, Any]) -> None:
    (setting,) = given
    with pytest.raises(TrainingError, match=rf"^{setting} .* cannot be given to resume the training"):
        zoomseg.train(trained.parent / "data", trained, resume=True, device="cpu", **given)


def test_a_model_is_fine_tuned_from_python(trained: Path, tmp_path: Path) -> None:
    data = trained.parent / "data"
    zoomseg.train(data, tmp_path / "m", str(trained.parent / "r.yaml"), init=trained, epochs=1, device="cpu")
    assert bundle.load(tmp_path / "m").provenance["init"] == {
        "model": "model",
        "recipe": "tiny",
        "tensors": 50,
    }


class TestScansInMemory:
    """Every kind is one scan; the tests of ``io.memory_images`` cover each of them."""

    def test_they_are_segmented_as_the_file_is(self, trained: Path, tmp_path: Path) -> None:
        model, (image, _) = zoomseg.load(trained, device="cpu"), tiny_case(7)
        write_image(tmp_path / "scan.nii.gz", image)
        of_file = model.predict(tmp_path / "scan.nii.gz")
        loaded = nib.load(tmp_path / "scan.nii.gz")
        of_sitk = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
        of_array = model.predict(loaded.get_fdata(), affine=loaded.affine)
        for found in (model.predict(loaded), model.predict(of_sitk), of_array):
            assert np.array_equal(found.labels.data, of_file.labels.data)
            assert found.labels.grid.same_as(of_file.labels.grid)
        assert (of_file.labels.data > 0).any()

    def test_what_is_no_scan_is_one_line(self, trained: Path, tmp_path: Path) -> None:
        model = zoomseg.load(trained, device="cpu")
        with pytest.raises(ScanError, match="give its affine"):
            model.predict(np.zeros((4, 4, 4)))
        with pytest.raises(ScanError, match="files know their own"):
            model.predict(tmp_path / "scan.nii.gz", affine=np.eye(4))


class TestResult:
    @pytest.fixture(scope="class")
    def found(self, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
        scan = tmp_path_factory.mktemp("result") / "scan.nii.gz"
        write_image(scan, tiny_case(7)[0])
        return zoomseg.load(trained, device="cpu").predict(scan)

    @pytest.mark.parametrize("name", ["labels.nii.gz", "labels.nrrd", "labels.mha"])
    def test_is_saved_with_the_values_of_files(self, found: Result, tmp_path: Path, name: str) -> None:
        values, grid = read_label_values(found.save(tmp_path / name))
        assert np.array_equal(values, found.schema.decode(found.labels.data))
        assert grid.same_as(found.labels.grid)

    def test_is_saved_for_slicer(self, found: Result, tmp_path: Path) -> None:
        header = found.save(tmp_path / "labels.seg.nrrd").read_bytes().split(b"\n\n")[0].decode()
        assert "Segment0_Name:=left kidney" in header

    def test_of_another_format_is_refused(self, found: Result, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="cannot write this format"):
            found.save(tmp_path / "labels.png")

    def test_is_an_image_of_other_libraries(self, found: Result) -> None:
        values = found.schema.decode(found.labels.data)
        assert np.array_equal(np.asarray(found.to_nibabel().dataobj), values)
        assert np.array_equal(sitk.GetArrayFromImage(found.to_sitk()).T, values)

    def test_is_a_table(self, found: Result) -> None:
        table = found.to_dataframe()
        assert list(table.index) == ["left kidney", "right kidney"]
        assert table.loc["left kidney", "volume_ml"] == found.summary[0].volume_ml
        assert list(table["flags"]) == [row.flags for row in found.summary]

    def test_says_what_to_install(self, found: Result, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, call in (("pandas", found.to_dataframe), ("SimpleITK", found.to_sitk)):
            monkeypatch.setitem(sys.modules, module, None)
            with pytest.raises(ZoomSegError, match=f"{module} is not installed: pip install {module}"):
                call()

    def test_shows_its_organs_and_a_picture(self, found: Result) -> None:
        shown = found._repr_html_()
        assert 'src="data:image/jpeg;base64,' in shown
        row = found.summary[0]
        assert f"left kidney</td><td>{row.volume_ml:.1f}</td>" in shown
        assert found.plot().height == 340
        assert repr(found) == "<Result: 2 of 2 organs found, 0 flagged, 24 x 20 x 16 voxels>"


def test_a_model_says_what_it_is(trained: Path) -> None:
    assert repr(zoomseg.load(trained, device="cpu")).startswith("<Model: tiny, 2 organs, on ")


def test_public_names_are_at_hand_and_imported_when_asked_for() -> None:
    assert zoomseg.__version__ == importlib.metadata.version("zoomseg")
    assert (zoomseg.Result, zoomseg.Volume) == (Result, Volume)
    assert set(zoomseg.__all__) <= set(dir(zoomseg))
    assert all(getattr(zoomseg, name) is not None for name in zoomseg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = zoomseg.Nothing
    heavy = "import sys, zoomseg; sys.exit(any(m in sys.modules for m in ('numpy', 'torch', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
