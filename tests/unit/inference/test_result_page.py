"""The page of a folder of results: every scan, failures, what to inspect first; everything escaped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zoomseg.core.errors import OutputError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.inference import result_page
from zoomseg.inference.result_page import draw, render, write
from zoomseg.inference.summary import OrganRow, write_summary

GRID = Grid.from_spacing((20, 20, 10), (3.0, 3.0, 3.0))
SCHEMA = LabelSchema.consecutive(("liver", "spleen"))
NASTY = "a'\"><script>(x)"
BOX, CORNERS = Box((1, 1, 1), (9, 9, 9)), ((0.0, 0.0, 0.0), (9.0, 9.0, 9.0))


def row(case: str, organ: str, sure: float | None, *flags: str) -> OrganRow:
    there = sure is not None
    return OrganRow(
        case, organ, 12.5, 40.0, sure, flags, 40.0, BOX if there else None, CORNERS if there else None
    )


def run(**cases: object) -> dict[str, object]:
    return {
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "notes": [],
        "models": ["my/model"],
        "trained": {"seconds": 90},
        "started": "2026-11-29T08:43:57Z",
        "cases": cases,
    }


DONE = {"status": "done", "notes": ["slices <interpolated>"], "seconds": {"total": 3.25}}


def scan() -> tuple[Volume, LabelMap]:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[1:9, 1:9, 1:9] = 1
    return Volume(np.full((1, *GRID.shape), 40.0), GRID), LabelMap(labels, GRID, SCHEMA)


def test_scans_with_their_organs_and_what_to_look_at_first(tmp_path: Path) -> None:
    rows = [
        row("one", "liver", 0.914),
        row("one", "spleen", None, "missing"),
        row("two", "liver", 0.3, "misplaced", "sides_swapped"),
        row("two", "spleen", 0.8),
    ]
    text = render(run(one=DONE, two=DONE), rows, tmp_path)
    assert "2 scans,\n2 organs searched for" in text
    first = text[text.index("Review first") : text.index("<h2>Scans</h2>")]
    places = [first.index(f"<td>{number}</td>") for number in ("0.30", "0.80", "0.91")]
    assert places == sorted(places)
    assert "far from its position in training, left and right exchanged" in first
    assert "<strong>Not found:</strong> spleen" in text
    assert "1 organ found in 3.2 s" in text
    assert "slices &lt;interpolated&gt;" in text
    assert "duration: 2 min" in text
    assert "2026-11-29 08:43 UTC" in text


def test_a_failed_scan_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    failed = {"status": "failed", "error": "no slices"}
    text = render(run(bad=failed, one=DONE), [row("one", "liver", 0.9)], tmp_path)
    assert "1 scan could not be segmented" in text
    assert "<strong>bad</strong>: no slices" in text
    assert "1 scan,\n" in text
    assert "<h2>Scans</h2>" not in text


def test_nothing_was_segmented(tmp_path: Path) -> None:
    text = render(run(bad={"status": "failed", "error": "no slices"}), [], tmp_path)
    assert "No scan was segmented." in text
    assert "Review first" not in text


def test_pictures_are_addressed_where_they_are(tmp_path: Path) -> None:
    rows = [row("one", "liver", 0.9)]
    assert "<img" not in render(run(one=DONE), rows, tmp_path)
    draw(tmp_path, "one", *scan(), SCHEMA.names)
    text = render(run(one=DONE), rows, tmp_path)
    assert 'src="report/planes/one.jpg"' in text
    assert "url(report/organs/one.jpg); background-size: 100% 100%; background-position: 0.0000% 0" in text


def test_the_place_of_an_organ_on_its_sheet(tmp_path: Path) -> None:
    draw(tmp_path, "one", *scan(), SCHEMA.names)
    rows = [row("one", name, 0.9) for name in ("a", "b", "c")]
    text = render(run(one=DONE), rows, tmp_path)
    for place in ("0.0000%", "50.0000%", "100.0000%"):
        assert f"background-size: 300% 100%; background-position: {place} 0" in text


def test_a_sheet_of_an_earlier_run_goes_where_nothing_is_found_now(tmp_path: Path) -> None:
    image, labels = scan()
    draw(tmp_path, "one", image, labels, SCHEMA.names)
    draw(tmp_path, "one", image, LabelMap(np.zeros_like(labels.data), GRID, SCHEMA), SCHEMA.names)
    assert [path.parent.name for path in (tmp_path / "report").rglob("*.jpg")] == ["planes"]


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    draw(tmp_path, NASTY, *scan(), SCHEMA.names)
    text = render(run(**{NASTY: DONE}), [row(NASTY, NASTY, 0.9, NASTY)], tmp_path)
    assert "<script" not in text
    assert "url(report/organs/a%27%22%3E%3Cscript%3E%28x%29.jpg)" in text


def test_the_page_is_of_what_the_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run(one=DONE)))
    write_summary(tmp_path / "summary.csv", [row("one", "liver", 0.5)])
    write(tmp_path)
    assert "<td>0.50</td>" in (tmp_path / "report.html").read_text()


def test_without_an_account_there_is_no_page(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "run.json").write_text("{")
    write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputError("full")

    monkeypatch.setattr(result_page, "write_bytes_atomic", full)
    with pytest.raises(OutputError):
        draw(tmp_path, "one", *scan(), SCHEMA.names)
