"""Display of a batch: its lines and their times, with a terminal and without."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from helpers.tiny_dataset import SCHEMA, tiny_case
from zoomseg.cli import prediction_display
from zoomseg.cli.prediction_display import PredictionDisplay
from zoomseg.core.volume import LabelMap
from zoomseg.inference.batch import Failed, Segmented
from zoomseg.inference.resource_usage import ResourceUsage
from zoomseg.io.scans import ScanInput
from zoomseg.pipeline.cascade import Prediction
from zoomseg.pipeline.sliding_window import StageRecord, TileProgress


def a_scan(name: str = "a", vram_mb: float = 0.0) -> Segmented:
    image = tiny_case(1)[0]
    labels = LabelMap(np.zeros(image.grid.shape, dtype=np.uint8), image.grid, SCHEMA)
    records = (
        StageRecord("coarse", (16, 16, 16), 3.0, 2.5, 4, 0, 1.0, 1_500_000_000),
        StageRecord("fine [1]", (16, 16, 16), 5.0, 4.25, 12, 30, 0.2, 9_250_000_000_000),
    )
    seconds = {"read": 1.5, "waited": 0.25, "coarse": 3.0, "fine [1]": 5.0, "write": 0.5, "total": 10.04}
    usage = ResourceUsage(1536.0, vram_mb, 0.0, 1234.5 if vram_mb else 0.0, 0.0, 0.0)
    result = Prediction(name, labels, {}, {}, records, {})
    scan = ScanInput(name, (Path("a.nii.gz"),))
    return Segmented(name, Path("a.nii.gz"), image, result, seconds, usage, scan, "")


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=100, color_system=None), text


def said(verbose: bool, *tell: TileProgress, done: Segmented | Failed | None = None) -> list[str]:
    plain, text = console(terminal=False)
    with PredictionDisplay(plain, 2, verbose) as display:
        for one in tell:
            display.show_progress("a", one)
        if done is not None:
            display.show_result(done)
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_one_line_for_each_scan() -> None:
    assert said(False, TileProgress("coarse", 4, 4), done=a_scan("case [x]")) == ["case [x] 10.0 s"]
    reason = "a.nii.gz: " + "far too long for one line of a terminal " * 5 + "[bold]"
    assert said(False, done=Failed("a", reason)) == [f"failed: a: {reason}"]


def test_a_table_of_what_a_scan_cost() -> None:
    assert said(True, done=a_scan()) == [
        "a 10.0 s",
        "step seconds in networks tiles skipped GFLOPs",
        "read 1.50",
        "waited 0.25",
        "coarse 3.00 2.50 4 0 1.5",
        "fine [1] 5.00 4.25 12 30 9,250.0",
        "write 0.50",
        "total 10.04 6.75 16 30 9,251.5",
        "peak RAM 1.50 GB",
    ]
    assert said(True, done=a_scan(vram_mb=2048.0))[-1] == "peak RAM 1.50 GB, VRAM 2.00 GB (1,234 MB x s)"


def test_without_a_terminal_stages_are_told_when_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [
        TileProgress("coarse", 1, 2),
        TileProgress("coarse", 2, 2),
        TileProgress("fine", 1, 2),
        TileProgress("fine", 2, 2),
    ]
    assert said(True, *steps) == ["a coarse 2 of 2 tiles", "a fine 2 of 2 tiles"]
    assert said(False, *steps) == []
    monkeypatch.setattr(prediction_display, "PLAIN_INTERVAL_SECONDS", -1.0)  # long ones also meanwhile
    assert len(said(True, *steps)) == 4


def test_on_a_terminal_bars_count_scans_and_tiles() -> None:
    terminal, text = console(terminal=True)
    with PredictionDisplay(terminal, 3, verbose=True) as display:
        display.show_progress("a [1]", TileProgress("coarse", 4, 4))
        display.show_progress("a [1]", TileProgress("fine", 2, 12))
        display.show_result(a_scan("z"))
        display.show_progress("a [1]", TileProgress("fine", 7, 12))
    (shown,) = [line for line in text.getvalue().splitlines()[-3:] if "fine" in line]
    assert shown.startswith("a [1]  fine")
    assert "7/12" in shown
    assert "1/3" in text.getvalue()
    assert "z  10.0 s" in text.getvalue()


def test_tiles_are_no_ones_business_unless_asked() -> None:
    terminal, text = console(terminal=True)
    with PredictionDisplay(terminal, 3, verbose=False) as display:
        display.show_progress("a", TileProgress("coarse", 4, 4))
    assert "coarse" not in text.getvalue()
    assert "0/3" in text.getvalue()


def test_names_from_files_print_no_control_characters() -> None:
    (line,) = said(False, done=Failed("a\x1b[31m", "no \x00\nscan"))
    assert line.isprintable()
    assert line == "failed: a [31m: no scan"


@pytest.mark.parametrize("terminal", [False, True])
def test_names_from_files_print_none_beside_their_tiles_either(terminal: bool) -> None:
    (shown, text), name = console(terminal), "a\x1b]0;title\x07b"
    tiles = 2 if terminal else 1  # a bar is shown until the last
    with PredictionDisplay(shown, 1, verbose=True) as display:
        display.show_progress(name, TileProgress("coarse", 1, tiles))
        display.register(name, 1, tiles)
    assert "\x07" not in text.getvalue()
    assert "\x1b]" not in text.getvalue()
    assert "]0;title" in text.getvalue()
