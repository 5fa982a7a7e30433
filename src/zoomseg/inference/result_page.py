"""``report.html`` of a folder of results: every scan with all of its organs, the least certain results first.

```
OUT/report.html               the page
OUT/report/planes/<case>.jpg  three planes of the scan with every organ in its colour
OUT/report/organs/<case>.jpg  every organ that was found, side by side
```

Pictures are separate files: a folder may contain a thousand scans, and jobs that share it draw theirs at the
same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zoomseg.anatomy.plausibility import MIRRORED_SCAN, SIDES_SWAPPED, UPSIDE_DOWN
from zoomseg.core.geometry import Orientation
from zoomseg.core.labels import BACKGROUND
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.inference.html_page import page
from zoomseg.inference.organ_pictures import contact_sheet, overview
from zoomseg.inference.summary import (
    MISPLACED,
    MISSING,
    TOUCHES_REGION_BORDER,
    TOUCHES_SCAN_BORDER,
    UNUSUAL_VOLUME,
    OrganRow,
    least_certain,
    read_summary,
)
from zoomseg.io.files import (
    MAX_RESULTS_BYTES,
    RUN_JSON,
    SUMMARY,
    parse_json,
    read_file,
    writable_directory,
    write_bytes_atomic,
    write_text_atomic,
)

PAGE = "report.html"
FOLDER = "report"
PLANES, ORGANS = "planes", "organs"

REVIEWED_FIRST = 12
"""Number of the least certain organs that are listed above the scans."""

FLAG_WORDS = {
    MISSING: "not found",
    TOUCHES_SCAN_BORDER: "reaches the end of the scan",
    TOUCHES_REGION_BORDER: "reaches the end of the searched region",
    MISPLACED: "far from its position in training",
    UNUSUAL_VOLUME: "unusual volume",
    SIDES_SWAPPED: "left and right exchanged",
    MIRRORED_SCAN: "scan mirrored?",
    UPSIDE_DOWN: "scan upside down?",
}


def draw(out: Path, case: str, image: Volume, labels: LabelMap, organs: Sequence[str]) -> None:
    """Write the pictures of a case; its label map is on the image's grid.

    Raises:
        OutputError: no permission, full disk.
    """
    turned = Orientation.to_canonical(image.grid)
    canonical, classes = image.reoriented(turned), labels.reoriented(turned)
    planes = writable_directory(out / FOLDER / PLANES)
    write_bytes_atomic(planes / f"{case}.jpg", overview(canonical, classes, image.grid).jpeg)
    sheet = contact_sheet(canonical, classes, organs)
    path = writable_directory(out / FOLDER / ORGANS) / f"{case}.jpg"
    if sheet is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes_atomic(path, sheet.jpeg)


def write(out: Path) -> None:
    """Write the page of a folder, of all cases in its ``run.json`` and ``summary.csv``; does nothing if a
    full disk prevented these from being written.

    Raises:
        OutputError: no permission, full disk.
    """
    try:
        run = parse_json(read_file(out / RUN_JSON, MAX_RESULTS_BYTES))
        rows = read_summary(out / SUMMARY)
    except (OSError, ValueError):
        return
    write_text_atomic(out / PAGE, render(run, rows, out))


@dataclass(frozen=True)
class _Tile:
    """Position of an organ on its case's contact sheet, in CSS."""

    size: str
    position: str


@dataclass(frozen=True)
class _Organ:
    row: OrganRow
    flags: tuple[str, ...]
    tile: _Tile | None


@dataclass(frozen=True)
class _Case:
    id: str
    anchor: str
    seconds: float | None
    notes: tuple[str, ...]
    planes: str | None
    """Addresses of the pictures, relative to the page; None if there is none."""
    sheet: str | None
    found: tuple[_Organ, ...]
    missing: tuple[str, ...]
    doubted: OrganRow | None
    """The least certain organ."""


def render(run: Mapping[str, Any], rows: Sequence[OrganRow], out: Path) -> str:
    """The page of a run, whose pictures are in ``out``. All names and file contents are escaped."""
    accounts: Mapping[str, Any] = run["cases"]
    by_case: dict[str, list[OrganRow]] = {case: [] for case in accounts}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    done = [case for case in by_case if accounts.get(case, {}).get("status") == "done"]
    cases = [
        _case(number, case, accounts[case], by_case[case], out) for number, case in enumerate(done, start=1)
    ]
    return page(
        "zoomseg.inference",
        "results.html",
        _provenance(run),
        cases=cases,
        failed={
            case: own.get("error", "") for case, own in accounts.items() if own.get("status") == "failed"
        },
        first=least_certain(rows)[:REVIEWED_FIRST],
        anchors={case.id: case.anchor for case in cases},
        words={row: flag_words(row) for row in rows},
        notes=run.get("notes", ()),
        organs=len(run["labels"]) - (BACKGROUND in run["labels"]),
    )


def _case(number: int, case: str, own: Mapping[str, Any], rows: Sequence[OrganRow], out: Path) -> _Case:
    found = [row for row in rows if row.box is not None]
    sheet = _picture(out, ORGANS, case)
    organs = tuple(
        _Organ(row, flag_words(row), None if sheet is None else _tile(place, len(found)))
        for place, row in enumerate(found)
    )
    return _Case(
        case,
        f"case-{number}",
        own.get("seconds", {}).get("total"),
        tuple(own.get("notes", ())),
        _picture(out, PLANES, case),
        sheet,
        organs,
        tuple(row.organ for row in rows if row.box is None),
        next(iter(least_certain(rows)), None),
    )


def _picture(out: Path, kind: str, case: str) -> str | None:
    there = (out / FOLDER / kind / f"{case}.jpg").is_file()
    return f"{FOLDER}/{kind}/{quote(case, safe='')}.jpg" if there else None


def _tile(place: int, count: int) -> _Tile:
    at = 100 * place / (count - 1) if count > 1 else 0
    return _Tile(f"{100 * count}% 100%", f"{at:.4f}% 0")


def flag_words(row: OrganRow) -> tuple[str, ...]:
    """An organ's flags for readers."""
    return tuple(FLAG_WORDS.get(flag, flag) for flag in row.flags)


def _provenance(run: Mapping[str, Any]) -> dict[str, object]:
    named = {
        "models": "model",
        "trained": "training",
        "recipe": "recipe",
        "device": "device",
        "precision": "precision",
        "started": "started",
    }
    return {name: run[key] for key, name in named.items() if run.get(key)}
