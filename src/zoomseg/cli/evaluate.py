"""``zoomseg evaluate``: the accuracy of predictions, on the terminal and as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoomseg.cli.options import given_by_user

if TYPE_CHECKING:
    from rich.table import Table

    from zoomseg.evaluation.result import Evaluation


@click.command(name="evaluate")
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@click.option(
    "--tolerance-mm", type=float, default=1.0, show_default=True, help="Surface tolerance of the NSD."
)
@click.option(
    "--tolerance",
    "table",
    metavar="TABLE",
    help="Tolerance of each organ instead: flare22 for the rule of the FLARE 2022 challenge (also writes its "
    "DSC_NSD.csv and, if the predictions have a run.json, its Efficiency.csv), or a file: CSV with the "
    "columns organ and mm, or YAML, `organ: mm`.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder or data set of scans on which contours are drawn; not needed if REFERENCE is a data set.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of processes for scoring [default: two threads].",
)
@click.pass_context
def command(
    context: click.Context,
    predictions: Path,
    reference: Path,
    out: Path,
    tolerance_mm: float,
    table: str | None,
    images: Path | None,
    workers: int | None,
) -> int:
    """Score PREDICTIONS against REFERENCE: Dice, NSD, HD95, ASSD, volumes.

    PREDICTIONS is a folder of <case>.nii.gz. REFERENCE is a folder of label files with the same names,
    or a data set; swapped folders are rejected. Writes metrics.csv, summary.json and report.html. If
    PREDICTIONS was written with `--keep-stages`, these also contain the share of each organ inside the region
    of its stage, and where Dice is lost: missed by the coarse stage, cut by the region, at the boundary,
    elsewhere.
    """
    from rich.console import Console
    from rich.markup import escape  # names may contain rich's markup
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from zoomseg.core.interrupts import interruptible
    from zoomseg.evaluation.evaluate import evaluate
    from zoomseg.evaluation.tolerances import read_tolerances

    if table is not None and "tolerance_mm" in given_by_user(context):
        raise click.UsageError("--tolerance and --tolerance-mm exclude each other; give one of them")
    rules = tolerance_mm if table is None else read_tolerances(table)
    notes = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("Scoring", total=None)
        count = [0, 0]

        def step(case: str, done: int, total: int) -> None:
            count[:] = done, total
            bar.update(task, completed=done, total=total)

        with interruptible(lambda: f"{count[0]} of {count[1]} cases were scored, and nothing was written"):
            evaluation = evaluate(
                predictions, reference, out, rules, images=images, on_progress=step, workers=workers
            )
    for warning in evaluation.warnings:
        notes.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    for failure in evaluation.failures:
        notes.print(
            f"[red]failed:[/] {escape(f'{failure.case}: {failure.reason}')}", highlight=False, soft_wrap=True
        )
    Console().print(score_table(evaluation))
    click.echo(f"Report: {out / 'report.html'}")
    return 1 if evaluation.failures else 0


def score_table(evaluation: Evaluation) -> Table:
    """Scores by organ and their means, for a terminal of 80 columns."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from zoomseg.inference.html_page import number

    table = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1, 0, 0), pad_edge=False)
    mean = evaluation.mean
    table.add_column("Organ", footer="mean of organs")
    for heading, footer in (
        ("Cases", ""),
        ("Dice", number(mean["dice"], 3)),
        (f"NSD\n{evaluation.tolerances.name}", number(mean["nsd"], 3)),
        ("HD95\nmm", number(mean["hd95_mm"], 1)),
        ("ASSD\nmm", number(mean["assd_mm"], 2)),
        ("Missed", ""),
        ("Spurious", ""),
        *([("In\nregion", "")] if evaluation.with_regions else []),
    ):
        table.add_column(heading, footer=footer, justify="right")
    for row in evaluation.summary:
        scores = [number(row.dice, 3), number(row.nsd, 3), number(row.hd95_mm, 1), number(row.assd_mm, 2)]
        recall = [f"{number(100 * row.region_recall, 1)} %"] if evaluation.with_regions else []
        table.add_row(escape(row.organ), str(row.cases), *scores, str(row.missed), str(row.spurious), *recall)
    return table
