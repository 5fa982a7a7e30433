"""``python -m zoomseg`` is the command line."""

from __future__ import annotations

import importlib.metadata
import runpy
import sys

import pytest


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["zoomseg", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("zoomseg", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.endswith(f"version {importlib.metadata.version('zoomseg')}\n")
