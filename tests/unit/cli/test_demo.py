"""``zoomseg demo`` on tiny phantoms and a tiny network, for two steps."""

from __future__ import annotations

import csv
import io
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from zoomseg.cli import demo
from zoomseg.cli.demo import Demo
from zoomseg.cli.main import main
from zoomseg.core.errors import OutputError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.datasets.phantom import PHANTOM_SCHEMA, phantom_case
from zoomseg.inference import outputs as predictions
from zoomseg.io import bundle
from zoomseg.training import log, training_run

TINY = Demo(
    training_cases=2,
    held_out_cases=1,
    size="small",
    seconds=None,
    recipe={
        "coarse_voxels": 4000,
        "fine_patch_voxels": 4000,
        "base_channels": (2, 2),
        "max_channels": 4,
        "iterations": 2,
    },
)


def silent() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    demo.run(out, TINY, silent())
    return out


@pytest.mark.slow
def test_every_unseen_case_is_segmented_on_its_own_grid(finished: Path) -> None:
    files = sorted(p.name for p in (finished / "predictions").glob("*.nii.gz"))
    assert files == ["phantom_1000.nii.gz"]
    labels = nib.Nifti1Image.from_filename(finished / "predictions" / files[0])
    grid = phantom_case(1000, "small").image.grid
    assert labels.shape == grid.shape
    np.testing.assert_allclose(labels.affine, grid.affine, atol=1e-4)
    assert set(np.unique(np.asarray(labels.dataobj)).tolist()) <= {0, *PHANTOM_SCHEMA.values}


def test_every_organ_is_scored_and_shown(finished: Path) -> None:
    with (finished / "metrics.csv").open() as file:
        rows = [(row["case"], row["organ"]) for row in csv.DictReader(file)]
    assert sorted(rows) == sorted(("phantom_1000", name) for name in PHANTOM_SCHEMA.names)
    report = (finished / "report.html").read_text()
    assert "data:image/png" in report
    assert "right_adrenal_gland" in report


def test_no_test_case_was_trained_on(finished: Path) -> None:
    model = bundle.load(finished / "model")
    assert model.provenance["training_cases"] == ["phantom_0000", "phantom_0001"]
    assert model.provenance["complete"] is True
    assert [stage.name for stage in model.recipe.stages] == ["coarse", "fine"]


def test_steps_are_shown_as_the_commands_that_do_the_same(finished: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    demo.run(finished, TINY, console)
    text = console.export_text()
    for line in (
        f"2/4  zoomseg train {finished}/training -o {finished}/model -r {finished}/recipe.yaml",
        f"3/4  zoomseg predict {finished}/held-out/imagesTr -o {finished}/predictions -m {finished}/model",
        f"4/4  zoomseg evaluate {finished}/predictions {finished}/held-out -o {finished}",
    ):
        assert line in text


def test_an_interrupted_demo_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_power(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "segment_to_folder", out_of_power)
        with pytest.raises(KeyboardInterrupt):
            demo.run(tmp_path, TINY, silent())
    made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/imagesTr/*")}
    assert len(made) == 3
    trained = dict(bundle.load(tmp_path / "model").weights["fine"])
    monkeypatch.setattr(training_run, "start", out_of_power)
    demo.run(tmp_path, TINY, silent())
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/imagesTr/*")} == made
    again = bundle.load(tmp_path / "model").weights["fine"]
    assert all(bool((again[name] == weight).all()) for name, weight in trained.items())
    assert (tmp_path / "report.html").is_file()


def test_a_stopped_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = log.Log.write
    asked: list[int] = []

    def stopped_by_user(self: log.Log, row: log.LogRow) -> None:
        if not asked:  # a second request would not wait for the checkpoint
            os.kill(os.getpid(), signal.SIGINT)
            asked.append(row.step)
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "write", stopped_by_user)
        with pytest.raises(InterruptedTrainingError, match="the same command resumes"):
            demo.run(tmp_path, TINY, silent())
    assert not (tmp_path / "report.html").exists()
    demo.run(tmp_path, TINY, silent())
    assert bundle.load(tmp_path / "model").provenance["complete"] is True


def test_the_command_prints_the_scores_and_where_the_report_is(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "Demo", lambda: TINY)
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "-o", str(finished)])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "left_adrenal_gland" in out
    assert "mean of organs" in out
    assert out.splitlines()[-1] == f"Report: {finished / 'report.html'}"


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        demo.run(tmp_path / "file", TINY, silent())
