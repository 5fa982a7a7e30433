"""A training job from the data set's path to the trained model: split, plan, train, resume.

What was decided at the start (recipe with all its numbers, split, seed, length) is written to
``training/job.json`` before the first step; a resumed job reads it and decides nothing anew.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, ModelError, RecipeError, TrainingError
from zoomseg.datasets.advice import advise
from zoomseg.datasets.layouts import Dataset, folds
from zoomseg.io import bundle
from zoomseg.io.files import parse_json, writable_directory, write_json_atomic, write_text_atomic
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.planning import fingerprint, plan, training_domain
from zoomseg.planning.rationale import Plan, Reason
from zoomseg.planning.training_length import TrainingLength
from zoomseg.recipe import graph
from zoomseg.recipe.load import from_dict, load
from zoomseg.recipe.spec import PlannedRecipe, Recipe
from zoomseg.training import distillation, fine_tuning, loop
from zoomseg.training.distributed import ALONE, Processes
from zoomseg.training.log import Observer


@dataclass(frozen=True)
class TrainingRequest:
    """What a user asks for. ``folds`` and ``fold`` keep one of the folds back for validation. ``init`` is a
    model to start from; without ``recipe`` its own is taken, and without both the one called ``default``.
    ``registered`` is a folder in which registered atlases are kept for further trainings of the same cases;
    ``teachers`` are models, given as in ``io.bundle.find``, whose answers the new one learns as well.

    Raises:
        TrainingError: a length or a seed that makes no sense.
    """

    recipe: str | None = None
    seconds: float | None = None
    epochs: int | None = None
    folds: int | None = None
    fold: int = 0
    seed: int = 0
    init: Path | None = None
    registered: Path | None = None
    teachers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_numbers(self.seconds, self.epochs, self.seed)


def start(
    dataset: Dataset,
    out: Path,
    job: TrainingRequest,
    device: Device,
    observer: Observer,
    processes: Processes = ALONE,
) -> bundle.Bundle:
    """Train a new model into ``out``. Of several processes the first one decides; the others read what.

    Raises:
        ModelError: ``out`` already holds a model or a training; ``job.init`` is not a model, or one that
            nothing can be taken from; a teacher is none, or does not fit the recipe.
        TrainingError: planning took all the time.
        DatasetError: too few labelled cases, a fold that does not exist, an organ that no training case has.
        RecipeError: the recipe does not fit the data set's labels.
        OutputError: ``out`` cannot be written.
    """
    if not processes.first:
        processes.wait_for_first(threading.Event())
        split, recipe, settings = _recorded(dataset, out, device, processes)
        return loop.train(dataset, split, recipe, out, settings, observer)
    if (out / "model.json").exists() or _job_file(out).exists():
        raise ModelError(f"{out} already holds a model; give --resume to go on with it, or another folder")
    started = time.monotonic()
    split = choose_split(dataset, job)
    for note in dataset.header_notes(split.train + split.validation):
        observer.message(note)
    initial = None if job.init is None else fine_tuning.load(job.init, dataset)
    wanted = wanted_recipe(job, initial)
    seen: list[training_domain.CaseSample] = []
    writable_directory(out / "training")  # before minutes are spent on planning
    if isinstance(wanted, PlannedRecipe):
        # Every process gets a patch at least.
        wanted = wanted.model_copy(update={"batch": max(wanted.batch, processes.world)})
        planned = plan_recipe(
            dataset,
            split,
            wanted,
            device,
            observer,
            job,
            lambda case: seen.append(training_domain.sample(case)),
        )
        write_text_atomic(out / "training" / "plan.md", planned.markdown(dataset.name))
        recipe = resolve_recipe(dataset, split, planned.recipe, device, observer)
    else:
        recipe = resolve_recipe(dataset, split, wanted, device, observer)
        fingerprint.require(dataset, split.train, _predicted(recipe, dataset))
        for advice in advise(dataset):  # of a recipe with numbers, a scan's unit is its own matter
            observer.message(f"{advice.what}: {advice}")
        seen = training_domain.samples(dataset, split.train, partial(observer.preparing, "training domain"))
    known = training_domain.describe(seen, recipe.intensity, dataset.channel_names, dataset.schema.names)
    taken: fine_tuning.Transfer | None = None
    if job.init is not None and initial is not None:
        recipe = fine_tuning.with_lower_rates(recipe)
        taken = _transfer(job.init, initial, recipe, dataset)
        observer.message(f"starting from {job.init}; learning rates are a tenth of the recipe's")
        for name, stage in taken.stages.items():
            observer.message(stage.told(name))
        bundle.save(initial, _initial_folder(out))
    teachers = _teachers(job.teachers, dataset, recipe)
    if teachers is not None:
        observer.message(teachers.told(split.validation, dataset))
    # Planning is part of the time the user gave.
    seconds = None if job.seconds is None else job.seconds - (time.monotonic() - started)
    if seconds is not None and seconds <= 0:
        raise TrainingError(f"the time budget of {job.seconds:g} s was used up by planning; give more time")
    record = {
        **fixed_by(dataset),
        "recipe": recipe.model_dump(mode="json"),
        "train": list(split.train),
        "validation": list(split.validation),
        "seed": job.seed,
        "seconds": job.seconds,
        "epochs": job.epochs,
        "init": None if job.init is None else str(job.init.resolve()),
        "registered": None if job.registered is None else str(job.registered.resolve()),
        "teachers": [str(bundle.find(model).resolve()) for model in job.teachers],
        "training_domain": asdict(known),
    }
    write_json_atomic(_job_file(out), record)
    processes.wait_for_first(threading.Event())
    settings = loop.Settings(
        device,
        seconds,
        job.epochs,
        job.seed,
        init=taken,
        registered=job.registered,
        processes=processes,
        teachers=teachers,
        domain=known,
    )
    return loop.train(dataset, split, recipe, out, settings, observer)


def resume(
    dataset: Dataset,
    out: Path,
    device: Device,
    observer: Observer,
    seconds: float | None = None,
    epochs: int | None = None,
    processes: Processes = ALONE,
) -> bundle.Bundle:
    """Go on with the training in ``out``; ``seconds`` or ``epochs`` replace its length.

    Raises:
        TrainingError: there is no training in ``out``, it is damaged, or it was of another data set.
    """
    split, recipe, settings = _recorded(dataset, out, device, processes, seconds, epochs)
    return loop.train(dataset, split, recipe, out, replace(settings, resume=True), observer)


def _recorded(
    dataset: Dataset,
    out: Path,
    device: Device,
    processes: Processes,
    seconds: float | None = None,
    epochs: int | None = None,
) -> tuple[loop.Split, Recipe, loop.Settings]:
    """What was decided at the start, but for the length where one is given."""
    record = _read_job(out)
    recipe = from_dict(record["recipe"], str(_job_file(out)))
    if isinstance(recipe, PlannedRecipe):
        raise _damaged(out, "its recipe has no numbers")
    for key, value in fixed_by(dataset).items():
        if record[key] != value:
            raise TrainingError(
                f"data set '{dataset.name}' has {key} {value}, but {out} was trained with {record[key]}"
            )
    split = loop.Split(tuple(record["train"]), tuple(record["validation"]))
    missing = (set(split.train) | set(split.validation)) - set(dataset.ids)
    if missing:
        raise TrainingError(
            f"data set '{dataset.name}' lacks case {min(missing)}, which {out} was trained with"
        )
    if seconds is None and epochs is None:
        seconds, epochs = record["seconds"], record["epochs"]
    _check_numbers(seconds, epochs, record["seed"])
    taken: fine_tuning.Transfer | None = None
    if record["init"] is not None:
        initial = fine_tuning.load(_initial_folder(out), dataset)
        taken = _transfer(Path(record["init"]), initial, recipe, dataset)
    registered = None if record["registered"] is None else Path(record["registered"])
    settings = loop.Settings(
        device,
        seconds,
        epochs,
        record["seed"],
        init=taken,
        registered=registered,
        processes=processes,
        teachers=_teachers(record["teachers"], dataset, recipe),
        domain=record["training_domain"],
    )
    return split, recipe, settings


def choose_split(dataset: Dataset, job: TrainingRequest) -> loop.Split:
    """All labelled cases for training, or all but one fold of them."""
    labelled = [case.id for case in dataset.cases if case.labels is not None]
    if not labelled:
        raise DatasetError(
            f"data set '{dataset.name}' has no labelled case; zoomseg check says what is there"
        )
    if job.folds is None:
        return loop.Split(tuple(labelled), ())
    parts = folds(labelled, job.folds, job.seed)
    if not 0 <= job.fold < job.folds:
        raise DatasetError(f"fold must be 0 to {job.folds - 1}, got {job.fold}")
    validation = parts[job.fold]
    return loop.Split(tuple(i for i in labelled if i not in validation), validation)


def resolve_recipe(
    dataset: Dataset,
    split: loop.Split,
    recipe: Recipe | PlannedRecipe,
    device: Device,
    observer: Observer,
) -> Recipe:
    """A planned recipe's numbers are filled in from the training cases and the device; a published one is
    made to suit the data set's labels."""
    if isinstance(recipe, PlannedRecipe):
        recipe = plan_recipe(dataset, split, recipe, device, observer, TrainingRequest()).recipe
    recipe, notes = graph.fit(recipe, dataset.schema)
    for note in notes:
        observer.message(note)
    recipe = graph.expand(recipe, dataset.schema)
    graph.validate_labels(recipe, dataset.schema)
    return recipe


