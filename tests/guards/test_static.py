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


def test_mypy() -> None:
    result = run("mypy")
    assert result.returncode == 0, result.stdout + result.stderr


def test_mypy_notices(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def half(n: int):\n    return n / 2\n")
    result = run("mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "bad.py")
    assert result.returncode == 1
    assert "missing a return type" in result.stdout


def test_mypy_notices_a_kind_without_a_case(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from typing import Literal\n\n\ndef look(kind: Literal['box', 'body_mask']) -> None:\n"
        "    match kind:\n        case 'box':\n            print(kind)\n"
    )
    result = run("mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "bad.py")
    assert result.returncode == 1
    assert "unhandled case for values of type \"Literal['body_mask']\"" in result.stdout


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """The contracts in ``root``'s settings, on the package in ``root/src``."""
    script = "import sys; sys.path.insert(0, 'src'); import importlinter.cli as c; c.lint_imports_command()"
    return run("python", "-c", script, "--no-cache", cwd=root)


def test_imports_go_downward() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("core/volume.py", "import zoomseg.cli.main"),
        ("core/volume.py", "import zoomseg.recipe.spec"),
        ("pipeline/roi.py", "import zoomseg.inference.batch"),
        ("anatomy/colours.py", "import zoomseg.io.scans"),
    ],
)
def test_an_upward_import_is_noticed(copy: Path, where: str, line: str) -> None:
    module = copy / "src" / "zoomseg" / where
    module.write_text(f"{module.read_text()}\n{line}\n")
    result = lint_imports(copy)
    assert result.returncode == 1, result.stdout
    assert "BROKEN" in result.stdout
