"""Rows of ``summary.csv`` and their order in ``review.csv``: numbers, flags, and empty values."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from zoomseg.anatomy.measurements import NO_SIDES, OrganMeasurement, Sides
from zoomseg.core.errors import OutputError
from zoomseg.core.geometry import Box
from zoomseg.core.labels import LabelSchema
from zoomseg.inference.summary import (
    MISPLACED,
    UNUSUAL_VOLUME,
    OrganRow,
    least_certain,
    organ_flags,
    organ_rows,
    read_summary,
    write_review,
    write_summary,
)

SCHEMA = LabelSchema(("left kidney", "right kidney", "liver"), (6, 1, 8))
TOP: Sides = ((False, False), (False, False), (False, True))
BOX = Box((1, 2, 3), (4, 5, 6))
CORNERS = ((-1.25, 2.0, 3.5), (4.0, 5.0, 6.125))


def found(x: float, cut: Sides = NO_SIDES) -> OrganMeasurement:
    return OrganMeasurement(100, 2.5, 101.25, 99.0, BOX, CORNERS, (x, 0.0, 0.0), cut)


def test_flags() -> None:
    organs = {"left kidney": found(30, TOP), "right kidney": found(-30)}
    flags = organ_flags(SCHEMA, organs, SCHEMA.names, cut=["right kidney"])
    assert flags == {
        "left kidney": ("touches_scan_border", "sides_swapped"),
        "right kidney": ("touches_region_border", "sides_swapped"),
        "liver": ("missing",),
    }
    assert organ_flags(SCHEMA, {"liver": found(0)}, ["liver"]) == {"liver": ()}
    odd = {MISPLACED: ["liver", "spleen"], UNUSUAL_VOLUME: ["liver"]}
    assert organ_flags(SCHEMA, {"liver": found(0)}, ["liver"], odd=odd) == {
        "liver": ("misplaced", "unusual_volume")
    }


def test_rows_follow_the_flags() -> None:
    rows = organ_rows(
        "a", {"liver": found(0)}, {"liver": ("odd",), "right kidney": ("missing",)}, {"liver": 0.5}
    )
    assert rows == [
        OrganRow("a", "liver", 2.5, 101.25, 0.5, ("odd",), 99.0, BOX, CORNERS),
        OrganRow("a", "right kidney", 0.0, None, None, ("missing",), None, None, None),
    ]


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


ROWS = [
    OrganRow("a,b", "liver", 1234.5678, -12.3456, 0.98765, (), -12.0, BOX, CORNERS, (0.9, 0.99123)),
    OrganRow("c", "spleen", 0.0, None, None, ("missing", "odd")),
    OrganRow("c", "liver", 1.0, 2.0, 0.5, ("odd",)),
    OrganRow("d", "liver", 1.0, 2.0, 0.5, ("odd", "cut")),
    OrganRow("d", "spleen", 1.0, 2.0, 0.0, ()),
]


def test_summary(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.csv", ROWS[:2])
    assert read(tmp_path / "summary.csv") == [
        [
            *("case", "organ", "volume_ml", "mean_intensity", "confidence", "flags", "median_intensity"),
            *("i_start", "i_stop", "j_start", "j_stop", "k_start", "k_stop"),
            *("x_min_mm", "x_max_mm", "y_min_mm", "y_max_mm", "z_min_mm", "z_max_mm"),
            *("dice_low", "dice_high"),
        ],
        [
            *("a,b", "liver", "1234.568", "-12.346", "0.9877", "", "-12.000"),
            *("1", "4", "2", "5", "3", "6"),
            *("-1.25", "4.00", "2.00", "5.00", "3.50", "6.12"),
            *("0.9000", "0.9912"),
        ],
        ["c", "spleen", "0.000", "", "", "missing;odd", *[""] * 15],
    ]


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_summary(tmp_path / "one.csv", ROWS)
    rows = read_summary(tmp_path / "one.csv")
    assert (rows[0].case, rows[0].box, rows[0].corners_mm) == (
        "a,b",
        BOX,
        ((-1.25, 2.0, 3.5), (4.0, 5.0, 6.12)),
    )
    assert (rows[1].flags, rows[1].box, rows[1].confidence) == (("missing", "odd"), None, None)
    assert [row.dice_range for row in rows[:2]] == [(0.9, 0.9912), None]
    write_summary(tmp_path / "two.csv", rows)
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_names_are_no_formulas_in_the_tables_and_are_read_as_they_were(tmp_path: Path) -> None:
    rows = [OrganRow("=1+2", "@x", 1.0, None, 0.5, ()), OrganRow("'-a", "liver", 1.0, None, 0.5, ())]
    write_summary(tmp_path / "summary.csv", rows)
    write_review(tmp_path / "review.csv", rows)
    for name in ("summary.csv", "review.csv"):
        cells = [line[:2] for line in read(tmp_path / name)[1:]]
        assert sorted(cells) == [["''-a", "liver"], ["'=1+2", "'@x"]]
    assert read_summary(tmp_path / "summary.csv") == rows


def test_a_summary_without_intervals_is_read(tmp_path: Path) -> None:
    write_summary(tmp_path / "new.csv", ROWS)
    old = [row[:-2] for row in read(tmp_path / "new.csv")]
    with (tmp_path / "old.csv").open("w", newline="") as file:
        csv.writer(file).writerows(old)
    rows = read_summary(tmp_path / "old.csv")
    assert [(row.case, row.confidence, row.dice_range) for row in rows[:2]] == [
        ("a,b", 0.9877, None),
        ("c", None, None),
    ]


def test_a_table_that_an_editor_saved_with_its_mark_is_read(tmp_path: Path) -> None:
    write_summary(tmp_path / "one.csv", ROWS)
    (tmp_path / "two.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "one.csv").read_bytes())
    assert read_summary(tmp_path / "two.csv") == read_summary(tmp_path / "one.csv")


@pytest.mark.parametrize("row", ["a,liver,12.3", "a,liver,1,1,1,,1" + "," * 15])
def test_a_row_of_too_few_or_too_many_cells_is_refused(tmp_path: Path, row: str) -> None:
    write_summary(tmp_path / "s.csv", ROWS)
    with (tmp_path / "s.csv").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(ValueError, match="not a summary"):
        read_summary(tmp_path / "s.csv")


@pytest.mark.parametrize("content", [b"case\na\n", b"\xff", b"case,organ\n" + b"x" * 200_000])
def test_what_is_no_summary_is_not_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"not a summary|utf-8"):
        read_summary(tmp_path / "s.csv")


def test_review_begins_with_the_least_certain_and_ends_with_what_is_missing(tmp_path: Path) -> None:
    write_review(tmp_path / "review.csv", ROWS)
    assert read(tmp_path / "review.csv") == [
        ["case", "organ", "confidence", "flags", "volume_ml", "dice_low", "dice_high"],
        ["d", "spleen", "0.0000", "", "1.000", "", ""],
        ["d", "liver", "0.5000", "odd;cut", "1.000", "", ""],
        ["c", "liver", "0.5000", "odd", "1.000", "", ""],
        ["a,b", "liver", "0.9877", "", "1234.568", "0.9000", "0.9912"],
        ["c", "spleen", "", "missing;odd", "0.000", "", ""],
    ]
    assert [row.case for row in least_certain(ROWS)] == ["d", "d", "c", "a,b"]


@pytest.mark.parametrize("write", [write_summary, write_review])
def test_unwritable_place(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "file" / "summary.csv", [])
