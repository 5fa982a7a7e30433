"""The wheel, installed without extras into a separate environment, is small; prediction, evaluation, checks,
viewing and serving work, and training commands state what to install."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from helpers.dicom_series import ramp, stack
from helpers.dicom_series import write as write_series
from helpers.environments import alone, made, uv
from helpers.tiny_dataset import tiny_dataset
from zoomseg.core.geometry import Grid
from zoomseg.datasets.phantom import phantom_case
from zoomseg.io.scans import write_image

LIMIT_MB = 400
FORMATS = ("--dicom-seg", "--rtstruct", "--seg-nrrd", "--any-scan")
ABSENT = ("SimpleITK", "blosc2", "gdcm", "matplotlib", "onnx", "pandas", "scipy", "tensorboardX", "torch")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an environment with the wheel of this source tree."""
    folder = tmp_path_factory.mktemp("base")
    uv("build", "--wheel", "--out-dir", folder, environment=folder / "env")
    return made(folder, *folder.glob("*.whl"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_image(
        path, phantom_case(0, Grid.from_spacing((24, 20, 20), (7.0, 7.0, 7.0), (-70.0, -70.0, -70.0))).image
    )
    return path


def zoomseg(environment: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [environment / "bin" / "zoomseg", *map(str, arguments)]
    return subprocess.run(command, cwd=environment, env=alone(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def predicted(environment: Path, scan: Path) -> Path:
    out = scan.parent / "out"
    done = zoomseg(environment, "predict", scan, "-o", out, "--any-scan")
    assert done.returncode == 0, done.stderr
    return out


def packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def test_it_holds_nothing_that_only_training_needs(environment: Path) -> None:
    assert [name for name in ABSENT if (packages(environment) / name).exists()] == []


def test_it_is_small(environment: Path) -> None:
    """Disk space in blocks, as counted by ``du``, without byte code compiled by Python."""
    files = [path for path in packages(environment).rglob("*") if "__pycache__" not in path.parts]
    assert sum(path.lstat().st_blocks * 512 for path in files) < LIMIT_MB << 20


def test_it_predicts(predicted: Path) -> None:
    run = json.loads((predicted / "run.json").read_text())
    assert run["backend"] == "openvino"
    assert (predicted / "scan.nii.gz").is_file()


def test_it_evaluates(environment: Path, predicted: Path) -> None:
    """A label map is compared with itself, so that all scores are perfect."""
    out = predicted.parent / "evaluation"
    references = predicted.parent / "references"
    references.mkdir()
    shutil.copy(predicted / "scan.nii.gz", references)
    done = zoomseg(environment, "evaluate", predicted, references, "-o", out)
    assert done.returncode == 0, done.stderr
    assert "'.[train]'" in done.stderr + done.stdout  # charts are omitted, with a note
    with (out / "metrics.csv").open() as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file) if row["dice"]]
    assert set(dice) == {1.0}


def test_it_checks(environment: Path, tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    done = zoomseg(environment, "check", tmp_path)
    assert done.returncode == 0, done.stderr


def test_it_reads_and_writes_dicom(environment: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "series", stack(ramp(24, 30, 28), (0, 0, 5)))
    done = zoomseg(environment, "predict", tmp_path / "series", "-o", tmp_path / "out", *FORMATS)
    assert done.returncode == 0, done.stderr
    written = sorted(path.suffixes[-2] for path in (tmp_path / "out").glob("*.dcm"))
    assert written == [".rtstruct", ".seg"], done.stderr


def test_it_shows(environment: Path, scan: Path, predicted: Path) -> None:
    with page(environment, "view", scan, predicted / "scan.nii.gz", "--no-browser") as client:
        assert len(client.get("/static/niivue.js").content) > 10**6
        assert "<html" in client.get("/").text


def test_it_serves(environment: Path, scan: Path, tmp_path: Path) -> None:
    with page(environment, "serve", "--port", "0", "--folder", tmp_path, "--device", "cpu") as client:
        assert client.get("/models").status_code == 200
        answer = client.post("/jobs", params={"name": scan.name}, content=scan.read_bytes())
        assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("command", ["demo", "train"])
def test_what_trains_says_what_to_install(environment: Path, tmp_path: Path, command: str) -> None:
    arguments = [] if command == "demo" else [tmp_path, "-o", tmp_path / "model"]
    done = zoomseg(environment, command, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install '.[train]'" in done.stderr


@contextmanager
def page(environment: Path, *arguments: object) -> Iterator[httpx.Client]:
    """Start a command that serves a page; yields a client for it."""
    command = [environment / "bin" / "zoomseg", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=environment, env={**alone(), "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"Open (http://127\.0\.0\.1:\d+/)", process.stdout.readline())
            assert found is not None
            with httpx.Client(base_url=found[1], timeout=60) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)
