"""``zoomseg check``: audit a data set before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from zoomseg.datasets.audit import Finding, Repair, Report
    from zoomseg.datasets.dicom import Survey
    from zoomseg.datasets.layouts import Dataset

PLAIN_WIDTH = 1000
"""Number of columns if output goes to a file or pipe: one finding stays on one line there."""


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--fix",
    "out",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write a repaired copy to this new folder; for DICOM, a data set.",
)
def command(dataset: Path, out: Path | None) -> int:
    """Audit DATASET (nnU-Net raw, Decathlon, or images/ + labels/) before training.

    Reports unreadable and missing files, geometry mismatches, unknown label values, empty labels, NaN,
    constant images, duplicates, suspected left/right swaps, and missing names (of CT channels, labels and
    sides).

    For a folder of DICOM series with SEG or RTSTRUCT objects, lists what is annotated, and what cannot be
    used and why; --fix writes it as an nnU-Net raw data set.

    Exit codes: 0 no errors (warnings allowed); 1 errors were found, or with --fix, errors remain or cases
    were left out; 2 the data set cannot be opened.
    """
    from rich.console import Console

    from zoomseg.datasets.audit import audit, repair
    from zoomseg.datasets.layouts import holds_dicom_only, open_dataset

    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    if holds_dicom_only(dataset):
        return _convert(console, dataset, out)
    opened = open_dataset(dataset)
    with _progress("Checking", len(opened.cases)) as step:
        report = audit(opened, step)
    show_findings(console, report.findings)
    _show_annotation(console, opened)
    _show_summary(console, opened, report)
    if out is None:
        return 1 if report.errors else 0
    with _progress("Repairing", len(opened.cases)) as step:
        result = repair(opened, report, out, step)
    _show_repair(console, result, out)
    return 1 if result.left_out or any(f.severity == "error" for f in result.remaining) else 0


def _convert(console: Console, folder: Path, out: Path | None) -> int:
    """Report the training data in a folder of DICOM, and create a data set from it on request."""
    from rich.console import Console

    from zoomseg.datasets.dicom import convert, survey

    with Console(stderr=True).status("Reading annotations"):
        found = survey(folder)
    _show_survey(console, found)
    if out is None:
        _print(console, f"this is not a data set yet; 'zoomseg check {folder} --fix OUT' writes one")
        return 1 if found.problems else 0
    with _progress("Converting", len(found.cases)) as step:
        result = convert(found, out, step)
    for note in (*result.problems, *result.notes):
        _print(console, note)
    written, left_out = len(result.written), len(found.cases) - len(result.written)
    _print(console, f"{out}: {written} case(s) written, {left_out} left out; next: zoomseg check {out}")
    return 1 if found.problems or result.problems else 0


def _show_survey(console: Console, found: Survey) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case", no_wrap=True)
    table.add_column("series", overflow="fold")
    table.add_column("annotated", overflow="fold")
    for case in found.cases:
        where = str(case.stack.paths[0].parent)
        # Text, not markup: names come from files and may contain brackets.
        table.add_row(*(Text(t) for t in (case.id, where, ", ".join(case.names))))
    console.print(table)
    for problem in found.problems:
        _print(console, f"cannot be used: {problem}")
    for note in found.notes:
        _print(console, note)
    schema = found.schema
    cases = Counter(schema.find(name) for case in found.cases for name in set(case.names))
    _print(
        console, "labels, with their number of cases: " + ", ".join(f"{n} {cases[n]}" for n in schema.names)
    )
    what = f"{len(found.cases)} {found.channel} series with labels, {found.unlabelled} without"
    _print(console, f"{what}: {len(found.problems)} problem(s)")


def _print(console: Console, text: str) -> None:
    console.print(_plain(text), highlight=False, markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Names come from files, and could contain control sequences for the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


@contextmanager
def _progress(title: str, cases: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error; yields a function to be called after each case."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from zoomseg.core.interrupts import interruptible

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = 0

    def step(case: str) -> None:
        nonlocal done
        done += 1
        bar.advance(task)

    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        interruptible(lambda: f"{title.lower()}: {done} of {cases} cases done"),
    ):
        task = bar.add_task(title, total=cases)
        yield step


_HEADS = ("case", "severity", "kind", "finding", "--fix")
_MESSAGE = _HEADS.index("finding")
_GAP = "  "
_MIN_CASES = 20
"""Minimum number of columns for findings, however long the names of cases are."""


def show_findings(console: Console, findings: tuple[Finding, ...]) -> None:
    """A table, laid out here: rich's own takes half a millisecond per row, and there may be thousands."""
    from rich.text import Text

    if not findings:
        return
    rows = [_cells(finding) for finding in findings]
    widths = _widths((_HEADS, *rows), console.width)
    heads = _line(_HEADS, widths)
    heads.stylize("bold")
    lines = [heads]
    styles = {"error": "red", "warning": "yellow"}
    for finding, row in zip(findings, rows, strict=True):
        first, *more = _folded(console, row[_MESSAGE], widths[_MESSAGE])
        lines.append(_line((*row[:_MESSAGE], first, row[-1]), widths, styles[finding.severity]))
        lines += [_line(("", "", "", part, ""), widths) for part in more]
    console.print(Text("\n").join(lines), highlight=False, soft_wrap=True)


