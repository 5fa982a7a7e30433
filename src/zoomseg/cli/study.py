"""``zoomseg study``: a paper's ablation table on your own data."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoomseg.cli.train import parse_duration

if TYPE_CHECKING:
    from zoomseg.training.log import TrainingObserver

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
"""Repeated here, as ``--help`` must not import the package that defines them; a test compares both."""


@click.command(name="study")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--ablation", type=click.Choice(ABLATIONS), required=True, help="Table to reproduce.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Output folder; an interrupted study in it is resumed.",
)
@click.option(
    "--time-budget",
    metavar="TIME",
    callback=parse_duration,
    help="Time for EACH training, e.g. 15m or 1h30m [default: the recipe's number of iterations].",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    help="Train all of this number of folds and pool their cases [default: the first of 5 folds; "
    "valindria2018: both of 2].",
)
@click.option(
    "--fold",
    type=click.IntRange(min=0),
    help="Train only this fold; a later run without this option adds the others.",
)
@click.option(
    "--coarser",
    type=click.FloatRange(min=1),
    default=1.0,
    show_default=True,
    help="Factor for the voxel size of all stages' grids.",
)
@click.option(
    "--narrower",
    type=click.FloatRange(min=1),
    default=1.0,
    show_default=True,
    help="Divisor for the channels of all networks.",
)
@click.option(
    "--init", type=click.Path(path_type=Path), help="Model to fine-tune (required by roth2018-finetune)."
)
@click.option(
    "-r",
    "--recipe",
    metavar="RECIPE",
    help="Recipe to use instead of the paper's, with equal stage names: a name or a file (zhou2016: instead "
    "of the cascade; the 2D row keeps its own).",
)
@click.option(
    "--small",
    metavar="ORGAN,...",
    help="Organs that get a stage each and are tabulated [default: all] (valindria2018).",
)
@click.option("--atlases", type=click.IntRange(1, 1000), help="Atlases per scan [default: as in the recipe].")
@click.option(
    "--split",
    type=click.Path(path_type=Path),
    help="JSON with lists train, validation and test, or nnU-Net's splits_final.json, instead of folds.",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    help="Further data set on which every row is evaluated; not used for training.",
)
@click.option(
    "--unlabelled",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Unlabelled scans (required by flare22-unlabelled).",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the trainings; the folds are always the same.",
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
    """Train and evaluate every row of a paper's ablation on DATASET, next to the paper's numbers.

    All trainings have the same budget and the same folds. Writes table.csv, table.md and report.html (Dice
    and NSD per organ, box plots, paired Wilcoxon tests) and states where the order of rows agrees with the
    paper's; with --test, or a test list in --split, the same for these cases in OUT/test. An interrupted
    study is resumed by the same command.
    """
    from rich.console import Console
    from rich.markup import escape

    from zoomseg.backends.device import resolve
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.core.interrupts import GO_ON, interruptible
    from zoomseg.datasets.layouts import open_dataset
    from zoomseg.study.ablations import STUDIES, RegionCurve
    from zoomseg.study.candidate_region import run_curve
    from zoomseg.study.run import run_ablation
    from zoomseg.study.trainings import StudyObserver, StudySettings, open_trainings

    notes = Console(stderr=True)

    def say(text: str) -> None:
        notes.print(text, markup=False, highlight=False, soft_wrap=True)

    def display() -> AbstractContextManager[TrainingObserver]:
        return TrainingDisplay(notes)

    organs = tuple(organ.strip() for organ in (small or "").split(",") if organ.strip())
    settings = StudySettings(
        seconds=time_budget,
        folds=folds,
        fold=fold,
        seed=seed,
        coarser=coarser,
        narrower=narrower,
        init=init,
        recipe=recipe,
        small=organs,
        atlases=atlases,
        split=split,
        test=test,
        unlabelled=unlabelled,
    )
    observer = StudyObserver(say, display)
    trainings = open_trainings(
        STUDIES[ablation], open_dataset(dataset), out, settings, resolve(device), observer
    )
    with interruptible(lambda: GO_ON):
        if isinstance(trainings.study, RegionCurve):
            failed = run_curve(trainings.study, trainings)[1]
        else:
            failed = run_ablation(trainings.study, trainings).failed
    for problem in failed:
        notes.print(f"[red]failed:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    click.echo(f"Table: {out / 'table.md'}; report: {out / 'report.html'}")
    if (out / "test" / "table.md").is_file():
        click.echo(f"Test cases: {out / 'test' / 'table.md'}; {out / 'test' / 'report.html'}")
    return 1 if failed else 0
