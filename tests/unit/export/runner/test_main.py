"""A package runs by itself: without torch, without the installed ZoomSeg, in a process of its own."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.export_packages import untrained
from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_recipe
from zoomseg.backends import compilers
from zoomseg.core.case import Case
from zoomseg.export.package import export
from zoomseg.export.runner import main as runner
from zoomseg.export.runner import pipeline, predict
from zoomseg.inference.predictor import Predictor
from zoomseg.io.bundle import Bundle
from zoomseg.io.scans import read_label_values, write_image

SPY = """
import runpy, sys
archive = sys.argv[1]
sys.argv = sys.argv[1:]
try:
    runpy.run_path(archive, run_name="__main__")
except SystemExit as stop:
    code = stop.code
names = {name.split(".")[0] for name in sys.modules}
print("|", code, "torch" in names, sys.modules["zoomseg"].__file__, *sorted(names & FOREIGN))
"""
FOREIGN = {
    "SimpleITK",
    "array_api_compat",
    "cc3d",
    "isal",
    "pandas",
    "pydantic",
    "click",
    "rich",
    "matplotlib",
    "onnx",
}


@pytest.fixture(scope="module")
def model() -> Bundle:
    return untrained(tiny_recipe(together=True), SCHEMA, seed=2)


@pytest.fixture(scope="module")
def archive(model: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "model.zip"
    export(model, path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    write_image(path, tiny_case(9)[0])
    return path


def execute(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_it_runs_without_torch_and_without_the_installed_package(
    archive: Path, model: Bundle, scan: Path, tmp_path: Path
) -> None:
    script = SPY.replace("FOREIGN", repr(FOREIGN))
    done = execute(
        "-c", script, archive, scan, "-o", "labels.nii.gz", "--engine", "onnxruntime", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == [
        "|",
        "0",
        "False",
        str(archive / "zoomseg" / "__init__.py"),
    ]
    values, grid = read_label_values(tmp_path / "labels.nii.gz")
    image, _ = tiny_case(9)
    expected = Predictor(model, CPU).predict(Case("x", image)).labels
    assert grid.same_as(image.grid)
    assert set(np.unique(values)) == {0, 3, 7}
    assert np.array_equal(values, SCHEMA.decode(expected.data))


def test_openvino_in_a_process_of_its_own(archive: Path, scan: Path, tmp_path: Path) -> None:
    done = execute(archive, scan, "-o", tmp_path / "labels.nii.gz", "--engine", "openvino", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(openvino). For research, not for diagnosis." in done.stdout
    parts, models = pipeline.read(archive)
    networks = {stage: compilers.load("openvino", model) for stage, model in models.items()}
    image, _ = tiny_case(9)
    expected = SCHEMA.decode(predict.segment(parts, networks, image.data, image.grid))
    assert np.array_equal(read_label_values(tmp_path / "labels.nii.gz")[0], expected)


@pytest.mark.parametrize("engine", compilers.COMPILERS)
def test_in_float32_the_label_map_is_that_of_predict(engine: str, archive: Path, model: Bundle) -> None:
    parts, models = pipeline.read(archive)
    networks = {stage: compilers.load(engine, content, "float32") for stage, content in models.items()}
    for seed in range(3):
        image, _ = tiny_case(seed)
        found = predict.segment(parts, networks, image.data, image.grid)
        expected = Predictor(model, CPU).predict(Case("x", image)).labels.data
        assert len(np.unique(expected)) == 3
        assert np.array_equal(found, expected)


def run(archive: Path, *arguments: str | Path) -> int:
    return runner.main(archive, [str(a) for a in arguments])


def test_wrong_use_is_one_line(
    archive: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.nii.gz"
    (tmp_path / "text.nii.gz").write_text("hello")
    cases = {
        "no such file": (tmp_path / "none.nii.gz", "-o", out),
        "not an image": (tmp_path / "text.nii.gz", "-o", out),
        "cannot write this format": (scan, "-o", tmp_path / "labels.png"),
        "the scan has 2 channel(s), the model needs 1: CT": (scan, scan, "-o", out),
    }
    for reason, arguments in cases.items():
        assert run(archive, *arguments) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("model.zip: ")
        assert reason in printed.err
        assert printed.err.count("\n") == 1
        assert not out.exists()


def test_what_the_header_leaves_open_is_told(
    archive: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scan.with_name("labels.nii.gz")
    assert run(archive, scan, "-o", out) == 0
    assert "header" not in capsys.readouterr().err
    content = bytearray(gzip.decompress(scan.read_bytes()))
    content[123] = 5  # xyzt_units
    scan.write_bytes(gzip.compress(content))
    assert run(archive, scan, "-o", out) == 0
    assert capsys.readouterr().err.startswith(
        "note: unit code 5 is not defined; lengths are taken as millimetres\n"
    )


def test_too_little_memory_is_one_line(
    archive: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(predict, "segment", full)
    assert run(archive, scan, "-o", scan.with_name("out.nii.gz")) == 2
    assert capsys.readouterr().err == (
        "model.zip: the scan does not fit in memory; run it on a larger machine\n"
    )


def test_a_missing_library_is_one_line(
    archive: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = runner.importlib.util.find_spec
    for gone, reason in (
        ({"scipy"}, "scipy is needed; install: pip install scipy"),
        ({"nibabel", "numpy"}, "numpy, nibabel is needed; install: pip install numpy nibabel"),
        ({"openvino", "onnxruntime"}, "openvino or onnxruntime is needed"),
    ):
        monkeypatch.setattr(
            runner.importlib.util, "find_spec", lambda name, gone=gone: None if name in gone else find(name)
        )
        assert run(archive, scan, "-o", scan.with_name("out.nii.gz")) == 2
        printed = capsys.readouterr().err
        assert reason in printed
        assert printed.count("\n") == 1
