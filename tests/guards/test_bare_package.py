"""A package in an environment with only its stated requirements."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.environments import alone, made
from zoomseg.core.geometry import Grid
from zoomseg.datasets.phantom import phantom_case
from zoomseg.export.package import export, libraries
from zoomseg.inference.load import PredictionSettings, load_predictor
from zoomseg.io.bundle import ABDOMEN_CT
from zoomseg.io.scans import ScanInput, read_label_values, read_scan, write_image


@pytest.mark.slow
def test_it_segments_with_the_libraries_that_it_names(tmp_path: Path) -> None:
    export(ABDOMEN_CT, tmp_path / "model.zip")
    environment = made(tmp_path, *libraries().values(), "onnxruntime")
    (packages,) = environment.glob("lib/python*/site-packages")
    assert not any((packages / name).exists() for name in ("zoomseg", "torch", "openvino", "pydicom"))
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    write_image(
        scan, phantom_case(0, Grid.from_spacing((24, 20, 20), (7.0, 7.0, 7.0), (-70.0, -70.0, -70.0))).image
    )
    command = [environment / "bin" / "python", tmp_path / "model.zip", scan, "-o", out, "--any-scan"]
    done = subprocess.run(command, cwd=tmp_path, env=alone(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predictor = load_predictor([ABDOMEN_CT], "cpu", PredictionSettings("onnxruntime", any_scan=True))
    expected = predictor.predict(read_scan(ScanInput("scan", (scan,)))).labels
    assert len(np.unique(expected.data)) > 3
    assert np.array_equal(read_label_values(out)[0], expected.schema.decode(expected.data))
