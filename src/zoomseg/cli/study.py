"""``zoomseg study``: a paper's ablation table on your own data."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoomseg.cli.train import parse_duration

if TYPE_CHECKING:
    from zoomseg.training.log import Observer

ABLATIONS = (
    "roth2018-cascade",
    "roth2018-candidate-region",
    "zhou2016",
    "roth2018-pyramid",
    "valindria2018",
    "flare22",
    "flare22-unlabelled",
    "roth2018-finetune",
)
"""Typed here, too, as ``--help`` must not wait for the package that defines them; a test compares."""


@click.command(name="study")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--ablation", type=click.Choice(ABLATIONS), required=True, help="Which paper's table.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for everything; an interrupted study in it goes on.",
)
@click.option(
    "--time-budget",
    metavar="TIME",
    callback=parse_duration,
    help="For EACH training, e.g. 15m or 1h30m; without it, the recipe's own number of iterations.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    help="Train all of so many folds and pool their cases; else the first of 5 (valindria2018: both of 2).",
)
@click.option(
    "--fold", type=click.IntRange(min=0), help="Only this fold; a later run without it adds the rest."
)
@click.option(
    "--coarser",
    type=click.FloatRange(min=1),
    default=1.0,
    show_default=True,
    help="Voxels of all stages' grids so many times as large along each axis.",
)
@click.option(
    "--narrower",
    type=click.FloatRange(min=1),
    default=1.0,
    show_default=True,
    help="Networks with so many times fewer channels.",
)
@click.option(
    "--init", type=click.Path(path_type=Path), help="Model to fine-tune (roth2018-finetune, which needs it)."
)
@click.option(
    "-r",
    "--recipe",
    metavar="RECIPE",
    help="Recipe with stages of the same names in place of the paper's: a name or a file (zhou2016: in place "
    "of the cascade; the 2D row keeps its own).",
)
@click.option(
    "--small",
    metavar="ORGAN,...",
    help="Organs that get a stage each and are tabulated; else all (valindria2018).",
)
@click.option("--atlases", type=click.IntRange(1, 1000), help="Atlases per scan, in place of the recipe's.")
@click.option(
    "--split",
    type=click.Path(path_type=Path),
    help="JSON with lists train, validation and test, or nnU-Net's splits_final.json, in place of folds.",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    help="Data set that every row is scored on, too; not trained on.",
)
@click.option(
    "--unlabelled",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Scans that nobody has labelled (flare22-unlabelled, which needs them).",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of folds and trainings."
)
def command(
    dataset: Path,
    ablation: str,
    out: Path,
    time_budget: float | None,
    folds: int | None,
    fold: int | None,
    coarser: float,
    narrower: float,
    init: Path | None,
    recipe: str | None,
    small: str | None,
    atlases: int | None,
    split: Path | None,
    test: Path | None,
    unlabelled: Path | None,
    device: str,
    seed: int,
) -> int:
    """Train and score every row of a paper's ablation on DATASET, beside the paper's numbers.

    All trainings have the same budget and the same folds. Writes table.csv, table.md and report.html (Dice
    and NSD per organ, box plots, paired Wilcoxon tests), and says where the paper's order of rows is found
    again; with --test, or a test list in --split, the same of these cases into OUT/test. May be stopped at
    any moment: the same command goes on.
    """
    from rich.console import Console
    from rich.markup import escape

    from zoomseg.backends.device import resolve
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.core.interrupts import GO_ON, ending
    from zoomseg.datasets.layouts import open_dataset
    from zoomseg.study.ablations import STUDIES, RegionCurve
    from zoomseg.study.candidate_region import run_curve
    from zoomseg.study.run import run_ablation
    from zoomseg.study.trainings import Settings, Watch, open_trainings

    notes = Console(stderr=True)

    def say(text: str) -> None:
        notes.print(text, markup=False, highlight=False, soft_wrap=True)

    def display() -> AbstractContextManager[Observer]:
        return TrainingDisplay(notes)

    organs = tuple(organ.strip() for organ in (small or "").split(",") if organ.strip())
    settings = Settings(
        time_budget,
        folds,
        fold,
        seed,
        coarser,
        narrower,
        init,
        recipe,
        organs,
        atlases,
        split,
        test,
        unlabelled,
    )
    watch = Watch(say, display)
    trainings = open_trainings(
        STUDIES[ablation], open_dataset(dataset), out, settings, resolve(device), watch
    )
    with ending(lambda: GO_ON):
        if isinstance(trainings.study, RegionCurve):
            failed = run_curve(trainings.study, trainings)[1]
        else:
            failed = run_ablation(trainings.study, trainings).failed
    for problem in failed:
        notes.print(f"[red]failed:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    click.echo(f"Table: {out / 'table.md'}; report: {out / 'report.html'}")
    if trainings.unseen is not None:
        click.echo(f"Of the test cases: {out / 'test' / 'table.md'}; {out / 'test' / 'report.html'}")
    return 1 if failed else 0
