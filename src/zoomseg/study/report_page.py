"""The report of a study as one page: findings, notes, tables and plots, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zoomseg.inference.html_page import environment
from zoomseg.io.markdown import plain, table


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
class StudyReport:
    title: str
    findings: Sequence[str]
    notes: Sequence[str]
    sheets: Sequence[Sheet]
    plots: Sequence[Plot] = ()


def markdown(page: StudyReport) -> str:
    """Without the plots."""
    lines = [f"# {plain(page.title)}", ""]
    lines += [f"- {plain(text)}" for text in page.findings]
    for sheet in page.sheets:
        lines += ["", f"## {plain(sheet.title)}", "", table(sheet.head, sheet.rows).rstrip("\n")]
    lines += ["", "## Notes", "", *(f"- {plain(text)}" for text in page.notes)]
    return "\n".join(lines) + "\n"


def html(page: StudyReport) -> str:
    """One self-contained file. All names and paths are escaped."""
    return environment("zoomseg.study").get_template("study.html").render(page=page)
