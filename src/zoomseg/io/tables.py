"""Tables as CSV text that spreadsheet programs open without harm, and their rows read back."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoomseg.io.files import MAX_RESULTS_BYTES, read_file

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""Text that begins with one of these is a formula for spreadsheet programs."""

_ENDS = "\r\n"
"""The writer quotes a cell that contains a character of its line ends, and no other such character."""


class _Lines(list[str]):
    """Receives the writer's lines; here, they end in ``\\n``."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix(_ENDS) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table as CSV, with lines that end in ``\\n``. Names of cases and organs, which may come from others,
    cannot become a formula in a spreadsheet program: text that begins like one and is not a number is
    prefixed with an apostrophe, which marks it as text in these programs. ``read_rows`` removes it."""
    lines = _Lines()
    table = csv.writer(lines, lineterminator=_ENDS)
    table.writerow(columns)
    table.writerows([_guarded(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return "".join(lines)


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table by column, as they were given to ``csv_text``, also if an editor put a byte order
    mark before them. The file is read at once, rows are checked one by one.

    Raises:
        OSError: the file cannot be read, or is larger than ``MAX_RESULTS_BYTES``.
        csv.Error: it is not CSV, or a row has more or fewer cells than there are columns.
        UnicodeDecodeError: it is not text.
    """
    content = io.BytesIO(read_file(path, MAX_RESULTS_BYTES))
    return _rows(io.TextIOWrapper(content, "utf-8-sig", newline=""))


def _rows(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    for row in csv.DictReader(lines):
        if None in row or None in row.values():
            raise csv.Error("a row with more or fewer cells than columns")
        yield {column: _as_given(cell) for column, cell in row.items()}


def number_cell(value: float) -> str:
    """A number to six significant digits; empty if it is undefined (NaN)."""
    return "" if math.isnan(value) else f"{value:.6g}"


def _guarded(text: str) -> str:
    """Text that begins with apostrophes and a formula gets one more, as one is removed on reading."""
    begins = text.lstrip("'")[:1] in FORMULA_STARTS
    return f"'{text}" if begins and not _is_number(text) else text


def _as_given(text: str) -> str:
    return text[1:] if text[:1] == "'" and text.lstrip("'")[:1] in FORMULA_STARTS else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
