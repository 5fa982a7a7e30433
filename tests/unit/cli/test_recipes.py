"""``zoomseg recipes``."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from zoomseg.cli.main import main
from zoomseg.recipe import load


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["recipes", *arguments])
    return int(end.value.code or 0)


def test_every_recipe_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line and not line.startswith(" ")}
    assert set(rows) == {"recipe", *load.names()}
    assert "stage1 -> stage2" in rows["roth2018-cascade"]
    assert "planned" in rows["default"]


def test_a_recipe_is_printed_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("roth2018-cascade") == 0
    data = yaml.safe_load(capsys.readouterr().out)
    assert load.from_dict(data) == load.load("roth2018-cascade")
    assert data["stages"][1]["training"]["ema_decay"] == 0


def test_an_unknown_name_gets_a_suggestion_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("roth2018-cascad") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("zoomseg: no recipe 'roth2018-cascad'; did you mean 'roth2018-cascade'?")
    assert captured.err.count("\n") == 1


def test_listing_needs_no_torch() -> None:
    code = """
import sys
from zoomseg.cli.main import main
try:
    main(["recipes"])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
