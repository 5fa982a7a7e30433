"""Tests of the installed package are skipped only where nothing can be installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.environments import uv


@pytest.fixture
def uv_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Replaces uv by a program that says a line and ends with this code."""

    def replace(says: str, code: int) -> None:
        program = tmp_path / "uv"
        program.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("UV", str(program))

    return replace


def test_a_package_of_any_name_may_be_installed(uv_that: Callable[[str, int], None], tmp_path: Path) -> None:
    uv_that(" + networkx==3.4", 0)
    uv("pip", "install", "networkx", environment=tmp_path)


def test_a_fault_of_ours_is_no_missing_network(uv_that: Callable[[str, int], None], tmp_path: Path) -> None:
    uv_that("zoomseg/networks/build.py: no such file", 1)
    with pytest.raises(AssertionError, match="no such file"):
        uv("build", environment=tmp_path)


def test_without_an_index_it_is_skipped(uv_that: Callable[[str, int], None], tmp_path: Path) -> None:
    uv_that("Caused by: dns error: failed to lookup address information", 2)
    with pytest.raises(pytest.skip.Exception, match="no package index"):
        uv("pip", "install", "numpy", environment=tmp_path)