def plan_recipe(
    dataset: Dataset,
    split: loop.Split,
    recipe: PlannedRecipe,
    device: Device,
    observer: Observer,
    job: TrainingRequest,
    look: Callable[[Case], None] | None = None,
) -> Plan:
    """A planned recipe's numbers with their reasons, from the training cases and the device; the observer is
    told of warnings. Of the job, how long it is and what it starts from is looked at; ``look`` as in
    ``fingerprint.take``.

    Raises:
        DatasetError: an organ that no training case has.
        RecipeError: the device has too little memory.
    """

    def tell(done: int, total: int) -> None:
        observer.preparing("plan", done, total)

    data = fingerprint.take(dataset, split.train, tell, look)
    seen = {organ.name for organ in data.organs}
    fingerprint.require(dataset, split.train, [name for name in dataset.schema.names if name not in seen])
    try:
        planned = plan.plan(recipe, data, dataset.schema, device, _length(job))
    except ValidationError as error:  # numbers of the recipe, or of the data, that make no stage
        reason = bundle.first_problem(error)
        raise RecipeError(f"recipe '{recipe.name}' cannot be planned for this data set: {reason}") from error
    for warning in planned.warnings:
        observer.message(warning)
    if job.init is None:
        return planned
    gentle = Reason("fine-tuning", "a tenth of the learning rate", f"training starts from {job.init.name}")
    return replace(planned, reasons=(*planned.reasons, gentle))


