"""What a training's request means for a data set: the cases to train on, and the recipe, planned or fitted to
the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, RecipeError, TrainingError, quoted
from zoomseg.datasets.layouts import Dataset, folds
from zoomseg.datasets.split_file import CaseSplit
from zoomseg.io.bundle import Bundle
from zoomseg.io.manifests import first_problem
from zoomseg.planning import fingerprint, plan
from zoomseg.planning.rationale import Plan, Reason
from zoomseg.planning.training_length import TrainingLength
from zoomseg.recipe import graph
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import STEPS_PER_EPOCH, PlannedRecipe, Recipe
from zoomseg.training import checkpoint, fine_tuning, loop
from zoomseg.training.log import TrainingObserver

DEFAULT = "default"
"""The recipe if neither another one nor an initial model is given."""

MAX_SECONDS = checkpoint.MAX_SECONDS
MAX_EPOCHS = 10**6
MAX_SEED = 2**50
"""A generator of torch is seeded with a thousand times this value."""


@dataclass(frozen=True)
class TrainingRequest:
    """The settings requested by a user. ``folds`` and ``fold`` hold out one of the folds for validation.
    ``init`` is a model to start from; without ``recipe`` its own is used, and without both the one called
    ``default``. ``registered`` is a folder in which registered atlases are kept for further trainings of the
    same cases; ``teachers`` are models, given as in ``io.bundle.find``, whose predictions are also learned.
    ``split`` names the cases itself, in place of folds. ``began``: when ``seconds`` began to count, by
    ``time.monotonic``; None: at the start of the training. ``part_of`` is the record, in the model's folder,
    of a task that the training is part of.

    Raises:
        TrainingError: an invalid length or seed, or two lengths.
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
    split: loop.Split | None = None
    began: float | None = None
    part_of: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self.seconds, self.epochs, self.seed)
        if self.seconds is not None and self.epochs is not None:
            raise TrainingError("a training has one length; give seconds or epochs, not both")


def choose_split(dataset: Dataset, request: TrainingRequest) -> loop.Split:
    """All labelled cases for training, all but one fold of them, or those that the request names;
    pseudo-labelled ones are always for training, and in no fold."""
    pseudo = tuple(case.id for case in dataset.cases if case.pseudo)
    if request.split is not None:
        return replace(request.split, train=(*request.split.train, *pseudo))
    labelled = [case.id for case in dataset.cases if case.labels is not None and not case.pseudo]
    if not labelled:
        raise DatasetError(f"data set '{dataset.name}' has no labelled case; see zoomseg check")
    if request.folds is None and request.fold:
        raise DatasetError(f"fold {request.fold} is given without the number of folds; give both")
    if request.folds is None:
        return loop.Split((*labelled, *pseudo), ())
    # Not by the request's seed: models of several seeds are compared on the same cases, and several machines
    # can train a fold each.
    parts = folds(labelled, request.folds)
    if not 0 <= request.fold < request.folds:
        raise DatasetError(f"fold must be 0 to {request.folds - 1}, got {request.fold}")
    validation = parts[request.fold]
    held_out = frozenset(validation)
    return loop.Split((*(i for i in labelled if i not in held_out), *pseudo), validation)


def trained_on(splits: Sequence[CaseSplit]) -> tuple[loop.Split, ...]:
    """The splits of a file for trainings, which do not use their test cases."""
    return tuple(loop.Split(split.train, split.validation) for split in splits)


def with_split(request: TrainingRequest, splits: Sequence[loop.Split]) -> TrainingRequest:
    """A request for the cases of one of ``splits``, its ``fold``.

    Raises:
        DatasetError: there is no such fold; a number of folds is given, too.
    """
    if request.folds is not None:
        raise DatasetError("a number of folds and a split file exclude each other; give one of them")
    if not 0 <= request.fold < len(splits):
        raise DatasetError(f"the split file has {len(splits)} split(s), from 0; got fold {request.fold}")
    return replace(request, split=splits[request.fold])


