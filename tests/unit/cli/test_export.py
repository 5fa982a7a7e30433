"""``zoomseg export``: from a model folder to a zip; one line for everything that is wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from helpers.export_packages import untrained
from helpers.tiny_dataset import SCHEMA, tiny_recipe
from zoomseg.backends import onnx_graph
from zoomseg.cli.main import main
from zoomseg.io import bundle


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(onnx_graph, "to_onnx", lambda *arguments: f"half: {arguments[-1]}".encode())
    bundle.save(untrained(tiny_recipe(together=True), SCHEMA), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("half", [False, True])
def test_writes_the_zip(half: bool, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.zip"
    assert run("export", model, "-o", out, *(["--half"] if half else [])) == 0
    assert f"{out} written (0." in capsys.readouterr().out
    with zipfile.ZipFile(out) as archive:
        assert archive.read("networks/fine.onnx") == f"half: {half}".encode()


def test_wrong_use_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        ((tmp_path / "none", "-o", tmp_path / "a.zip"), "no model folder"),
        ((model, "-o", tmp_path / "a.onnx"), "ends in .zip"),
    ):
        assert run("export", *arguments) == 2
        printed = capsys.readouterr().err
        assert reason in printed
        assert printed.count("\n") == 1
