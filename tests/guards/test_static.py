"""Style, types and layers are checked by tests, so that a single command runs all checks.

Each check is also applied to a small fault, to verify that it detects it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PACKAGE = ROOT / "src" / "zoomseg"
MYPY: tuple[tuple[str, ...], ...] = (("mypy",), ("mypy", "benchmarks/predict"))
"""The second run is for scripts of the same names as others, which the first one leaves out."""


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / command[0], *command[1:]], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its settings, into which faults can be inserted."""
    shutil.copytree(PACKAGE, tmp_path / "src" / "zoomseg", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_ruff() -> None:
    result = run("ruff", "check", "--no-cache", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_notices(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import pickle\nimport os\n\n\nvalue = pickle.loads(b'')\n")
    result = run("ruff", "check", "--no-cache", "--config", ROOT / "pyproject.toml", tmp_path)
    assert result.returncode == 1
    assert "F401" in result.stdout  # unused import
    assert "S301" in result.stdout  # pickle


@pytest.mark.slow
def test_mypy() -> None:
    for command in MYPY:
        result = run(*command)
        assert result.returncode == 0, result.stdout + result.stderr


def test_mypy_notices(tmp_path: Path) -> None:
    """One run for both faults, as most of its time is spent on the types of the standard library."""
    (tmp_path / "bad.py").write_text(
        "from typing import Literal\n\n\ndef half(n: int):\n    return n / 2\n\n\n"
        "def look(kind: Literal['box', 'body_mask']) -> None:\n"
        "    match kind:\n        case 'box':\n            print(kind)\n"
    )
    result = run("mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "bad.py")
    assert result.returncode == 1
    assert "bad.py:4: error: Function is missing a return type annotation" in result.stdout
    unhandled = "error: Match statement has unhandled case for values of type \"Literal['body_mask']\""
    assert f"bad.py:9: {unhandled}" in result.stdout


def test_mypy_notices_stale_benchmarks(tmp_path: Path) -> None:
    """In every folder of benchmarks, a script that calls ZoomSeg as it once was."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = tmp_path / "src" / "zoomseg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def predict(scan: str) -> None: ...\n")
    bad = []
    for folder in sorted({path.parent.relative_to(ROOT) for path in ROOT.glob("benchmarks/**/*.py")}):
        bad.append(folder / f"bad_{folder.name}.py")
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / bad[-1]).write_text(
            "import zoomseg\n\nzoomseg.predict('scan', keep=True)\nzoomseg.compare()\n"
        )
    assert len(bad) > 1
    told = "".join(run(*command, cwd=tmp_path).stdout for command in MYPY)
    for path in bad:
        assert f'{path}:3: error: Unexpected keyword argument "keep" for "predict"' in told
        assert f'{path}:4: error: Module has no attribute "compare"' in told


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts in the settings in ``root`` for the package in ``root/src``."""
    script = "import sys; sys.path.insert(0, 'src'); import importlinter.cli as c; c.lint_imports_command()"
    return run("python", "-c", script, "--no-cache", cwd=root)


def test_imports_go_downward() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


UPWARD = (
    ("core/volume.py", "zoomseg.cli.main", "core is not allowed to import zoomseg.cli"),
    ("core/volume.py", "zoomseg.recipe.spec", "core is not allowed to import zoomseg.recipe"),
    ("pipeline/roi.py", "zoomseg.inference.batch", "pipeline is not allowed to import zoomseg.inference"),
    ("anatomy/colours.py", "zoomseg.io.scans", "anatomy is not allowed to import zoomseg.io"),
)
"""Module, import to be added, and expected message."""


def test_upward_imports_are_noticed(copy: Path) -> None:
    places = []
    for where, imported, _ in UPWARD:
        module = copy / "src" / "zoomseg" / where
        module.write_text(f"{module.read_text()}\nimport {imported}\n")
        importer = f"zoomseg.{where.removesuffix('.py').replace('/', '.')}"
        places.append(f"{importer} -> {imported} (l.{len(module.read_text().splitlines())})")
    result = lint_imports(copy)
    assert result.returncode == 1, result.stdout
    assert "BROKEN" in result.stdout
    for (*_, broken), place in zip(UPWARD, places, strict=True):
        assert f"zoomseg.{broken}" in result.stdout
        assert place in result.stdout
