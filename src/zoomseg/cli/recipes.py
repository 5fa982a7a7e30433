"""``zoomseg recipes``: list the shipped recipes, or print one resolved."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the recipes, or print one resolved.

    NAME is a recipe that comes with ZoomSeg or the path of a YAML file. It is printed as YAML with
    every default filled in; edit a copy and give its path to `zoomseg train -r`.
    """
    from zoomseg.recipe import load

    if name is not None:
        click.echo(load.dump(load.load(name)), nl=False)
        return
    _print_table([_row(known) for known in load.names()])


def _row(name: str) -> tuple[str, str, str, str]:
    from zoomseg.recipe import load
    from zoomseg.recipe.spec import Recipe

    recipe = load.load(name)
    stages = " -> ".join(s.name for s in recipe.stages) if isinstance(recipe, Recipe) else "planned"
    return name, stages, recipe.source or "-", recipe.description


def _print_table(rows: list[tuple[str, str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    for title in ("stages", "source", "description"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(soft_wrap=False).print(table)
