"""``zoomseg compare``: output and exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoomseg.cli.main import main
from zoomseg.evaluation.evaluate import write_metrics
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation
from zoomseg.evaluation.tolerances import Tolerances
from zoomseg.io.files import write_json_atomic

DICE = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The second gains 0.01, 0.02, ... 0.06 and lacks the aorta."""
    save(tmp_path / "old", {"liver [a]": DICE, "aorta": DICE})
    save(tmp_path / "new", {"liver [a]": [d + 0.01 * n for n, d in enumerate(DICE, start=1)]})
    return tmp_path / "old", tmp_path / "new"


def save(folder: Path, dice: dict[str, list[float]]) -> None:
    folder.mkdir()
    cases = tuple(
        CaseResult(str(n), tuple(OrganScore(o, d[n], d[n], 1.0, 1.0, 1.0, 1.0) for o, d in dice.items()))
        for n in range(len(DICE))
    )
    scores = Evaluation(tuple(dice), Tolerances.same(1.0), cases)
    write_metrics(folder / "metrics.csv", scores)
    write_json_atomic(folder / "summary.json", scores.as_json())


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *map(str, arguments)])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_table_notes_and_files(folders, tmp_path, capsys):
    assert run(*folders, "-o", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert captured.err == "note: organs that only old has: aorta\n"
    lines = [line.split() for line in captured.out.splitlines()]
    (liver,) = (line for line in lines if line[:2] == ["liver", "[a]"])
    # p: all six rise, 2 of 2^6 assignments of signs are as extreme.
    assert liver[2:6] == ["6", "0.925", "0.960", "+0.0350"]
    assert liver[-1] == "0.031"
    assert "new minus old: Dice +0.0350 (95 % interval +0.0" in captured.out
    assert "p = 0.031) over 6 cases' means of organs; better in 6, worse in 0." in captured.out
    assert captured.out.split()[-1] == str(tmp_path / "out" / "compare.html")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"compare.csv", "compare.json", "compare.html"}


def test_wrong_use_exits_with_two(folders, tmp_path, capsys):
    assert run(folders[0], "-o", tmp_path / "out") == 2
    assert "needs at least two evaluations, got 1" in capsys.readouterr().err
    assert run(*folders, tmp_path, "-o", tmp_path / "out") == 2
    assert f"zoomseg: {tmp_path}: no metrics.csv and summary.json" in capsys.readouterr().err
    assert run(*folders, "-o", tmp_path / "out", "--metric", "iou") == 2
    assert "'iou' is not one of 'dice', 'nsd', 'hd95_mm', 'assd_mm'" in capsys.readouterr().err
