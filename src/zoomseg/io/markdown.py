"""Names and tables in Markdown files: names come from data sets and models, and may be any text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MARKUP = re.compile(r"[|<>`*\[\]\\]")


def plain(text: str) -> str:
    """Text in a line of its own or a table's cell, without the effect of markup in it."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def table(heading: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A table, one line per row.

    Args:
        numbers: align all columns but the first to the right.
    """
    rule = ["---", *(["---:" if numbers else "---"] * (len(heading) - 1))]
    lines = [[plain(cell) for cell in heading], rule, *([plain(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
