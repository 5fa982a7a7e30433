"""``zoomseg compare``: which of several evaluations is better, and whether the difference exceeds chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from zoomseg.evaluation.comparison import Comparison


@click.command(name="compare")
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@click.option(
    "--metric",
    type=click.Choice(("dice", "nsd", "hd95_mm", "assd_mm")),
    default="dice",
    show_default=True,
    help="Metric to compare.",
)
def command(folders: tuple[Path, ...], out: Path, metric: str) -> None:
    """Compare evaluations of the same cases: each of FOLDERS with the first.

    FOLDERS were written by `zoomseg evaluate` or by the validation of `zoomseg train`. For each organ and for
    the mean over organs of each case: the mean difference, its 95 % bootstrap interval, and a paired Wilcoxon
    signed-rank test, corrected over the organs after Holm. Writes compare.csv, compare.json and compare.html.
    Cases and organs that only one side has are reported and left out.
    """
    from rich.console import Console
    from rich.markup import escape  # names may contain rich's markup

    from zoomseg.evaluation.comparison import compare_folders

    found = compare_folders(folders, out, metric)
    notes = Console(stderr=True)
    for comparison in found:
        for note in comparison.notes:
            notes.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
        Console().print(difference_table(comparison))
        click.echo(f"{comparison.finding}\n")
    click.echo(f"Report: {out / 'compare.html'}")


def difference_table(comparison: Comparison) -> Table:
    """Differences by organ and of the mean, for a terminal of 80 columns; the mean is a single test, whose p
    needs no correction."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from zoomseg.evaluation.comparison import digits_of
    from zoomseg.inference.html_page import number, p_value, signed

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Organ")
    for heading in ("Cases", "First", "Other", "Differ-\nence", "95 %\nfrom", "\nto", "p,\nHolm"):
        table.add_column(heading, justify="right")
    digits = digits_of(comparison.metric)
    for row in (*comparison.organs, comparison.mean):
        if row is comparison.mean:
            table.add_section()
        table.add_row(
            "mean of organs" if row is comparison.mean else escape(row.organ),
            str(row.cases),
            *(number(value, digits - 1) for value in (row.first, row.other)),
            *(signed(value, digits) for value in (row.difference, row.low, row.high)),
            p_value(row.p if row is comparison.mean else row.p_holm),
            style="bold" if row.significant else None,
        )
    return table
