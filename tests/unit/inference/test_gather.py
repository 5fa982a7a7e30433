"""The summaries of several processes equal those of a single one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import predictor
from zoomseg.core.errors import OutputError, ScanError
from zoomseg.inference.gather import gather
from zoomseg.inference.outputs import Part, segment_to_folder
from zoomseg.io.scans import ScanInput, write_image


@pytest.fixture
def scans(tmp_path: Path) -> tuple[ScanInput, ...]:
    for seed, name in enumerate("abcd"):
        write_image(tmp_path / f"{name}.nii.gz", tiny_case(seed)[0])
    (tmp_path / "e.nii.gz").write_bytes(b"no")
    return tuple(ScanInput(name, (tmp_path / f"{name}.nii.gz",)) for name in "abcde")


def account(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def without_measures(found: dict[str, Any]) -> dict[str, Any]:
    """The common parts of two equal runs."""
    for case in found["cases"].values():
        for key in [
            key for key in case if key.startswith(("peak", "ram", "vram", "cpu", "machine", "seconds"))
        ]:
            del case[key]
        for stage in case.get("stages", ()):
            del stage["seconds"], stage["network_seconds"]
        case.pop("run", None)
    return {key: found[key] for key in found if key not in ("seconds", "efficiency", "started")}


def test_parts_gathered_are_as_one_run(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    parts, one = tmp_path / "parts", tmp_path / "one"
    segment_to_folder(scans, one, predictor(), notes=["a file was left out"])
    for number in (2, 1):
        segment_to_folder(scans, parts, predictor(), notes=["a file was left out"], part=Part(number, 2))
        found = gather(parts)
        assert (found.done, found.missing) == ((2, 3) if number == 2 else (4, 0))
    assert [failed.case for failed in found.failed] == ["e"]
    for name in ("summary.csv", "review.csv", *(f"{case}.nii.gz" for case in "abcd")):
        assert (parts / name).read_bytes() == (one / name).read_bytes(), name
    together, alone = account(parts), account(one)
    costs = [case["seconds"]["total"] for case in together["cases"].values() if case["status"] == "done"]
    assert together["efficiency"]["seconds"]["total"] == pytest.approx(sum(costs), abs=1e-3)
    assert list(together["cases"]) == list(alone["cases"]) == list("abcde")
    assert without_measures(together) == without_measures(alone)
    assert len(found.rows) == 8


def test_label_maps_that_are_gone_are_left_out_and_others_say_what_they_mean(
    scans: tuple[ScanInput, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment_to_folder(scans[:1], out, predictor())
    segment_to_folder(scans[1:4], out, predictor(), ("right kidney",))
    (out / "c.nii.gz").unlink()
    found = gather(out)
    assert (found.done, found.failed, found.missing) == (3, (), 1)
    run = account(out)
    assert list(run["cases"]) == ["a", "b", "d"]
    assert run["labels"] == {"background": 0, "right kidney": 7}
    assert run["cases"]["a"]["run"]["labels"] == {"background": 0, "left kidney": 3, "right kidney": 7}
    assert "run" not in run["cases"]["b"]


def test_a_part_that_fails_leaves_the_earlier_label_map_its_labels(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although nothing was gathered in between."""
    out, later = tmp_path / "out", predictor()
    segment_to_folder(scans[:2], out, predictor(), part=Part(1, 2))

    def refuse(*_: object, **__: object) -> None:
        raise ScanError("too dark")

    monkeypatch.setattr(later, "predict", refuse)
    segment_to_folder(scans[:2], out, later, ("right kidney",), part=Part(1, 2))
    segment_to_folder(scans[:2], out, predictor(), ("right kidney",), part=Part(2, 2))
    found = gather(out)
    assert [(failed.case, failed.reason) for failed in found.failed] == [("a", "too dark")]
    run = account(out)
    assert run["labels"] == {"background": 0, "right kidney": 7}
    assert run["cases"]["a"]["status"] == "done"
    assert run["cases"]["a"]["run"]["labels"] == {"background": 0, "left kidney": 3, "right kidney": 7}
    assert run["cases"]["a"]["notes"] == ["this label map is an earlier run's, a later one failed: too dark"]
    rows = [line.split(",")[:2] for line in (out / "summary.csv").read_text().splitlines()[1:]]
    assert rows == [["a", "left kidney"], ["a", "right kidney"], ["b", "right kidney"]]


def test_missing_are_the_scans_of_any_command_without_an_entry(
    scans: tuple[ScanInput, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment_to_folder(scans[:3], out, predictor(), part=Part(1, 3))
    assert gather(out).missing == 2
    segment_to_folder(scans[3:4], out, predictor())  # a whole run does not end the first one
    assert gather(out).missing == 2
    segment_to_folder(scans[:4], out, predictor(), resume=True)  # but this one contains its scans
    assert gather(out).missing == 0


def test_of_a_whole_command_none_hide_those_of_an_interrupted_one(
    scans: tuple[ScanInput, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment_to_folder(scans[:2], out, predictor())
    segment_to_folder(scans[2:4], out, predictor(), part=Part(1, 2))
    assert gather(out).missing == 1


@pytest.mark.parametrize("content", [None, "[]", "{", '["c", "d", 3]'])
def test_a_list_of_scans_that_is_gone_or_changed_is_no_list(
    scans: tuple[ScanInput, ...], tmp_path: Path, content: str | None
) -> None:
    out = tmp_path / "out"
    segment_to_folder(scans[:2], out, predictor(), part=Part(1, 2))
    (path,) = (out / "journal").glob("*.json")
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert gather(out).missing == 0


def test_cases_come_in_the_order_asked_for(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    segment_to_folder(scans[:3], tmp_path / "out", predictor())
    gather(tmp_path / "out", ["c", "a"])
    assert list(account(tmp_path / "out")["cases"]) == ["c", "a", "b"]


def test_nothing_to_gather(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is nothing to gather"):
        gather(tmp_path)
