"""Tables as CSV: numbers, quotes and ends of lines, and names that are no formulas."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path

import pytest

import zoomseg
from zoomseg.io import tables
from zoomseg.io.tables import csv_text, number_cell, read_rows

NAMES = (
    ("=1+2", "'=1+2"),
    ("@x", "'@x"),
    ("-3.5+x", "'-3.5+x"),
    ("+inf", "'+inf"),
    ("\tx", "'\tx"),
    ("\rx", "'\rx"),
    ("'=1", "''=1"),
    ("''-3", "'''-3"),
    ("-3.5", "-3.5"),
    ("'", "'"),
    ("'x", "'x"),
    ("", ""),
    ("liver", "liver"),
)


def test_a_table_is_text_with_quotes_where_they_are_needed() -> None:
    assert csv_text(("a", "b"), [("x", 1), ('y, "z"', -2.5), ("two\nlines", "")]) == (
        'a,b\nx,1\n"y, ""z""",-2.5\n"two\nlines",\n'
    )
    assert csv_text(("a",), []) == "a\n"


def test_numbers_have_six_digits_and_undefined_ones_none() -> None:
    numbers = (0.5, 1 / 3, 1234567.0, math.nan, math.inf, -0.25)
    assert [number_cell(v) for v in numbers] == ["0.5", "0.333333", "1.23457e+06", "", "inf", "-0.25"]


def test_numbers_are_no_formulas() -> None:
    assert csv_text(("a", "b"), [("-3.5", -2.0)]) == "a,b\n-3.5,-2.0\n"


@pytest.mark.parametrize(("name", "written"), NAMES)
def test_names_are_no_formulas_and_are_read_as_they_were(name: str, written: str, tmp_path: Path) -> None:
    text = csv_text(("case", "n"), [(name, 1)])
    assert list(csv.reader(io.StringIO(text, newline="")))[1] == [written, "1"]
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert list(read_rows(tmp_path / "t.csv")) == [{"case": name, "n": "1"}]


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("case,n\nleber,1\n", encoding="utf-8-sig")
    assert list(read_rows(tmp_path / "t.csv")) == [{"case": "leber", "n": "1"}]


def test_only_files_of_a_moderate_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(OSError, match="not a file"):
        read_rows(tmp_path / "pipe.csv")
    monkeypatch.setattr(tables, "MAX_RESULTS_BYTES", 5)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(OSError, match="8 bytes"):
        read_rows(tmp_path / "t.csv")


@pytest.mark.parametrize("row", ["1", "1,2,3"])
def test_a_row_of_another_length_is_refused(row: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"a,b\n{row}\n")
    with pytest.raises(csv.Error, match="more or fewer cells"):
        list(read_rows(tmp_path / "t.csv"))


def test_every_other_module_leaves_tables_to_this_one() -> None:
    """Otherwise a name could become a formula. The log of a training is appended to line by line, and has
    names of the recipe's stages only."""
    package = Path(zoomseg.__file__).parent
    writers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "csv.writer(" in (text := path.read_text(encoding="utf-8")) or "csv.DictWriter(" in text
    }
    assert writers == {"io/tables.py", "training/log.py"}