def _predicted(recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
    """The labels that some stage predicts, in the schema's order."""
    predicted = {name for stage in recipe.stages for name in graph.resolve_labels(stage, dataset.schema)}
    return tuple(name for name in dataset.schema.names if name in predicted)


def _length(job: TrainingRequest) -> TrainingLength | None:
    """What the user asked for, if anything."""
    if job.seconds is None and job.epochs is None:
        return None
    return TrainingLength(None if job.epochs is None else job.epochs * loop.STEPS_PER_EPOCH, job.seconds)


def wanted_recipe(job: TrainingRequest, initial: bundle.Bundle | None) -> Recipe | PlannedRecipe:
    if job.recipe is None and initial is not None:
        return fine_tuning.recipe_of(initial)
    return load("default" if job.recipe is None else job.recipe)


def _transfer(path: Path, initial: bundle.Bundle, recipe: Recipe, dataset: Dataset) -> fine_tuning.Transfer:
    channels = len(dataset.channel_names)
    return fine_tuning.match(path.resolve().name, initial, recipe, dataset.schema, channels)


def _teachers(models: Sequence[str], dataset: Dataset, recipe: Recipe) -> distillation.Teachers | None:
    return distillation.load(models, dataset, recipe) if models else None


def _job_file(out: Path) -> Path:
    return out / "training" / "job.json"


def _initial_folder(out: Path) -> Path:
    """A copy of the model to start from: units that a resumed training has yet to begin need it, wherever
    the model itself went."""
    return out / "training" / "init"


def fixed_by(dataset: Dataset) -> dict[str, Any]:
    """What a network's inputs and outputs mean: a resumed training must find it unchanged."""
    schema = dataset.schema
    labels = dict(zip(schema.names, schema.values, strict=True))
    return {"channels": list(dataset.channel_names), "labels": labels}


def _check_numbers(seconds: float | None, epochs: int | None, seed: int) -> None:
    if seconds is not None and not 0 < seconds < math.inf:
        raise TrainingError(f"the time budget must be above 0 s, and finite; got {seconds:g}")
    if epochs is not None and epochs < 1:
        raise TrainingError(f"epochs must be 1 or more, got {epochs}")
    if seed < 0:
        raise TrainingError(f"the seed must be 0 or more, got {seed}")


def _read_job(out: Path) -> dict[str, Any]:
    try:
        optional: dict[str, Any] = {"init": None, "registered": None, "teachers": [], "training_domain": None}
        record: dict[str, Any] = optional | parse_json(_job_file(out).read_bytes())
        if record["training_domain"] is not None:
            record["training_domain"] = TypeAdapter(TrainingDomain).validate_python(record["training_domain"])
        valid = (
            all(isinstance(record[key], dict) for key in ("recipe", "labels"))
            and all(isinstance(record[key], list) for key in ("train", "validation", "channels", "teachers"))
            and all(isinstance(i, str) for key in ("train", "validation", "teachers") for i in record[key])
            and isinstance(record["seed"], int)
            and isinstance(record["seconds"], int | float | None)
            and isinstance(record["epochs"], int | None)
            and isinstance(record["init"], str | None)
            and isinstance(record["registered"], str | None)
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TrainingError(f"there is no training to resume in {out}; leave --resume out") from error
    except KeyError as error:
        raise _damaged(out, f"{error} is missing") from error
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(out, str(error)) from error
    if not valid:
        raise _damaged(out, "an entry is of the wrong type")
    return record


def _damaged(out: Path, reason: str) -> TrainingError:
    return TrainingError(f"{_job_file(out)} is damaged ({reason}); train anew into another folder")
