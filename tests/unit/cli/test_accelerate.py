"""``zoomseg accelerate``: the report on the new model, and every wrong use in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.cli.main import main
from zoomseg.io import bundle
from zoomseg.io.scans import write_image
from zoomseg.recipe.spec import DilatedForeground
from zoomseg.training import acceleration
from zoomseg.training.acceleration import Acceleration
from zoomseg.training.candidate_regions import ChosenRegion
from zoomseg.training.loop import Split


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    for seed in range(2):
        write_image(tmp_path / "scans" / f"scan_{seed}.nii.gz", tiny_case(seed)[0])
    return tmp_path / "scans"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    bundle.save(untrained_bundle(), tmp_path / "slow")
    return tmp_path / "slow"


def test_region_recall_tiles_and_dice_are_told(
    scans: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roi = DilatedForeground(of="region", radius_vox=4.0, threshold=0.02)
    chosen = ChosenRegion(roi, 0.99912, {"liver": 1.0, "spleen": 0.985}, 0.317)
    for step in ("label", "region_stage", "write"):
        monkeypatch.setattr(Acceleration, step, lambda *_: None)
    monkeypatch.setattr(Acceleration, "choose", lambda *_: {"whole": chosen})
    monkeypatch.setattr(Acceleration, "compare", lambda *_: {"liver": 1.0, "spleen": 0.9985})
    monkeypatch.setattr(Acceleration, "split", Split(("scan_0",), ("scan_1",)))
    asked = ("accelerate", model, scans, "-o", tmp_path / "fast", "--device", "cpu")
    assert run(*asked, "--time-budget", "90s") == 0
    told = capsys.readouterr().out
    assert "stage 'whole': 32% of the tiles" in told
    assert "(threshold 0.02, radius 4 voxels) holds 99.912% or more" in told
    assert "lowest organ: spleen, 98.50%" in told
    assert "in 1 held-out scans: mean 0.9992, lowest 0.9985 (spleen)" in told
    assert acceleration.reopen([str(model)], scans, tmp_path / "fast").request.seconds == 90
    assert run(*asked) == 2
    assert "give --resume to continue it" in capsys.readouterr().err
    assert run(*asked, "--resume") == 0
    assert run(*asked, "--resume", "--seed", "0") == 0
    assert run(*asked, "--resume", "--seed", "5") == 2
    assert "seed 5 cannot be given to resume" in capsys.readouterr().err


def test_time_and_epochs_are_not_both_given(
    scans: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("accelerate", model, scans, "-o", tmp_path / "fast")
    assert run(*asked, "--time-budget", "90s", "--epochs", "3") == 2
    assert "give --time-budget or --epochs, not both" in capsys.readouterr().err
