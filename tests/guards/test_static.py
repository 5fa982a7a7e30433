"""Style, types and layers are tests, so that there is one command to run and nothing to forget.

Each check is also shown a small fault, to prove that it would notice one.
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


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / command[0], *command[1:]], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its settings in a place where faults can be put in."""
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
    result = run("mypy")
    assert result.returncode == 0, result.stdout + result.stderr


def test_mypy_notices(tmp_path: Path) -> None:
    """One run for both faults: most of its time goes into the standard library's types."""
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


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """The contracts in ``root``'s settings, on the package in ``root/src``."""
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
"""Module, what it imports, and what is said of it."""


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