def resolve_recipe(
    dataset: Dataset,
    split: loop.Split,
    recipe: Recipe | PlannedRecipe,
    device: Device,
    observer: TrainingObserver,
    request: TrainingRequest,
) -> Recipe:
    """The complete recipe: a planned one is completed as by ``plan_recipe``; a published one is fitted to the
    data set's labels."""
    if isinstance(recipe, PlannedRecipe):
        recipe = plan_recipe(dataset, split, recipe, device, observer, request).recipe
    recipe, notes = graph.fit(recipe, dataset.schema)
    for note in notes:
        observer.message(note)
    return graph.trainable(recipe, dataset.schema)


def plan_recipe(
    dataset: Dataset,
    split: loop.Split,
    recipe: PlannedRecipe,
    device: Device,
    observer: TrainingObserver,
    request: TrainingRequest,
    on_case: Callable[[Case], None] | None = None,
) -> Plan:
    """A planned recipe's numbers with their reasons, from the training cases and the device; the observer
    receives warnings. Of the request, length and initial model are used; ``on_case`` as in
    ``fingerprint.compute_fingerprint``.

    Raises:
        DatasetError: an organ that no training case has.
        RecipeError: the device has too little memory.
    """

    def on_progress(done: int, total: int) -> None:
        observer.preparing("plan", done, total)

    data = fingerprint.compute_fingerprint(dataset, split.train, on_progress, on_case)
    seen = {organ.name for organ in data.organs}
    fingerprint.require(dataset, split.train, [name for name in dataset.schema.names if name not in seen])
    try:
        planned = plan.plan(recipe, data, dataset.schema, device, _length(request))
    except ValidationError as error:  # numbers of the recipe, or of the data, that give no valid stage
        reason = first_problem(error)
        raise RecipeError(f"recipe '{recipe.name}' cannot be planned for this data set: {reason}") from error
    for warning in planned.warnings:
        observer.message(warning)
    if request.init is None:
        return planned
    start = f"training starts from {request.init.name}"
    gentle = Reason("fine-tuning", "a tenth of the learning rate", start)
    return replace(planned, reasons=(*planned.reasons, gentle))


def predicted_labels(recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
    """The labels that at least one stage predicts, in the schema's order."""
    predicted = {name for stage in recipe.stages for name in graph.resolve_labels(stage, dataset.schema)}
    return tuple(name for name in dataset.schema.names if name in predicted)


def organs_of(recipe: Recipe | PlannedRecipe, dataset: Dataset) -> tuple[str, ...]:
    """The labels that a model of a recipe, not yet fitted to the data set, will predict.

    Raises:
        RecipeError: the recipe does not fit the data set's labels.
    """
    if isinstance(recipe, PlannedRecipe):
        return dataset.schema.names
    fitted, _ = graph.fit(recipe, dataset.schema)
    return predicted_labels(graph.trainable(fitted, dataset.schema), dataset)


def _length(request: TrainingRequest) -> TrainingLength | None:
    """The length that the user requested, if any."""
    if request.seconds is None and request.epochs is None:
        return None
    steps = None if request.epochs is None else request.epochs * STEPS_PER_EPOCH
    return TrainingLength(steps, request.seconds)


def load_requested_recipe(request: TrainingRequest, initial: Bundle | None) -> Recipe | PlannedRecipe:
    if request.recipe is None and initial is not None:
        return fine_tuning.recipe_of(initial)
    return load(request.recipe or DEFAULT)


def check_numbers(seconds: float | None, epochs: int | None, seed: int) -> None:
    if seconds is not None and not 0 < seconds <= MAX_SECONDS:
        raise TrainingError(
            f"the time budget must be above 0 s, and at most {MAX_SECONDS:g} s; got {seconds:g}"
        )
    if epochs is not None and not 1 <= epochs <= MAX_EPOCHS:
        raise TrainingError(f"epochs must be 1 to {MAX_EPOCHS}, got {quoted(epochs)}")
    if not 0 <= seed <= MAX_SEED:
        raise TrainingError(f"the seed must be 0 to {MAX_SEED}, got {quoted(seed)}")
