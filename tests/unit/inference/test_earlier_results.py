"""Several runs into one folder: the summaries list the label maps there."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_dataset import CPU, tiny_case
from helpers.untrained_models import predictor, untrained_bundle
from zoomseg.core.errors import ScanError
from zoomseg.datasets.layouts import read_labels_by_case
from zoomseg.inference import earlier_results
from zoomseg.inference.outputs import segment_to_folder
from zoomseg.inference.predictor import Predictor
from zoomseg.io.scans import ScanInput, write_image


def listed(out: Path) -> tuple[list[str], list[str], list[str]]:
    """The cases in run.json, summary.csv and review.csv."""
    found = [list(json.loads((out / "run.json").read_text())["cases"])]
    for name in ("summary.csv", "review.csv"):
        with (out / name).open(newline="") as file:
            found.append(sorted({row["case"] for row in csv.DictReader(file)}))
    return found[0], found[1], found[2]


def edit(out: Path, **told: object) -> None:
    """Change the entry of case a in run.json."""
    run = json.loads((out / "run.json").read_text())
    run["cases"]["a"] |= told
    (out / "run.json").write_text(json.dumps(run))


@pytest.fixture
def three(tmp_path: Path) -> tuple[ScanInput, ...]:
    for name in "abc":
        write_image(tmp_path / f"{name}.nii.gz", tiny_case(1)[0])
    return tuple(ScanInput(name, (tmp_path / f"{name}.nii.gz",)) for name in "abc")


def test_a_later_run_goes_on_listing_what_is_there(three: tuple[ScanInput, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment_to_folder(three, out, predictor())
    summary, run = ((out / name).read_text() for name in ("summary.csv", "run.json"))
    (out / "b.nii.gz").unlink()
    later = Predictor(untrained_bundle(1), CPU)
    later.backend = "other"
    segment_to_folder(three[2:], out, later)
    assert listed(out) == (["a", "c"], ["a", "c"], ["a", "c"])
    kept = [line for line in summary.splitlines() if line.startswith("a,")]
    assert [row for row in (out / "summary.csv").read_text().splitlines() if row.startswith("a,")] == kept
    cases = json.loads((out / "run.json").read_text())["cases"]
    assert cases["a"].pop("run")["backend"] == "torch"
    assert cases["a"] == json.loads(run)["cases"]["a"]
    assert "run" not in cases["c"]


def test_runs_at_the_same_time_list_each_others_cases(three: tuple[ScanInput, ...], tmp_path: Path) -> None:
    out, between = tmp_path / "out", []

    def other(_: object) -> None:
        if not between:
            between.append(segment_to_folder(three[1:2], out, predictor()))

    segment_to_folder((three[0], three[2]), out, predictor(), on_result=other)
    assert sorted(listed(out)[0]) == ["a", "b", "c"] == listed(out)[1]


def test_label_maps_with_other_labels_are_listed_with_theirs(
    three: tuple[ScanInput, ...], tmp_path: Path
) -> None:
    out, both = tmp_path / "out", {"background": 0, "left kidney": 3, "right kidney": 7}
    segment_to_folder(three[:1], out, predictor())
    segment_to_folder(three[1:2], out, predictor(), ("right kidney",))
    assert listed(out) == (["a", "b"], ["a", "b"], ["a", "b"])
    run = json.loads((out / "run.json").read_text())
    assert run["labels"] == {"background": 0, "right kidney": 7}
    assert run["cases"]["a"]["run"]["labels"] == both
    segment_to_folder(three[2:], out, predictor())
    cases = json.loads((out / "run.json").read_text())["cases"]
    assert "labels" not in cases["a"]["run"]
    assert cases["b"]["run"]["labels"] == {"background": 0, "right kidney": 7}


def without_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.unlink()


def marked(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())


def with_semicolons(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.write_text(table.read_text().replace(",", ";"))


def shortened(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.write_text(table.read_text()[:-20])


def without_case(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.write_text(table.read_text().splitlines(keepends=True)[0])


def too_large(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoomseg.io.tables.MAX_RESULTS_BYTES", 100)


@pytest.mark.parametrize(
    "change", [without_table, marked, with_semicolons, shortened, without_case, too_large]
)
def test_a_case_stays_listed_with_its_labels_whatever_became_of_the_table(
    three: tuple[ScanInput, ...],
    tmp_path: Path,
    change: Callable[[Path, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    segment_to_folder(three[:1], out, predictor(), ("right kidney",))
    rows = [line for line in (out / "summary.csv").read_text().splitlines() if line.startswith("a,")]
    assert len(rows) == 1
    change(out / "summary.csv", monkeypatch)
    segment_to_folder(three[1:2], out, predictor())
    assert listed(out) == (["a", "b"], ["a", "b"], ["a", "b"])
    assert [line for line in (out / "summary.csv").read_text().splitlines() if line[:2] == "a,"] == rows
    assert read_labels_by_case(out / "run.json")["a"].names == ("right kidney",)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_cases_of_an_account_that_cannot_be_read_are_those_of_the_journals(
    three: tuple[ScanInput, ...], tmp_path: Path, content: str | None
) -> None:
    out = tmp_path / "out"
    assert earlier_results.notes_on(out) == []
    segment_to_folder(three[:1], out, predictor(), ("right kidney",))
    assert earlier_results.notes_on(out) == []
    if content is None:
        (out / "run.json").unlink()
        assert earlier_results.notes_on(out) == []
    else:
        (out / "run.json").write_text(content)
        (note,) = earlier_results.notes_on(out)
        assert note.startswith(f"{out / 'run.json'}: damaged, or not written by ZoomSeg; ")
    segment_to_folder(three[1:2], out, predictor())
    assert listed(out) == (["a", "b"], ["a", "b"], ["a", "b"])
    assert read_labels_by_case(out / "run.json")["a"].names == ("right kidney",)


def failing(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    model = predictor()

    def refuse(*_: object, **__: object) -> None:
        raise ScanError("too dark")

    monkeypatch.setattr(model, "predict", refuse)
    return model


def test_a_scan_that_fails_leaves_the_earlier_label_map_its_labels(
    three: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, both = tmp_path / "out", {"background": 0, "left kidney": 3, "right kidney": 7}
    segment_to_folder(three[:1], out, predictor())
    summary = (out / "summary.csv").read_bytes()
    for _ in range(2):
        failed = segment_to_folder(three[:1], out, failing(monkeypatch), ("right kidney",))
        assert [one.case for one in failed] == ["a"]
        run = json.loads((out / "run.json").read_text())
        assert run["labels"] == {"background": 0, "right kidney": 7}
        assert run["cases"]["a"]["status"] == "done"
        assert run["cases"]["a"]["run"]["labels"] == both
        assert run["cases"]["a"]["notes"] == [
            "this label map is an earlier run's, a later one failed: too dark"
        ]
        assert (out / "summary.csv").read_bytes() == summary
    assert read_labels_by_case(out / "run.json")["a"].names == ("left kidney", "right kidney")
    (out / "a.nii.gz").unlink()
    segment_to_folder(three[:1], out, failing(monkeypatch), ("right kidney",))
    assert json.loads((out / "run.json").read_text())["cases"]["a"] == {
        "status": "failed",
        "error": "too dark",
    }
    assert listed(out) == (["a"], [], [])


@pytest.mark.parametrize("notes", [7, [["x"]], "x", None])
def test_notes_that_are_none_of_ours_stop_nothing(
    three: tuple[ScanInput, ...], tmp_path: Path, notes: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    segment_to_folder(three[:1], out, predictor())
    edit(out, notes=notes)
    segment_to_folder((three[0], three[1]), out, failing(monkeypatch))
    told = json.loads((out / "run.json").read_text())["cases"]["a"]["notes"]
    assert told == ["this label map is an earlier run's, a later one failed: too dark"]


@pytest.mark.parametrize("seconds", [1, ["x"], {"total": "x"}, None])
def test_a_duration_that_is_none_of_ours_is_left_out_of_the_report(
    three: tuple[ScanInput, ...], tmp_path: Path, seconds: object
) -> None:
    out = tmp_path / "out"
    segment_to_folder(three[:1], out, predictor())
    edit(out, seconds=seconds, notes=[{}])
    (out / "report.html").unlink()
    segment_to_folder(three[1:2], out, predictor())
    assert (out / "report.html").is_file()
    kept = json.loads((out / "run.json").read_text())["cases"]["a"]
    assert "seconds" not in kept
    assert "notes" not in kept


def test_keys_of_another_version_are_left_out(three: tuple[ScanInput, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment_to_folder(three[:1], out, predictor())
    edit(out, run={"backend": "other", "weather": "fine"})
    assert not segment_to_folder(three[1:2], out, predictor())
    told = json.loads((out / "run.json").read_text())["cases"]
    assert list(told) == ["a", "b"]
    assert told["a"]["run"]["backend"] == "other"
    assert "weather" not in told["a"]["run"]


@pytest.mark.parametrize("of_a_run", [7, [1], "x", None])
def test_a_case_whose_account_is_damaged_is_not_listed(
    three: tuple[ScanInput, ...], tmp_path: Path, of_a_run: object
) -> None:
    out = tmp_path / "out"
    segment_to_folder(three[:1], out, predictor())
    edit(out, run=of_a_run)
    assert not segment_to_folder(three[1:2], out, predictor())
    assert listed(out)[0] == ["b"]


@pytest.mark.parametrize("file", ["run.json", "summary.csv"])
@pytest.mark.parametrize("content", ["", "[]", "{", "a,b\n1,2\n", '{"labels": 3, "cases": [7]}'])
def test_an_account_that_is_none_of_ours_is_replaced(
    three: tuple[ScanInput, ...], tmp_path: Path, file: str, content: str
) -> None:
    segment_to_folder(three[:1], tmp_path / "out", predictor())
    (tmp_path / "out" / file).write_text(content)
    segment_to_folder(three[1:2], tmp_path / "out", predictor())
    assert listed(tmp_path / "out")[0][-1] == "b"


def test_an_account_that_nobody_else_wrote_is_read_once(
    three: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read after every case, one of ten thousand cases would be parsed ten thousand times."""
    segment_to_folder(three[:1], tmp_path / "out", predictor())
    read, times = earlier_results.read, []

    def counted(out: Path, run: Mapping[str, Any]) -> earlier_results.EarlierResults:
        times.append(out)
        return read(out, run)

    monkeypatch.setattr(earlier_results, "read", counted)
    segment_to_folder(three[1:], tmp_path / "out", predictor())
    assert times == [tmp_path / "out"]
    assert listed(tmp_path / "out")[0] == ["a", "b", "c"]
