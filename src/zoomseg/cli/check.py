"""``zoomseg check``: audit a data set before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from zoomseg.datasets.audit import Finding, Repair, Report
    from zoomseg.datasets.dicom import Survey
    from zoomseg.datasets.layouts import Dataset

PLAIN_WIDTH = 1000
"""Columns where output goes to a file or pipe: one finding stays one line there."""


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--fix",
    "out",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write a repaired copy to this new folder, where that is safe; of DICOM, a data set.",
)
def command(dataset: Path, out: Path | None) -> int:
    """Audit DATASET (nnU-Net raw, Decathlon, or images/ + labels/) before training.

    Finds unreadable and missing files, geometry mismatches, unknown label values, empty labels, NaN,
    constant images, duplicates and suspected left/right swaps; and asks for names that are not given: of CT,
    of labels, of sides.

    A folder of DICOM series with SEG or RTSTRUCT objects drawn on them is no data set yet: what was drawn,
    and what cannot be used and why, is listed, and --fix writes it as nnU-Net raw data set.

    Exit codes: 0 nothing wrong (warnings allowed); 1 errors were found, or with --fix, errors remain or
    cases were left out; 2 the data set cannot be opened.
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
    _show_findings(console, report.findings)
    _show_annotation(console, opened)
    _show_summary(console, opened, report)
    if out is None:
        return 1 if report.errors else 0
    with _progress("Repairing", len(opened.cases)) as step:
        result = repair(opened, report, out, step)
    _show_repair(console, result, out)
    return 1 if result.left_out or any(f.severity == "error" for f in result.remaining) else 0


def _convert(console: Console, folder: Path, out: Path | None) -> int:
    """What there is to learn from in a folder of DICOM, and the data set that can be made of it."""
    from rich.console import Console

    from zoomseg.datasets.dicom import convert, survey

    with Console(stderr=True).status("Reading what was drawn"):
        found = survey(folder)
    _show_survey(console, found)
    if out is None:
        _tell(console, f"this is no data set yet: 'zoomseg check {folder} --fix OUT' writes one")
        return 1 if found.problems else 0
    with _progress("Converting", len(found.cases)) as step:
        result = convert(found, out, step)
    for note in (*result.problems, *result.notes):
        _tell(console, note)
    written, left_out = len(result.written), len(found.cases) - len(result.written)
    _tell(console, f"{out}: {written} case(s) written, {left_out} left out; next: zoomseg check {out}")
    return 1 if found.problems or result.problems else 0


def _show_survey(console: Console, found: Survey) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case", no_wrap=True)
    table.add_column("series", overflow="fold")
    table.add_column("drawn", overflow="fold")
    for case in found.cases:
        where = str(case.stack.paths[0].parent)
        # Text, not markup: names come from files and may hold brackets.
        table.add_row(*(Text(t) for t in (case.id, where, ", ".join(case.names))))
    console.print(table)
    for problem in found.problems:
        _tell(console, f"cannot be used: {problem}")
    for note in found.notes:
        _tell(console, note)
    schema = found.schema
    cases = Counter(schema.find(name) for case in found.cases for name in set(case.names))
    _tell(console, "labels, and cases that have them: " + ", ".join(f"{n} {cases[n]}" for n in schema.names))
    what = f"{len(found.cases)} {found.channel} series with labels, {found.unlabelled} without"
    _tell(console, f"{what}: {len(found.problems)} problem(s)")


def _tell(console: Console, text: str) -> None:
    plain = "".join(c if c.isprintable() else " " for c in text)  # names come from files
    console.print(plain, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _progress(title: str, cases: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error; yields what is to be called after each case."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from zoomseg.core.interrupts import ending

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = 0

    def step(case: str) -> None:
        nonlocal done
        done += 1
        bar.advance(task)

    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        ending(lambda: f"{title.lower()}: {done} of {cases} cases done"),
    ):
        task = bar.add_task(title, total=cases)
        yield step


def _show_findings(console: Console, findings: tuple[Finding, ...]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not findings:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("case", "severity", "kind"):
        table.add_column(title, no_wrap=True)
    table.add_column("finding", overflow="fold")
    table.add_column("--fix", no_wrap=True)
    styles = {"error": "red", "warning": "yellow"}
    for finding in findings:
        severity = Text(finding.severity, style=styles[finding.severity])
        # Text, not markup: names come from files and may hold brackets.
        case, kind, message = (Text(t) for t in (finding.case or "(all)", finding.kind, finding.message))
        fix = "leaves out" if finding.leaves_out else "mends" if finding.fixable else "-"
        table.add_row(case, severity, kind, message, fix)
    console.print(table)


def _show_annotation(console: Console, dataset: Dataset) -> None:
    """Where some cases are annotated in part: how many teach, and score, each label."""
    from zoomseg.datasets.audit import annotated_cases

    labelled = sum(case.labels is not None for case in dataset.cases)
    counts = annotated_cases(dataset)
    if all(count == labelled for count in counts.values()):
        return
    text = ", ".join(f"{name} {count}" for name, count in counts.items())
    text = f"of {labelled} labelled cases, annotated: {text}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show_summary(console: Console, dataset: Dataset, report: Report) -> None:
    errors, warnings = len(report.errors), len(report.warnings)
    labels = len(dataset.schema.names)
    what = f"{len(dataset.cases)} cases, {len(dataset.channel_names)} channel(s), {labels} label(s)"
    found = f"{errors} error(s), {warnings} warning(s)" if report.findings else "nothing wrong"
    console.print(f"{what}: {found}", highlight=False, markup=False)


def _show_repair(console: Console, result: Repair, out: Path) -> None:
    kept, mended, left_out = len(result.kept), len(result.mended), len(result.left_out)
    console.print(
        f"{out}: {kept} case(s) as they were, {mended} mended, {left_out} left out",
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
