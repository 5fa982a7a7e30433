"""A training job from the data set's path to the trained model: split, plan, train, resume.

What was decided at the start (recipe with all its numbers, split, seed, length) is written to
``training/job.json`` before the first step; a resumed job reads it and decides nothing anew.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoomseg.core.errors import DatasetError, ModelError, TrainingError
from zoomseg.engine import plan, train
from zoomseg.engine.device import Device
from zoomseg.engine.log import Observer
from zoomseg.io.bundle import Bundle
from zoomseg.io.dataset import Dataset, folds
from zoomseg.io.files import writable_directory, write_json_atomic
from zoomseg.recipe import graph
from zoomseg.recipe.load import from_dict, load
from zoomseg.recipe.spec import PlannedRecipe, Recipe


@dataclass(frozen=True)
class Job:
    """What a user asks for. ``folds`` and ``fold`` keep one of the folds back for validation."""

    recipe: str = "default"
    seconds: float | None = None
    epochs: int | None = None
    folds: int | None = None
    fold: int = 0
    seed: int = 0


def start(dataset: Dataset, out: Path, job: Job, device: Device, observer: Observer) -> Bundle:
    """Train a new model into ``out``.

    Raises:
        ModelError: ``out`` already holds a model or a training.
        DatasetError: too few labelled cases, a fold that does not exist.
        RecipeError: the recipe does not fit the data set's labels.
    """
    if (out / "model.json").exists() or _job_file(out).exists():
        raise ModelError(f"{out} already holds a model; give --resume to go on with it, or another folder")
    started = time.monotonic()
    split = choose_split(dataset, job)
    recipe = resolve_recipe(dataset, split, job.recipe, observer)
    writable_directory(out / "training")
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "train": list(split.train),
        "validation": list(split.validation),
        "seed": job.seed,
        "seconds": job.seconds,
        "epochs": job.epochs,
    }
    write_json_atomic(_job_file(out), record)
    # Planning is part of the time the user gave.
    seconds = None if job.seconds is None else job.seconds - (time.monotonic() - started)
    settings = train.Settings(device, seconds, job.epochs, job.seed)
    return train.train(dataset, split, recipe, out, settings, observer)


def resume(
    dataset: Dataset,
    out: Path,
    device: Device,
    observer: Observer,
    seconds: float | None = None,
    epochs: int | None = None,
) -> Bundle:
    """Go on with the training in ``out``; ``seconds`` or ``epochs`` replace its length.

    Raises:
        TrainingError: there is no training in ``out``, or it was of another data set.
    """
    record = _read_job(out)
    recipe = from_dict(record["recipe"])
    if isinstance(recipe, PlannedRecipe):
        raise TrainingError(f"{_job_file(out)} is damaged: its recipe has no numbers; train anew")
    split = train.Split(tuple(record["train"]), tuple(record["validation"]))
    missing = (set(split.train) | set(split.validation)) - set(dataset.ids)
    if missing:
        raise TrainingError(
            f"data set '{dataset.name}' lacks case {min(missing)}, which {out} was trained with"
        )
    if seconds is None and epochs is None:
        seconds, epochs = record["seconds"], record["epochs"]
    settings = train.Settings(device, seconds, epochs, record["seed"], resume=True)
    return train.train(dataset, split, recipe, out, settings, observer)


def choose_split(dataset: Dataset, job: Job) -> train.Split:
    """All labelled cases for training, or all but one fold of them."""
    labelled = [case.id for case in dataset.cases if case.labels is not None]
    if not labelled:
        raise DatasetError(
            f"data set '{dataset.name}' has no labelled case; zoomseg check says what is there"
        )
    if job.folds is None:
        return train.Split(tuple(labelled), ())
    parts = folds(labelled, job.folds, job.seed)
    if not 0 <= job.fold < job.folds:
        raise DatasetError(f"fold must be 0 to {job.folds - 1}, got {job.fold}")
    validation = parts[job.fold]
    return train.Split(tuple(i for i in labelled if i not in validation), validation)


def resolve_recipe(dataset: Dataset, split: train.Split, name: str, observer: Observer) -> Recipe:
    """Load a recipe and, where it is a planned one, fill in its numbers from the training cases."""
    recipe = load(name)
    if isinstance(recipe, PlannedRecipe):

        def tell(done: int, total: int) -> None:
            observer.preparing("plan", done, total)

        recipe = plan.plan(recipe, plan.fingerprint(dataset, split.train, tell), dataset.schema)
    graph.validate_labels(recipe, dataset.schema)
    return recipe


def _job_file(out: Path) -> Path:
    return out / "training" / "job.json"


def _read_job(out: Path) -> dict[str, Any]:
    path = _job_file(out)
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        valid = (
            isinstance(record["recipe"], dict)
            and all(isinstance(i, str) for key in ("train", "validation") for i in record[key])
            and isinstance(record["seed"], int)
            and isinstance(record["seconds"], int | float | None)
            and isinstance(record["epochs"], int | None)
        )
    except FileNotFoundError as error:
        raise TrainingError(f"there is no training to resume in {out}; leave --resume out") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); train anew into another folder") from error
    if not valid:
        raise TrainingError(f"{path} is damaged; train anew into another folder")
    return record
