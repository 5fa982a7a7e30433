"""Does every part of the default recipe earn its place? Trains it without one part after the other.

    uv run python benchmarks/ablation.py DATASET -o OUT --time-budget 5m

Every row is planned from the same training cases, trained for the same time and scored on the same fold kept
back. Writes OUT/<row>/ (model), OUT/<row>/validation/ (label maps, metrics.csv, report.html), which `zoomseg
compare` tells chance from, and OUT/table.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from partial_annotation import score, steps
from rich.console import Console

from zoomseg.backends.device import resolve
from zoomseg.cli.train import parse_duration
from zoomseg.cli.training_display import TrainingDisplay
from zoomseg.datasets.layouts import open_dataset
from zoomseg.evaluation.result import Evaluation
from zoomseg.io.files import writable_directory, write_text_atomic
from zoomseg.pipeline.inputs import prior_specs
from zoomseg.planning.stage_plans import CT_CONTRAST, OTHER_CONTRAST, Contrast
from zoomseg.recipe import load, network_shapes
from zoomseg.recipe.spec import (
    AdamW,
    Augmentation,
    DiceCrossEntropy,
    PlannedRecipe,
    Recipe,
    SoftDice,
    Stage,
    UNet3D,
    UniformInRegion,
)
from zoomseg.training import training_run

Change = Callable[[Stage], Stage]


def trained_with(**change: Any) -> Change:
    """Another training of the same network."""
    return lambda stage: stage.model_copy(update={"training": stage.training.model_copy(update=change)})


def augmented_with(**change: Any) -> Change:
    """Other numbers of the augmentation."""

    def changed(stage: Stage) -> Stage:
        augmentation = stage.training.augmentation.model_copy(update=change)
        return trained_with(augmentation=augmentation)(stage)

    return changed


def toned_as(tone: Contrast) -> Change:
    """The contrast that the planner gives another kind of scan."""
    return augmented_with(contrast=tone.contrast, gamma=tone.gamma, organ_brightness=tone.organ_brightness)


def without_deep_supervision(stage: Stage) -> Stage:
    network = stage.network.model_copy(update={"deep_supervision": False})
    return stage.model_copy(update={"network": network})


def with_plain_network(stage: Stage) -> Stage:
    """The papers' U-Net, with the same channels at its upper four levels. It halves every axis three times:
    where patches do not allow that, the planned network stays."""
    network = UNet3D(channels=stage.network.channels[:4])
    factors = zip(stage.training.patch, network_shapes.divisor(network), strict=True)
    fits = all(size % factor == 0 for size, factor in factors)
    return stage.model_copy(update={"network": network}) if fits else stage


def without_priors(stage: Stage) -> Stage:
    priors = prior_specs(stage.inputs)
    images = tuple(given for given in stage.inputs if given not in priors)
    return stage.model_copy(update={"inputs": images})


ROWS: Mapping[str, Change] = {
    "default": lambda stage: stage,
    "averaged weights": trained_with(ema_decay=0.998),
    "no deep supervision": without_deep_supervision,
    "the papers' U-Net": with_plain_network,
    "no augmentation": trained_with(augmentation=Augmentation()),
    "patches drawn anywhere": trained_with(sampler=UniformInRegion()),
    "Dice alone": trained_with(loss=SoftDice()),
    "cross-entropy alone": trained_with(loss=DiceCrossEntropy(dice_weight=0.0, class_balance=0.5)),
    "all voxels weigh alike": trained_with(loss=DiceCrossEntropy()),
    "learning rate of 0.001": trained_with(optimiser=AdamW(lr=0.001)),
    "learning rate of 0.003": trained_with(optimiser=AdamW(lr=0.003)),
    "contrast as for CT": toned_as(CT_CONTRAST),
    "contrast as for other modalities": toned_as(OTHER_CONTRAST),
    "no prior for the fine stage": without_priors,
    "scans cut short in training": augmented_with(shorter_scan=0.3),
}


def changed(recipe: Recipe, change: Change) -> Recipe | None:
    """The recipe with every stage changed; None where the change changes nothing. Stages that no longer read
    another's answer are trained one after the other, in the same time."""
    stages = tuple(map(change, recipe.stages))
    if stages == recipe.stages:
        return None
    reads = any(prior_specs(stage.inputs) for stage in stages)
    together = recipe.train_together if reads else ()
    return recipe.model_copy(update={"stages": stages, "train_together": together})


def table(scores: Mapping[str, Evaluation], trained: Mapping[str, str]) -> str:
    """Markdown, one line per row; differences are to the first."""
    first = next(iter(scores.values()))
    lines = ["| row | Dice | to default | lowest organ | NSD | steps |", "|---|---:|---:|---|---:|---|"]
    for name, found in scores.items():
        worst = min((row for row in found.summary), key=lambda row: row.dice)
        difference = "" if found is first else f"{found.mean['dice'] - first.mean['dice']:+.3f}"
        lines.append(
            f"| {name} | {found.mean['dice']:.3f} | {difference} | {worst.organ} {worst.dice:.3f} "
            f"| {found.mean['nsd']:.3f} | {trained[name]} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("source", metavar="DATASET", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--time-budget", "seconds", callback=parse_duration, required=True, help="Of each training.")
@click.option(
    "--row", "wanted", multiple=True, type=click.Choice(list(ROWS)), help="Only these; default first."
)
@click.option("--folds", default=5, show_default=True)
@click.option("--fold", default=0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(
    source: Path,
    out: Path,
    seconds: float,
    wanted: tuple[str, ...],
    folds: int,
    fold: int,
    seed: int,
    device: str,
) -> None:
    dataset, where = open_dataset(source), resolve(device)
    split = training_run.choose_split(
        dataset, training_run.TrainingRequest(folds=folds, fold=fold, seed=seed)
    )
    held_back = dataset.subset(split.validation)
    writable_directory(out)
    template = load.load("default")
    assert isinstance(template, PlannedRecipe)
    scores: dict[str, Evaluation] = {}
    trained: dict[str, str] = {}
    with TrainingDisplay(Console(stderr=True)) as display:
        plan = training_run.plan_recipe(
            dataset, split, template, where, display, training_run.TrainingRequest(seconds=seconds, seed=seed)
        )
    for name in ("default", *(row for row in ROWS if row != "default" and (not wanted or row in wanted))):
        recipe = plan.recipe if name == "default" else changed(plan.recipe, ROWS[name])
        if recipe is None:
            click.echo(f"{name}: nothing to change in this recipe", err=True)
            continue
        folder = out / re.sub("[,']", "", name).replace(" ", "-")
        file = out / f"{folder.name}.yaml"
        write_text_atomic(file, load.dump(recipe))
        wish = training_run.TrainingRequest(str(file), seconds, seed=seed)
        with TrainingDisplay(Console(stderr=True)) as display:
            model = training_run.start(dataset.subset(split.train), folder, wish, where, display)
        scores[name] = score(model, held_back, folder / "validation", where)
        trained[name] = steps(folder)
        write_text_atomic(out / "table.md", table(scores, trained))
    click.echo((out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
