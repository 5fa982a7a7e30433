"""Evaluation and checks need no package of an extra, and give the same numbers without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny_dataset import tiny_case, tiny_dataset
from zoomseg.core.volume import LabelMap
from zoomseg.io.scans import write_labels

BLOCKED = ("SimpleITK", "blosc2", "matplotlib", "onnx", "pandas", "scipy", "tensorboardX", "torch")
SCRIPT = """
import sys

class Without:
    #A finder that does not find these packages, as where they are not installed.

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        found = name.partition(".")[0] not in {blocked}
        return self.finder.find_spec(name, path, target) if found else None

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
from zoomseg.cli.main import main
main(sys.argv[1:])
"""


def zoomseg(*arguments: object, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command in a process in which these packages cannot be imported."""
    script = SCRIPT.format(blocked=blocked)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


def test_evaluate(tmp_path: Path) -> None:
    for seed in (0, 1):
        labels = tiny_case(seed)[1]
        moved = LabelMap(labels.data.copy(), labels.grid, labels.schema)
        moved.data[1:] = labels.data[:-1]
        for folder, drawn in (("reference", labels), ("prediction", moved)):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_labels(tmp_path / folder / f"case{seed}.nii.gz", drawn)
    folders = (tmp_path / "prediction", tmp_path / "reference")
    full = zoomseg("evaluate", *folders, "-o", tmp_path / "full")
    base = zoomseg("evaluate", *folders, "-o", tmp_path / "base", blocked=BLOCKED)
    assert (full.returncode, base.returncode) == (0, 0), full.stderr + base.stderr
    metrics = (tmp_path / "full" / "metrics.csv").read_text()
    assert (tmp_path / "base" / "metrics.csv").read_text() == metrics
    assert "case1" in metrics
    said = base.stdout + base.stderr
    assert said.count(".[train]") == 1
    assert ".[train]" in (tmp_path / "base" / "report.html").read_text()
    assert ".[train]" not in full.stdout + full.stderr


def test_check(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    full, base = zoomseg("check", tmp_path), zoomseg("check", tmp_path, blocked=BLOCKED)
    assert (full.returncode, base.returncode) == (0, 0), full.stderr + base.stderr
    assert base.stdout == full.stdout
    assert full.stdout


@pytest.mark.parametrize("package", BLOCKED)
def test_a_blocked_package_cannot_be_imported(package: str) -> None:
    script = SCRIPT.format(blocked=BLOCKED).partition("from zoomseg")[0] + f"import {package}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"No module named '{package}'" in done.stderr
