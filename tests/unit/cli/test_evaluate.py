"""``zoomseg evaluate``: output and exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.label_files import LIVER, SPLEEN, organs, save, save_description
from zoomseg.cli.main import main
from zoomseg.core.errors import DatasetError
from zoomseg.evaluation import evaluate as evaluation


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    predictions, reference = tmp_path / "predictions", tmp_path / "reference"
    save_description(reference, labels={"background": 0, "liver": 6, "spleen [left]": 1})
    for case in ("a[red]", "b"):
        save(predictions / f"{case}.nii.gz", organs(LIVER, SPLEEN))
        save(reference / f"{case}.nii.gz", organs(LIVER, SPLEEN))
    return predictions, reference


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", *map(str, arguments)])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_table_and_files(folders, tmp_path, capsys):
    assert run(*folders, "-o", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert out.split()[-1] == str(tmp_path / "out" / "report.html")
    lines = words(out)
    assert ["liver", "2", "1.000", "1.000", "0.0", "0.00", "0", "0"] in lines
    assert ["spleen", "[left]", "2", "1.000", "1.000", "0.0", "0.00", "0", "0"] in lines
    assert ["mean", "of", "organs", "1.000", "1.000", "0.0", "0.00"] in lines
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"metrics.csv", "summary.json", "report.html"}


def test_failed_case_is_named_and_exits_with_one(folders, tmp_path, capsys):
    (folders[0] / "a[red].nii.gz").write_bytes(b"damaged")
    assert run(*folders, "-o", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "failed: a[red]: " in captured.err
    assert ["liver", "1", "1.000", "1.000", "0.0", "0.00", "0", "0"] in [
        x.split() for x in captured.out.splitlines()
    ]


def test_folders_in_the_wrong_order_exit_with_two(folders, tmp_path, capsys):
    (folders[0] / "run.json").write_text("{}")
    assert run(*folders[::-1], "-o", tmp_path / "out") == 2
    assert "the predictions come first, then the references" in capsys.readouterr().err
    assert run(folders[1], folders[1], "-o", tmp_path / "out") == 2
    assert "the same file, 2 of 2 cases" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unmatched_files_are_a_warning(folders, tmp_path, capsys):
    (folders[0] / "b.nii.gz").rename(folders[0] / "c.nii.gz")
    assert run(*folders, "-o", tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert "warning: no reference for: c\n" in err
    assert "warning: no prediction for: b\n" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere", "nowhere", "-o", "out"],
            "zoomseg: nowhere: no such folder; give a folder of label",
        ),
        (["nowhere", "nowhere"], "Missing option '-o'"),
    ],
)
def test_wrong_use_exits_with_two(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_impossible_tolerance_exits_with_two(folders, tmp_path, capsys):
    assert run(*folders, "-o", tmp_path / "out", "--tolerance-mm", "nan") == 2
    assert "the tolerance must be 0 mm or more, got nan" in capsys.readouterr().err


def test_a_tolerance_for_each_organ(folders, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("organ,mm\nliver,4\n")
    assert run(*folders, "-o", tmp_path / "out", "--tolerance", tmp_path / "mine.csv") == 0
    captured = capsys.readouterr()
    assert "warning: no NSD, as mine.csv has no tolerance of them: spleen [left]" in captured.err
    assert ["liver", "2", "1.000", "1.000", "0.0", "0.00", "0", "0"] in words(captured.out)
    assert ["spleen", "[left]", "2", "1.000", "\N{EN DASH}", "0.0", "0.00", "0", "0"] in words(captured.out)


def test_one_tolerance_or_a_table(folders, tmp_path, capsys):
    options = ("--tolerance", "flare22", "--tolerance-mm", "1")
    assert run(*folders, "-o", tmp_path / "out", *options) == 2
    assert "give one" in capsys.readouterr().err


def test_the_scans_and_the_number_of_processes_are_those_given(folders, tmp_path, monkeypatch):
    asked = []

    def noted(*given, images, workers, **others):
        asked.append((images, workers))
        raise DatasetError("seen")

    monkeypatch.setattr(evaluation, "evaluate", noted)
    for more in ((), ("--images", tmp_path, "--workers", 3)):
        assert run(*folders, "-o", tmp_path / "out", *more) == 2
    assert asked == [(None, None), (tmp_path, 3)]
