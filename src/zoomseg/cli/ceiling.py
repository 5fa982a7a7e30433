"""``zoomseg ceiling``: the best Dice that a recipe permits on a data set, before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoomseg.cli.train import parse_duration, require_one_length

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from zoomseg.backends.device import Device
    from zoomseg.datasets.layouts import CaseFiles, Dataset
    from zoomseg.evaluation.upper_bound import UpperBound
    from zoomseg.inference.batch import Failed
    from zoomseg.recipe.spec import Recipe
    from zoomseg.training.requested_recipe import TrainingRequest


@click.command(name="ceiling")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("-r", "--recipe", default="default", show_default=True, help="Name or path of a recipe.")
@click.option(
    "--time-budget",
    metavar="TIME",
    callback=parse_duration,
    help="Length of the training for which a recipe such as 'default' is planned, e.g. 15m.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="The same as a number of epochs of 100 steps.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for ceiling.csv and ceiling.md.")
@click.option("--cases", type=click.IntRange(min=1), help="Use only this number of labelled cases.")
def command(
    dataset: Path,
    recipe: str,
    time_budget: float | None,
    epochs: int | None,
    out: Path | None,
    cases: int | None,
) -> int:
    """Compute the best Dice of a recipe on DATASET with perfect networks, and where the rest is lost.

    Every network is replaced by an oracle that returns the reference on the requested grid. The Dice that an
    organ then lacks is lost by the stage's grid, by its region (candidate region or box), or otherwise
    (tiles, fusion). "outside" is the share of the organ outside the region. Nothing is trained. A case that
    fails is reported, the others are processed, and the exit code is 1 (2 if none is left).
    """
    from rich.console import Console

    from zoomseg.backends.device import resolve
    from zoomseg.core.errors import DatasetError
    from zoomseg.datasets.layouts import open_dataset
    from zoomseg.evaluation.upper_bound import write
    from zoomseg.io.files import writable_directory
    from zoomseg.training.requested_recipe import TrainingRequest

    require_one_length(time_budget, epochs)
    data, device = open_dataset(dataset), resolve("auto")
    notes = Console(stderr=True)
    request = TrainingRequest(recipe, time_budget, epochs)
    resolved = _resolve(data, request, device, notes)
    if out is not None:
        writable_directory(out)  # before minutes of computation
    rows, failed = _measure(data, resolved, cases, device, notes)
    if not rows:
        raise DatasetError(f"data set '{data.name}': no case contains an organ that the recipe predicts")
    Console().print(_table(rows))
    if out is not None:
        write(rows, out, f"Ceiling of {resolved.name} on {data.name}")
        click.echo(f"Table: {out / 'ceiling.md'}")
    return 1 if failed else 0


def _resolve(data: Dataset, request: TrainingRequest, device: Device, notes: Console) -> Recipe:
    """The recipe as trained on all cases; mismatches between recipe and data are reported."""
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.evaluation import upper_bound
    from zoomseg.training import requested_recipe

    wanted = requested_recipe.load_requested_recipe(request, None)
    with TrainingDisplay(notes) as display:
        split = requested_recipe.choose_split(data, request)
        resolved = requested_recipe.resolve_recipe(data, split, wanted, device, display, request)
    missing = upper_bound.check(resolved, data)
    if missing:
        notes.print(f"no stage predicts {', '.join(missing)}", style="yellow", markup=False)
    return resolved


def _measure(
    data: Dataset, recipe: Recipe, cases: int | None, device: Device, notes: Console
) -> tuple[list[UpperBound], int]:
    """All rows, and the number of cases that failed."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from zoomseg.core.interrupts import interruptible
    from zoomseg.inference.batch import Failed

    rows: list[UpperBound] = []
    done = failed = 0
    chosen = [case for case in data.cases if case.labels is not None][:cases]
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar,
        interruptible(lambda: f"{done} of {len(chosen)} cases were measured, and nothing was written"),
    ):
        for case in bar.track(chosen, description="Computing the upper bound"):
            found = _measured(data, case, recipe, device)
            if isinstance(found, Failed):
                failed += 1
                text = f"failed: {found.case}: {found.reason}"
                notes.print(text, style="red", markup=False, soft_wrap=True)
            else:
                rows += found
            done += 1
    return rows, failed


def _measured(
    data: Dataset, case: CaseFiles, recipe: Recipe, device: Device
) -> tuple[UpperBound, ...] | Failed:
    """The rows of one case; any error is a failure of that case only."""
    from zoomseg.evaluation.upper_bound import measure
    from zoomseg.inference.batch import tried

    return tried(case.id, case.images[0], lambda: measure(data.load(case), recipe, device))


def _table(rows: list[UpperBound]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from zoomseg.evaluation.upper_bound import table

    heading, *lines, mean = table(rows)
    shown = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1, 0, 0), pad_edge=False)
    for n, (title, footer) in enumerate(zip(heading, mean, strict=True)):
        shown.add_column(title.replace(": ", ":\n"), footer=footer, justify="right" if n else "left")
    for line in lines:
        shown.add_row(*(Text(cell) for cell in line))  # Text: brackets in an organ's name are no markup
    return shown
