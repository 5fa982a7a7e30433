"""Ablation of the default recipe: trains it with single parts removed or replaced.

    uv run python benchmarks/ablation.py DATASET -o OUT --time-budget 5m [--fold N ...] [--row NAME ...]

Every row is planned from the same cases, trained for the same time and scored on the same held-out cases,
those of all requested folds. Writes OUT/<row>/fold-N/ (models), OUT/<row>/validation/ (label maps,
metrics.csv, report.html), which `zoomseg compare` can test for significance, and OUT/table.md. It can be
interrupted at any time: the same command resumes, and one with more rows or folds adds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from partial_annotation import steps
from rich.console import Console

from zoomseg.backends.device import Device, resolve
from zoomseg.cli.train import parse_duration
from zoomseg.cli.training_display import TrainingDisplay
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.evaluation.result import Evaluation
from zoomseg.evaluation.saved import gather, read_scores
from zoomseg.io.files import writable_directory, write_text_atomic
from zoomseg.pipeline.inputs import prior_specs
from zoomseg.planning.stage_plans import CT_CONTRAST, OTHER_CONTRAST, Contrast
from zoomseg.recipe import load, network_shapes
from zoomseg.recipe.spec import (
    AdamW,
    Augmentation,
    DiceCrossEntropy,
    FixedSpacing,
    PlannedRecipe,
    Recipe,
    SoftDice,
    Stage,
    UNet3D,
    UniformInRegion,
)
from zoomseg.training import cross_validation, requested_recipe, validation
from zoomseg.training.requested_recipe import TrainingRequest

Change = Callable[[Stage], Stage]


def trained_with(**change: Any) -> Change:
    """The same network with changed training settings."""
    return lambda stage: stage.model_copy(update={"training": stage.training.model_copy(update=change)})


def augmented_with(**change: Any) -> Change:
    """The same training with changed augmentation settings."""

    def changed(stage: Stage) -> Stage:
        augmentation = stage.training.augmentation.model_copy(update=change)
        return trained_with(augmentation=augmentation)(stage)

    return changed


def toned_as(tone: Contrast) -> Change:
    """The contrast augmentation that the planner chooses for another kind of scan."""
    return augmented_with(contrast=tone.contrast, gamma=tone.gamma, organ_brightness=tone.organ_brightness)


def without_deep_supervision(stage: Stage) -> Stage:
    network = stage.network.model_copy(update={"deep_supervision": False})
    return stage.model_copy(update={"network": network})


def with_plain_network(stage: Stage) -> Stage:
    """The papers' U-Net, with the same channels at its upper four levels. It halves every axis three times;
    if the patch size does not allow this, the planned network is kept."""
    network = UNet3D(channels=stage.network.channels[:4])
    factors = zip(stage.training.patch, network_shapes.divisor(network), strict=True)
    fits = all(size % factor == 0 for size, factor in factors)
    return stage.model_copy(update={"network": network}) if fits else stage


def wider(stage_name: str, factor: float) -> Change:
    """Multiply the channels of one stage's network by ``factor``."""

    def changed(stage: Stage) -> Stage:
        if stage.name != stage_name:
            return stage
        channels = tuple(round(factor * n) for n in stage.network.channels)
        return stage.model_copy(update={"network": stage.network.model_copy(update={"channels": channels})})

    return changed


def finer(stage_name: str, factor: float) -> Change:
    """Multiply the voxel size of one stage's grid by ``factor``; patches keep their number of voxels."""

    def changed(stage: Stage) -> Stage:
        if stage.name != stage_name or not isinstance(stage.grid, FixedSpacing):
            return stage
        mm = tuple(None if side is None else round(factor * side, 3) for side in stage.grid.mm)
        return stage.model_copy(update={"grid": stage.grid.model_copy(update={"mm": mm})})

    return changed


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
    "coarse stage half as wide": wider("coarse", 0.5),
    "fine stage half as wide again": wider("fine", 1.5),
    "fine stage twice as wide": wider("fine", 2),
    "fine grid of three quarters": finer("fine", 0.75),
}


