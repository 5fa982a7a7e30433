"""The report of a study as one page: findings, notes, tables and plots, in Markdown and in HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zoomseg.inference.html_page import environment


@dataclass(frozen=True)
class Sheet:
    """A table of text; the first column names its rows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A picture (PNG) with its caption."""

    title: str
    png: bytes


@dataclass(frozen=True)
class Page:
    title: str
    findings: Sequence[str]
    notes: Sequence[str]
    sheets: Sequence[Sheet]
    plots: Sequence[Plot] = ()


def markdown(page: Page) -> str:
    """Without the plots."""
    lines = [f"# {_plain(page.title)}", ""]
    lines += [f"- {_plain(text)}" for text in page.findings]
    for sheet in page.sheets:
        lines += ["", f"## {_plain(sheet.title)}", "", _cells(sheet.head)]
        lines.append("|" + "---|" + "---:|" * (len(sheet.head) - 1))
        lines += [_cells(row) for row in sheet.rows]
    lines += ["", "## Notes", "", *(f"- {_plain(text)}" for text in page.notes)]
    return "\n".join(lines) + "\n"


def html(page: Page) -> str:
    """One self-contained file. All names and paths are escaped."""
    return environment("zoomseg.study").get_template("study.html").render(page=page)


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Names come from data sets: they must not break out of their line or cell."""
    return re.sub(r"([|<>`*_\[\]\\])", r"\\\1", " ".join(text.split()))
