"""``zoomseg recipes``: list the included recipes, print one, or plan one for a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoomseg.cli.train import parse_duration, require_one_length

if TYPE_CHECKING:
    from zoomseg.planning.rationale import Plan


@click.command()
@click.argument("name", required=False)
@click.option(
    "--for",
    "dataset",
    metavar="DATASET",
    type=click.Path(path_type=Path),
    help="Plan the recipe for this data set and give the reason for each number.",
)
@click.option("--device", metavar="TEXT", help="With --for: auto (default), cpu, cuda or cuda:N.")
@click.option(
    "--time-budget",
    metavar="TIME",
    callback=parse_duration,
    help="With --for: as in zoomseg train, e.g. 15m.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="With --for: as in zoomseg train.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="With --for: write the planned recipe to this file."
)
def command(
    name: str | None,
    dataset: Path | None,
    device: str | None,
    time_budget: float | None,
    epochs: int | None,
    out: Path | None,
) -> None:
    """List the recipes, print one, or plan one for a data set.

    NAME is an included recipe or the path of a YAML file. It is printed as YAML with all defaults filled in;
    to change it, edit a copy and pass its path to `zoomseg train -r`.

    With --for, the recipe (default: 'default') is planned as `zoomseg train` would plan it from all labelled
    cases, for a training of the same length (--time-budget or --epochs): a table lists the decisions, and the
    properties of the data and the device on which they are based.
    """
    from zoomseg.recipe import load

    if dataset is not None:
        require_one_length(time_budget, epochs)
        _show_plan(_planned(name or "default", dataset, device or "auto", time_budget, epochs), out)
        return
    if any(given is not None for given in (device, time_budget, epochs, out)):
        raise click.UsageError("--device, --time-budget, --epochs and --out require --for DATASET")
    if name is not None:
        click.echo(load.dump(load.load(name)), nl=False)
        return
    _print_table(("recipe", "stages", "source", "description"), [_row(known) for known in load.names()])


def _row(name: str) -> tuple[str, str, str, str]:
    from zoomseg.recipe import load
    from zoomseg.recipe.spec import Recipe

    recipe = load.load(name)
    stages = " -> ".join(s.name for s in recipe.stages) if isinstance(recipe, Recipe) else "planned"
    return name, stages, recipe.source or "-", recipe.description


def _show_plan(plan: Plan, out: Path | None) -> None:
    from zoomseg.io.files import write_text_atomic
    from zoomseg.planning.rationale import HEADING, ORGAN_HEADING
    from zoomseg.recipe import load

    _print_table(HEADING, [(reason.what, reason.value, reason.why) for reason in plan.reasons])
    click.echo()
    _print_table(ORGAN_HEADING, plan.organ_rows())
    if out is not None:
        write_text_atomic(out, load.dump(plan.recipe))
        click.echo(f"\nRecipe: {out}")


def _planned(name: str, dataset: Path, device: str, seconds: float | None, epochs: int | None) -> Plan:
    """The plan of a training on all labelled cases."""
    from rich.console import Console

    from zoomseg.backends.device import resolve
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.core.errors import RecipeError
    from zoomseg.datasets.layouts import open_dataset
    from zoomseg.recipe import load
    from zoomseg.recipe.spec import Recipe
    from zoomseg.training import requested_recipe

    recipe = load.load(name)
    if isinstance(recipe, Recipe):
        raise RecipeError(
            f"recipe '{recipe.name}' is complete, so nothing is planned for a data set; omit --for to print "
            "it, or name a recipe that is planned, such as default"
        )
    data, request = open_dataset(dataset), requested_recipe.TrainingRequest(name, seconds, epochs)
    with TrainingDisplay(Console(stderr=True)) as display:
        return requested_recipe.plan_recipe(
            data, requested_recipe.choose_split(data, request), recipe, resolve(device), display, request
        )


def _print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(heading[0], no_wrap=True)
    for title in heading[1:]:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(soft_wrap=False).print(table)
