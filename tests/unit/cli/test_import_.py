"""``zoomseg import nnunet``: its output, and every problem in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import nnunet_models, totalsegmentator_weights
from zoomseg.cli import main as module
from zoomseg.cli.main import main
from zoomseg.core import extras
from zoomseg.io import bundle


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_model_is_written_and_said_how_to_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = nnunet_models.write(tmp_path / "given", folds=("0", "1"))
    assert run("import", "nnunet", given, "-o", tmp_path / "model", "--folds", "1") == 0
    assert f"zoomseg predict SCAN -m {tmp_path / 'model'} -o OUT" in capsys.readouterr().out
    model = bundle.load(tmp_path / "model")
    assert model.provenance["fold"] == "1"
    assert list(model.graphs) == ["whole"]


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", "nnunet", tmp_path, "-o", tmp_path / "model") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_torch_the_line_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.cli.get_command(None, "import") is not None  # type: ignore[arg-type]
    monkeypatch.setattr(extras, "installed", lambda name: name != "torch")
    assert run("import", "nnunet", tmp_path, "-o", tmp_path / "model") == 2
    assert (
        "zoomseg import needs torch, which is not installed: pip install '.[train]'"
        in capsys.readouterr().err
    )


def test_a_task_of_totalsegmentator_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = totalsegmentator_weights.write(tmp_path / "home", "breasts")
    asked = ("import", "totalsegmentator", home, "-o", tmp_path / "model")
    assert run(*asked, "--task", "breasts") == 0
    assert f"zoomseg predict SCAN -m {tmp_path / 'model'} -o OUT" in capsys.readouterr().out
    assert bundle.load(tmp_path / "model").schema.names == ("breast",)
    assert run(*asked, "--folds", "0") == 2
    assert "one folder of weights is read" in capsys.readouterr().err
    for option in (("--orientation", "LAS"), ("--configuration", "3d_fullres")):
        assert run(*asked, *option) == 2
        assert "--orientation and --configuration are for models of nnU-Net" in capsys.readouterr().err
    assert run("import", "nnunet", home, "-o", tmp_path / "other", "--task", "body") == 2
    assert "--task is for models of TotalSegmentator" in capsys.readouterr().err
