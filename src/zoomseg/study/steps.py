"""The optimiser steps of each training, given a study's budget."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoomseg.recipe import graph
from zoomseg.study.ablations import StudyTraining
from zoomseg.study.recipe_edits import shipped
from zoomseg.study.trainings import Trainings

Steps = Mapping[str, int]
"""Stage, or ``coarse + fine`` for stages trained together -> steps; empty if unknown."""


def read_steps(log: Path) -> dict[str, int]:
    """The last steps in a training's ``metrics.csv``. The log contains a group's very last step if held-out
    cases are validated, as in a study; if the stage's region is empty in all of them, up to 9 fewer."""
    stages: dict[int, list[str]] = {}
    last: dict[int, int] = {}
    try:
        with log.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                group, stage, step = int(row["group"]), row["stage"], int(row["step"])
                names = stages.setdefault(group, [])
                if stage not in names:
                    names.append(stage)
                last[group] = max(step, last.get(group, 0))
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
    return {" + ".join(names): last[group] for group, names in stages.items()}


def mean_steps(folds: Sequence[Steps]) -> dict[str, int]:
    """Means over folds, in whole steps; none, unless all folds trained the same."""
    if not folds or any(fold.keys() != folds[0].keys() for fold in folds):
        return {}
    return {name: round(sum(fold[name] for fold in folds) / len(folds)) for name in folds[0]}


def training_steps(trainings: Trainings, training: StudyTraining | None) -> dict[str, int]:
    """For a finished training, the mean over the study's folds; empty without a training."""
    if training is None:
        return {}
    return mean_steps([read_steps(trainings.steps_log(training, fold)) for fold in trainings.folds])


def paper_steps(trainings: Trainings, training: StudyTraining | None) -> int | None:
    """Of the shipped recipe on these labels, all stages together; None if there is no training, or the recipe
    is that of a model to be fine-tuned."""
    if training is None or trainings.study.recipe is None:
        return None
    schema = trainings.dataset.schema
    replaced = trainings.settings.recipe is not None and training.recipe is None
    start = shipped(trainings.study.recipe) if replaced else trainings.start(training)
    recipe = graph.expand(graph.fit(training.change(start), schema)[0], schema)
    groups = graph.training_groups(recipe)
    return sum(graph.stage_of(recipe, group.trained[0]).training.iterations for group in groups)


def steps_note(id: str, rows: Sequence[str], steps: Steps, folds: int) -> str:
    """The steps of a training, as a sentence for the study's notes."""
    used = f" (rows {'; '.join(rows)})" if rows else ""
    parts = ", ".join(f"{name} {count}" for name, count in steps.items())
    mean = f", mean over {folds} folds" if folds > 1 else ""
    return f"Training '{id}'{used}: {sum(steps.values())} optimiser steps ({parts}){mean}."