def changed(recipe: Recipe, change: Change) -> Recipe | None:
    """The recipe with the change applied to every stage; None if it has no effect. Stages that no longer read
    another's prediction are trained one after the other, in the same total time."""
    stages = tuple(map(change, recipe.stages))
    if stages == recipe.stages:
        return None
    reads = any(prior_specs(stage.inputs) for stage in stages)
    together = recipe.train_together if reads else ()
    return recipe.model_copy(update={"stages": stages, "train_together": together})


def table(scores: Mapping[str, Evaluation], trained: Mapping[str, str]) -> str:
    """A Markdown table with one line per row; differences are relative to the first row."""
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


@dataclass(frozen=True)
class Ablation:
    """Settings shared by all rows."""

    dataset: Dataset
    out: Path
    request: TrainingRequest
    folds: int
    chosen: tuple[int, ...]
    device: Device

    def folder(self, row: str) -> Path:
        return self.out / re.sub("[,']", "", row).replace(" ", "-")

    def planned(self) -> Recipe:
        """The default recipe planned for these cases and this time, the basis of every row; planned once."""
        file = self.out / "planned.yaml"
        if not file.is_file():
            template = load.load("default")
            assert isinstance(template, PlannedRecipe)
            cases = requested_recipe.choose_split(self.dataset, TrainingRequest())
            with TrainingDisplay(Console(stderr=True)) as display:
                plan = requested_recipe.plan_recipe(
                    self.dataset, cases, template, self.device, display, self.request
                )
            write_text_atomic(file, load.dump(plan.recipe))
        recipe = load.load(str(file))
        assert isinstance(recipe, Recipe)
        return recipe

    def scored(self, row: str, recipe: Recipe) -> tuple[Evaluation, str]:
        """Train the row's folds that are not finished and score all of them together; returns the scores and
        the numbers of steps."""
        folder = self.folder(row)
        if cross_validation.is_begun(folder):
            folds = cross_validation.reopen(self.dataset, folder)
        else:
            file = self.out / f"{folder.name}.yaml"
            write_text_atomic(file, load.dump(recipe))
            request = replace(self.request, recipe=str(file))
            with TrainingDisplay(Console(stderr=True)) as display:
                folds = cross_validation.begin(
                    self.dataset, folder, self.folds, request, self.device, display
                )
        for fold in self.chosen:
            with TrainingDisplay(Console(stderr=True)) as display:
                folds.model(fold, self.device, display)
            held_out, model = folds.split(fold).validation, folds.folder(fold)
            if read_scores(model / validation.FOLDER, len(held_out)) is None:
                validation.validate(self.dataset, model, held_out, self.device)
        models = [folds.folder(fold) for fold in self.chosen]
        found = gather(
            [model / validation.FOLDER for model in models], self.dataset, folder / validation.FOLDER
        )
        return found, "; ".join(map(steps, models))


@click.command()
@click.argument("source", metavar="DATASET", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option(
    "--time-budget", "seconds", callback=parse_duration, required=True, help="Duration of each training."
)
@click.option(
    "--row",
    "wanted",
    multiple=True,
    type=click.Choice(list(ROWS)),
    help="Compute only these rows; the row 'default' is always included.",
)
@click.option("--folds", default=5, show_default=True)
@click.option("--fold", "chosen", multiple=True, type=int, default=(0,), show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(
    source: Path,
    out: Path,
    seconds: float,
    wanted: tuple[str, ...],
    folds: int,
    chosen: tuple[int, ...],
    seed: int,
    device: str,
) -> None:
    writable_directory(out)
    request = TrainingRequest(seconds=seconds, seed=seed)
    ablation = Ablation(open_dataset(source), out, request, folds, chosen, resolve(device))
    planned = ablation.planned()
    scores: dict[str, Evaluation] = {}
    trained: dict[str, str] = {}
    for name in ("default", *(row for row in ROWS if row != "default" and (not wanted or row in wanted))):
        recipe = planned if name == "default" else changed(planned, ROWS[name])
        if recipe is None:
            click.echo(f"{name}: nothing to change in this recipe", err=True)
            continue
        scores[name], trained[name] = ablation.scored(name, recipe)
        write_text_atomic(out / "table.md", table(scores, trained))
    click.echo((out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
