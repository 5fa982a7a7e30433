"""Separate Python environments, isolated from the one that runs the tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNREACHABLE = "dns error|client error|[Nn]etwork is unreachable|error sending request"
"""What uv says where there is no index, and not of packages and files with such names."""


def uv(*arguments: str | Path, environment: Path) -> None:
    """Run uv for this environment, from the source tree; without it, or an index, the test is skipped."""
    found = os.environ.get("UV") or shutil.which("uv")
    if found is None:
        pytest.skip("uv is not there")
    place = {**os.environ, "VIRTUAL_ENV": str(environment)}
    done = subprocess.run([found, *arguments], cwd=ROOT, env=place, capture_output=True, text=True)
    if done.returncode != 0 and re.search(UNREACHABLE, done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr


def made(folder: Path, *installed: str | Path) -> Path:
    """An environment in ``folder / "env"`` with the packages that pip would install for these names."""
    environment = folder / "env"
    uv("venv", environment, environment=environment)
    uv("pip", "install", "--no-compile", *installed, environment=environment)
    return environment


def alone() -> dict[str, str]:
    """The variables of a shell without a Python environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
