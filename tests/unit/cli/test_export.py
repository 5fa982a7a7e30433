"""``zoomseg export``: from a model folder to a zip; every problem in one line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from helpers.untrained_models import untrained_bundle
from zoomseg.backends.onnx_graph import write_graphs
from zoomseg.cli.main import main
from zoomseg.export.package import pip_line
from zoomseg.io import bundle


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    bundle.save(untrained_bundle(), folder)
    write_graphs(folder)
    return folder


def test_writes_the_zip_and_says_what_it_needs(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, half = tmp_path / "model.zip", tmp_path / "half.zip"
    assert run("export", model, "-o", whole) == 0
    assert capsys.readouterr().out.endswith(f" MB); it needs Python 3.11 or newer, and: {pip_line()}\n")
    assert run("export", model, "-o", half, "--half") == 0
    weights = []
    for path in (whole, half):
        with zipfile.ZipFile(path) as archive:
            weights.append(sum(i.file_size for i in archive.infolist() if "safetensors" in i.filename))
    assert weights[1] == pytest.approx(weights[0] / 2, rel=0.1)


def test_wrong_use_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        ((tmp_path / "none", "-o", tmp_path / "a.zip"), "no model folder"),
        ((model, "-o", tmp_path / "a.onnx"), "ends in .zip"),
    ):
        assert run("export", *arguments) == 2
        printed = capsys.readouterr().err
        assert reason in printed
        assert printed.count("\n") == 1
