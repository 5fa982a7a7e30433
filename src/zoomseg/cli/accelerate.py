"""``zoomseg accelerate``: make a model faster with unlabelled scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoomseg.cli.options import given_by_user
from zoomseg.cli.train import parse_duration, print_validation, require_one_length

if TYPE_CHECKING:
    from zoomseg.training.acceleration import Acceleration
    from zoomseg.training.candidate_regions import ChosenRegion


@click.command(name="accelerate")
@click.argument("model")
@click.argument("scans", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the new model.")
@click.option("--small", is_flag=True, help="Train a small cascade that replaces the model instead.")
@click.option(
    "--time-budget",
    metavar="TIME",
    callback=parse_duration,
    help="Training time, e.g. 15m or 1h30m, without the time for labelling the scans with MODEL.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Length of the training in epochs of 100 steps.")
@click.option(
    "--resume",
    is_flag=True,
    help="Resume the interrupted run in this folder, with the same MODEL and SCANS.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers."
)
@click.pass_context
def command(
    context: click.Context,
    model: str,
    scans: Path,
    out: Path,
    small: bool,
    time_budget: float | None,
    epochs: int | None,
    resume: bool,
    device: str,
    seed: int,
) -> int:
    """Make MODEL faster with SCANS, a folder of unlabelled scans like those that it will be applied to.

    MODEL (for example an imported one) labels the scans. A small coarse stage learns from these labels where
    the organs are, and the new model applies MODEL's networks only around what that stage finds or considers
    possible. The margin is chosen on held-out scans, a fifth: the region must contain 99.9 % of what MODEL
    finds in each of them, and 99 % of each organ over all of them. With --small, a cascade of the recipe
    'default' learns MODEL's labels and replaces it: it is much faster, but its predictions differ; by how
    much is measured on the held-out scans.
    """
    from zoomseg.core.interrupts import interruptible
    from zoomseg.io.bundle import models_in
    from zoomseg.training import acceleration
    from zoomseg.training.requested_recipe import TrainingRequest

    require_one_length(time_budget, epochs)
    models = tuple(str(part) for part in models_in(model))
    if resume:
        given = {name: context.params[name] for name in {"small", "seed"} & given_by_user(context)}
        run = acceleration.reopen(models, scans, out, time_budget, epochs, given)
    else:
        request = TrainingRequest(seconds=time_budget, epochs=epochs, seed=seed)
        run = acceleration.begin(models, scans, out, small, request)
    with interruptible(lambda: "--resume continues from here"):
        return _small(run, device) if run.small else _with_regions(run, device)


def _with_regions(run: Acceleration, device: str) -> int:
    from rich.console import Console

    from zoomseg.backends.device import resolve
    from zoomseg.cli.training_display import TrainingDisplay

    where = resolve(device)
    with TrainingDisplay(Console(stderr=True)) as display:
        run.label(where, display)
        coarse = run.region_stage(where, display)
        regions = run.choose(coarse, where, display)
        run.write(coarse, regions, display)
        dice = run.compare(regions, where, display)
    click.echo(f"Model: {run.out}")
    for name, own in regions.items():
        click.echo(_described(name, own))
    if dice:
        worst = min(dice, key=lambda organ: dice[organ])
        click.echo(
            f"Dice between both models in {len(run.split.validation)} held-out scans: mean "
            f"{sum(dice.values()) / len(dice):.4f}, lowest {dice[worst]:.4f} ({worst})"
        )
    return 0


def _described(stage: str, own: ChosenRegion) -> str:
    lowest = _lowest(own.organ_recall)
    return (
        f"stage '{stage}': {own.tile_share:.0%} of the tiles; the region (threshold {own.roi.threshold:g}, "
        f"radius {own.roi.radius_vox:g} voxels) holds {own.lowest_recall:.3%} or more of what the model "
        f"finds in a scan{lowest}"
    )


def _lowest(recall: Mapping[str, float]) -> str:
    if not recall:
        return ""
    organ = min(recall, key=lambda name: recall[name])
    return f"; lowest organ: {organ}, {recall[organ]:.2%}"


def _small(run: Acceleration, device: str) -> int:
    from rich.console import Console

    from zoomseg.backends.device import resolve
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.training import validation

    where = resolve(device)
    with TrainingDisplay(Console(stderr=True)) as display:
        run.label(where, display)
        run.small_cascade(where, display)
    click.echo(f"Model: {run.out}")
    return print_validation(run.out, validation.validate(run.dataset, run.out, run.split.validation, where))
