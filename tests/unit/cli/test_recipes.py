"""``zoomseg recipes``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.tiny_dataset import tiny_dataset
from zoomseg.cli.main import main
from zoomseg.recipe import load
from zoomseg.recipe.spec import Recipe
from zoomseg.training import loop


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


def planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str]:
    """The exit code and the table (or the error) for the tiny data set, in a wide terminal."""
    monkeypatch.setenv("COLUMNS", "300")
    tiny_dataset(tmp_path / "d")
    code = run(*arguments, "--for", str(tmp_path / "d"))
    captured = capsys.readouterr()
    return code, captured.out if code == 0 else captured.err


def test_a_plan_is_a_table_with_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out = planned(tmp_path, capsys, monkeypatch, "default", "--device", "cpu", "--time-budget", "15m")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["what", "value", "why"]
    rows = {line.split("  ")[0]: line for line in lines}
    assert "24x20x16 voxels of 2x2x3 mm" in rows["median scan"]
    assert "of 4 cases" in rows["median scan"]
    assert "7,700 voxels, no more than 4 patches of 110,000" in rows["stages"]
    assert "15 min" in rows["length"]
    assert "every label has its counterpart" in rows["mirroring"]
    assert rows["left kidney"].split()[2:5] == ["4", "of", "4"]


def test_a_plan_is_for_a_training_of_the_same_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out = planned(tmp_path, capsys, monkeypatch, "--device", "cpu", "--epochs", "3")
    assert code == 0
    (row,) = (line for line in out.splitlines() if line.startswith("length "))
    assert "300 steps" in row
    assert run("--for", str(tmp_path / "d"), "--epochs", "3", "--time-budget", "1m") == 2
    assert "give --time-budget or --epochs, not both" in capsys.readouterr().err


def test_a_plan_asks_for_names_with_the_line_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    tiny_dataset(tmp_path / "d")
    text = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "label_3": 3, "label_7": 7}}
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(text))
    assert run("--for", str(tmp_path / "d"), "--device", "cpu") == 0
    captured = capsys.readouterr()
    line = 'write "labels": {"background": 0, "NAME OF 3": 3, "NAME OF 7": 7} into '
    assert line in captured.out
    assert line in captured.err


def test_a_plan_is_written_as_a_recipe_that_training_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a name it is the default, as in training."""
    out = tmp_path / "planned.yaml"
    code, text = planned(tmp_path, capsys, monkeypatch, "--device", "cpu", "-o", str(out))
    assert code == 0
    assert text.splitlines()[-1] == f"Recipe: {out}"
    recipe = load.load(out)
    assert isinstance(recipe, Recipe)
    row = next(line for line in text.splitlines() if line.startswith("whole patch "))
    assert row.split()[2] == "x".join(map(str, recipe.stages[0].training.patch))
    asked: list[object] = []

    def trained(dataset: object, split: object, wanted: object, *rest: object) -> object:
        asked.append(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", trained)
    arguments = [str(tmp_path / "d"), "-o", str(tmp_path / "m"), "-r", str(out), "--device", "cpu"]
    with pytest.raises(SystemExit):
        main(["train", *arguments])
    assert asked == [recipe]
    with pytest.raises(SystemExit):
        main(["train", *arguments[:2], str(tmp_path / "n"), "--device", "cpu"])
    assert asked[1] == recipe


def test_only_planned_recipes_can_be_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, err = planned(tmp_path, capsys, monkeypatch, "roth2018-cascade")
    assert code == 2
    assert err.startswith("zoomseg: recipe 'roth2018-cascade' is complete")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "option", [("--device", "cpu"), ("--time-budget", "1m"), ("--epochs", "1"), ("-o", "r.yaml")]
)
def test_options_of_a_plan_need_a_data_set(
    capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    assert run("default", *option) == 2
    assert "require --for DATASET" in capsys.readouterr().err


def test_a_data_set_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("default", "--for", str(tmp_path / "none")) == 2
    assert "no such data set folder" in capsys.readouterr().err