def _cells(finding: Finding) -> tuple[str, ...]:
    fix = "leaves out" if finding.leaves_out else "repairs" if finding.fixable else "-"
    cells = (finding.case or "(all)", finding.severity, finding.kind, finding.message, fix)
    return tuple(_plain(cell) for cell in cells)


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The width of each column, as wide characters take two; messages get the remaining width."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    others = sum(widths) - widths[_MESSAGE] + (len(widths) - 1) * len(_GAP)
    widths[_MESSAGE] = min(widths[_MESSAGE], max(room - others, _MIN_CASES))
    return widths


def _folded(console: Console, message: str, width: int) -> list[str]:
    """The message on as many lines as necessary, at least one."""
    from rich.cells import cell_len
    from rich.text import Text

    if cell_len(message) <= width:  # the common case, as folding is slow
        return [message]
    return [line.plain for line in Text(message).wrap(console, width, overflow="fold")]


def _line(cells: Sequence[str], widths: Sequence[int], severity_style: str = "") -> Text:
    from rich.cells import set_cell_size
    from rich.text import Text

    case, severity, *rest = (set_cell_size(cell, width) for cell, width in zip(cells, widths, strict=True))
    # Text, not markup: names come from files and may contain brackets.
    return Text.assemble(case, _GAP, (severity, severity_style), _GAP, _GAP.join(rest))


def _show_annotation(console: Console, dataset: Dataset) -> None:
    """For partially annotated data sets, the number of cases that annotate each label."""
    from zoomseg.datasets.audit import annotated_cases

    labelled = len(dataset.labelled_ids)
    counts = annotated_cases(dataset)
    if all(count == labelled for count in counts.values()):
        return
    text = ", ".join(f"{name} {count}" for name, count in counts.items())
    text = f"cases with annotation, of {labelled} labelled ones: {text}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show_summary(console: Console, dataset: Dataset, report: Report) -> None:
    errors, warnings = len(report.errors), len(report.warnings)
    labels = len(dataset.schema.names)
    what = f"{len(dataset.cases)} cases, {len(dataset.channel_names)} channel(s), {labels} label(s)"
    found = f"{errors} error(s), {warnings} warning(s)" if report.findings else "no problems"
    console.print(f"{what}: {found}", highlight=False, markup=False)


def _show_repair(console: Console, result: Repair, out: Path) -> None:
    kept, mended, left_out = len(result.kept), len(result.repaired), len(result.left_out)
    console.print(
        f"{out}: {kept} case(s) unchanged, {mended} repaired, {left_out} left out",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if result.left_out:
        console.print(
            f"left out: {', '.join(result.left_out)}", highlight=False, markup=False, soft_wrap=True
        )
    for finding in result.remaining:
        where = finding.case or "all cases"
        text = f"remains: {where}: {finding.message}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
