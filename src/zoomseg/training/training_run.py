"""A training from the data set to the model: split, plan, train, resume.

Decisions are written down before the first step (``training.record``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, ModelError, RecipeError, TrainingError, listed, quoted
from zoomseg.datasets.advice import advise
from zoomseg.datasets.layouts import Dataset, folds
from zoomseg.io import bundle
from zoomseg.io.files import writable_directory, write_text_atomic
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.planning import fingerprint, plan, training_domain
from zoomseg.planning.rationale import Plan, Reason
from zoomseg.planning.training_length import TrainingLength
from zoomseg.recipe import graph
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import STEPS_PER_EPOCH, PlannedRecipe, Recipe
from zoomseg.training import checkpoint, distillation, fine_tuning, loop, record, seen_cases
from zoomseg.training.distributed import ALONE, Processes
from zoomseg.training.log import Observer

DEFAULT = "default"
"""The recipe if neither another one nor an initial model is given."""

MOST_SECONDS = checkpoint.MOST_SECONDS
MOST_EPOCHS = 10**6
MOST_SEED = 2**50
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
        _check_numbers(self.seconds, self.epochs, self.seed)
        if self.seconds is not None and self.epochs is not None:
            raise TrainingError("a training has one length; give seconds or epochs, not both")


def start(
    dataset: Dataset,
    out: Path,
    request: TrainingRequest,
    device: Device,
    observer: Observer,
    processes: Processes = ALONE,
) -> bundle.Bundle:
    """Train a new model into ``out``. Of several processes, the first one decides; the others read the
    result.

    Raises:
        ModelError: ``out`` already contains a model or a training; ``request.init`` is not a model, or shares
            no weights; a teacher is not a model, or does not fit the recipe.
        TrainingError: planning took all the time.
        DatasetError: too few labelled cases, a fold that does not exist, an organ that no training case has.
        RecipeError: the recipe does not fit the data set's labels.
        OutputError: ``out`` cannot be written, or another process trains there.
    """
    if not processes.first:
        processes.wait_for_first(threading.Event())
        known = record.read_training(out)
        split, recipe, settings = _recorded(known, dataset, out, device, processes)
        return loop.train(dataset, split, recipe, out, settings, observer)
    record.require_free(out, request.part_of)
    started = time.monotonic() if request.began is None else request.began
    new = _New(dataset, out, request, _asked(dataset, request, observer), device, observer, processes)
    with record.alone_in_free(out, request.part_of):
        return _train_new(new, started)


def is_begun(out: Path) -> bool:
    """Whether there is a training in ``out`` that ``resume`` can continue."""
    return (out / record.FILE).is_file()


def _train_new(new: _New, started: float) -> bundle.Bundle:
    request, decided = new.request, _decide(new)
    known = _record_of(new.dataset, request, decided, time.monotonic() - started)
    if known.seconds_left == 0:
        raise TrainingError(
            f"the time budget of {request.seconds:g} s was used up by start-up and planning, which took "
            f"{known.planning_seconds:.1f} s; increase it"
        )
    record.write(known, new.out / record.FILE)
    new.processes.wait_for_first(threading.Event())
    settings = loop.Settings(
        new.device,
        known.seconds_left,
        request.epochs,
        request.seed,
        init=decided.taken,
        registered=request.registered,
        processes=new.processes,
        teachers=decided.teachers,
        recorded=known.recipe,
        domain=decided.domain,
    )
    return loop.train(new.dataset, decided.split, decided.recipe, new.out, settings, new.observer)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request resolved for a data set."""

    split: loop.Split
    initial: bundle.Bundle | None
    recipe: Recipe | PlannedRecipe


@dataclass(frozen=True, eq=False)
class _New:
    """A training that starts."""

    dataset: Dataset
    out: Path
    request: TrainingRequest
    asked: _Asked
    device: Device
    observer: Observer
    processes: Processes


@dataclass(frozen=True, eq=False)
class _Decided:
    """The decisions at the start of a training."""

    split: loop.Split
    recipe: Recipe
    domain: TrainingDomain
    taken: fine_tuning.Transfer | None
    """The weights that the networks adopt from the initial model."""
    teachers: distillation.Teachers | None


def _asked(dataset: Dataset, request: TrainingRequest, observer: Observer) -> _Asked:
    split = choose_split(dataset, request)
    left_out = [case.id for case in dataset.cases if case.labels is None]
    if left_out:
        observer.message(f"not trained on, as they have no labels: {listed(left_out)}")
    for note in dataset.header_notes(split.train + split.validation):
        observer.message(note)
    initial = None if request.init is None else fine_tuning.load(request.init, dataset)
    if initial is not None and initial.channel_names != dataset.channel_names:
        observer.message(
            f"channels {', '.join(dataset.channel_names)} are taken for the initial model's "
            f"{', '.join(initial.channel_names)}, in this order"
        )
    return _Asked(split, initial, wanted_recipe(request, initial))


def _decide(new: _New) -> _Decided:
    dataset, request, observer = new.dataset, new.request, new.observer
    split, initial, wanted = new.asked.split, new.asked.initial, new.asked.recipe
    writable_directory(new.out / "training")
    drawn = _drawn(dataset, split)
    if isinstance(wanted, PlannedRecipe):
        # Every process gets at least one patch.
        wanted = wanted.model_copy(update={"batch": max(wanted.batch, new.processes.world)})
        recipe, seen = _planned(new, drawn, wanted)
    else:
        recipe, seen = _as_published(new, drawn, wanted)
    domain = training_domain.describe(seen, recipe.intensity, dataset.channel_names, dataset.schema.names)
    taken: fine_tuning.Transfer | None = None
    if request.init is not None and initial is not None:
        recipe = fine_tuning.with_lower_rates(recipe)
        taken = _transfer(request.init, initial, recipe, dataset)
        observer.message(f"starting from {request.init}; learning rates are a tenth of the recipe's")
        for name, stage in taken.stages.items():
            observer.message(stage.told(name))
        bundle.save(initial, _initial_folder(new.out))
    teachers = _teachers(request.teachers, dataset, recipe)
    if teachers is not None:
        observer.message(teachers.told)
    _warn_of_seen_cases(new, teachers)
    return _Decided(split, recipe, domain, taken, teachers)


def _warn_of_seen_cases(new: _New, teachers: distillation.Teachers | None) -> None:
    request, initial = new.request, new.asked.initial
    models = dict(zip(request.teachers, () if teachers is None else teachers.models, strict=True))
    if initial is not None:
        models[str(request.init)] = initial
    held_back = new.asked.split.validation
    warning = seen_cases.warning(tuple(models.values()), tuple(models), held_back, new.dataset)
    if warning is not None:
        new.observer.message(warning)


def _planned(
    new: _New, split: loop.Split, wanted: PlannedRecipe
) -> tuple[Recipe, list[training_domain.CaseSample]]:
    """The complete recipe, explained in ``plan.md``, and the properties of the cases."""
    seen: list[training_domain.CaseSample] = []

    def look(case: Case) -> None:
        seen.append(training_domain.sample(case))

    planned = plan_recipe(new.dataset, split, wanted, new.device, new.observer, new.request, look)
    write_text_atomic(new.out / "training" / "plan.md", planned.markdown(new.dataset.name))
    return resolve_recipe(new.dataset, split, planned.recipe, new.device, new.observer, new.request), seen


def _as_published(
    new: _New, split: loop.Split, wanted: Recipe
) -> tuple[Recipe, list[training_domain.CaseSample]]:
    dataset, observer = new.dataset, new.observer
    recipe = resolve_recipe(dataset, split, wanted, new.device, observer, new.request)
    fingerprint.require(dataset, split.train, _predicted(recipe, dataset))
    for advice in advise(dataset):  # a complete recipe does not depend on a scan's unit
        observer.message(f"{advice.what}: {advice}")
    tell = partial(observer.preparing, "training domain")
    return recipe, training_domain.samples(dataset, split.train, tell)


def _record_of(
    dataset: Dataset, request: TrainingRequest, decided: _Decided, planning_seconds: float
) -> record.TrainingRecord:
    return record.TrainingRecord(
        **recorded(dataset, request),
        recipe=decided.recipe.model_dump(mode="json"),
        train=decided.split.train,
        validation=decided.split.validation,
        folds=request.folds,
        fold=request.fold,
        registered=None if request.registered is None else str(request.registered.resolve()),
        training_domain=decided.domain,
        planning_seconds=planning_seconds,
    )


def recorded(dataset: Dataset, request: TrainingRequest) -> dict[str, Any]:
    """The fields of a request common to all records; paths are made absolute.

    Raises:
        ModelError: a teacher, or the initial model, is not a model.
    """
    return {
        "channels": dataset.channel_names,
        "labels": dataset.schema.value_of,
        "seconds": request.seconds,
        "epochs": request.epochs,
        **_settings(request),
    }


def _settings(request: TrainingRequest) -> dict[str, Any]:
    """As in a record: what a resumed training cannot change."""
    own = request.recipe is None and request.init is not None
    return {
        "seed": request.seed,
        "init": None if request.init is None else str(bundle.find(request.init).resolve()),
        "teachers": tuple(str(bundle.find(model).resolve()) for model in request.teachers),
        "requested_recipe": None if own else load(request.recipe or DEFAULT).model_dump(mode="json"),
    }


def settings_given(request: TrainingRequest, given: Collection[str]) -> dict[str, Any]:
    """The values of a request's settings named in ``given``, for ``record.require_same_settings``.

    Raises:
        ModelError: a teacher, or the initial model, is not a model.
        RecipeError: the recipe cannot be read.
    """
    known = _settings(request) | {"folds": request.folds, "fold": request.fold}
    return {key: value for key, value in known.items() if key.removeprefix("requested_") in given}


def finished(
    dataset: Dataset, out: Path, request: TrainingRequest, device: Device, observer: Observer
) -> bundle.Bundle:
    """A model that is one of several to be trained: from disk if it is finished, otherwise trained or resumed
    now.

    Raises:
        InterruptedTrainingError: stopped; the next call continues.
        ZoomSegError: as ``start`` and ``resume``.
    """
    model = complete_model(out)
    if model is not None:
        return with_graphs(model, out, observer)
    if is_begun(out):
        return resume(dataset, out, device, observer, request.seconds, request.epochs)
    return start(dataset, out, request, device, observer)


def complete_model(out: Path) -> bundle.Bundle | None:
    """The model in a folder if its training has ended; None if there is none, or a damaged one, which a
    resumed training replaces."""
    try:
        model = bundle.load(out)
    except ModelError:
        return None
    return model if model.provenance.get("complete") is True else None


def with_graphs(model: bundle.Bundle, out: Path, observer: Observer) -> bundle.Bundle:
    """A complete model, converted if its training was stopped before that."""
    if not model.graphs:
        loop.convert(out, observer)
    return model


def resume(
    dataset: Dataset,
    out: Path,
    device: Device,
    observer: Observer,
    seconds: float | None = None,
    epochs: int | None = None,
    processes: Processes = ALONE,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> bundle.Bundle:
    """Resume the training in ``out``; ``seconds`` or ``epochs`` replace its length, also for later calls
    without one. A model whose training has ended is returned as it is, unless it should be trained for
    longer. ``settings`` (see ``settings_given``) must be those with which it was started.

    Raises:
        TrainingError: there is no training in ``out``, it is damaged, it was of another data set, or had
            other settings.
        OutputError: another process trains there.
    """
    before = record.read_training(out)
    before.require_same_settings(settings, out)
    before.resolved_recipe(out)
    before.require_same_data(dataset, out)
    known = before.lasting(seconds, epochs)
    _check_numbers(known.seconds, known.epochs, known.seed)
    with record.alone(out) if processes.first else nullcontext():
        complete, longer = complete_model(out), known.is_longer_than(before)
        if processes.agree(complete is not None and not longer):
            observer.message(f"{out} is trained; a longer --time-budget, or more --epochs, train it further")
            model = bundle.load(out) if complete is None else complete
            return with_graphs(model, out, observer) if processes.first else model
        split, recipe, run = _recorded(known, dataset, out, device, processes)

        def accepted() -> None:
            record.write(known, out / record.FILE)
            if complete is not None:  # not any more, also if it is stopped before the first checkpoint
                unfinished = {**complete.provenance, "complete": False}
                bundle.save(replace(complete, provenance=unfinished), out)

        run = replace(run, resume=True, accepted=accepted)
        return loop.train(dataset, split, recipe, out, run, observer)


def _recorded(
    known: record.TrainingRecord, dataset: Dataset, out: Path, device: Device, processes: Processes
) -> tuple[loop.Split, Recipe, loop.Settings]:
    """The decisions made at the start."""
    recipe = known.resolved_recipe(out)
    taken: fine_tuning.Transfer | None = None
    if known.init is not None:
        initial = fine_tuning.load(_initial_folder(out), dataset)
        taken = _transfer(Path(known.init), initial, recipe, dataset)
    settings = loop.Settings(
        device,
        known.seconds_left,
        known.epochs,
        known.seed,
        init=taken,
        registered=None if known.registered is None else Path(known.registered),
        processes=processes,
        teachers=_teachers(known.teachers, dataset, recipe),
        recorded=known.recipe,
        domain=known.training_domain,
    )
    return loop.Split(known.train, known.validation), recipe, settings


def choose_split(dataset: Dataset, request: TrainingRequest) -> loop.Split:
    """All labelled cases for training, all but one fold of them, or those that the request names;
    pseudo-labelled ones are always for training, and in no fold.

    Raises:
        DatasetError: no labelled case, too few for the folds, or a fold that does not exist.
    """
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
    held_back = frozenset(validation)
    return loop.Split((*(i for i in labelled if i not in held_back), *pseudo), validation)


def _drawn(dataset: Dataset, split: loop.Split) -> loop.Split:
    """The split without the cases that a model labelled."""
    pseudo = {case.id for case in dataset.cases if case.pseudo}
    return loop.Split(tuple(i for i in split.train if i not in pseudo), split.validation)


def resolve_recipe(
    dataset: Dataset,
    split: loop.Split,
    recipe: Recipe | PlannedRecipe,
    device: Device,
    observer: Observer,
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
    observer: Observer,
    request: TrainingRequest,
    look: Callable[[Case], None] | None = None,
) -> Plan:
    """A planned recipe's numbers with their reasons, from the training cases and the device; the observer
    receives warnings. Of the request, length and initial model are used; ``look`` as in ``fingerprint.take``.

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
        planned = plan.plan(recipe, data, dataset.schema, device, _length(request))
    except ValidationError as error:  # numbers of the recipe, or of the data, that give no valid stage
        reason = bundle.first_problem(error)
        raise RecipeError(f"recipe '{recipe.name}' cannot be planned for this data set: {reason}") from error
    for warning in planned.warnings:
        observer.message(warning)
    if request.init is None:
        return planned
    start = f"training starts from {request.init.name}"
    gentle = Reason("fine-tuning", "a tenth of the learning rate", start)
    return replace(planned, reasons=(*planned.reasons, gentle))


def _predicted(recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
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
    return _predicted(graph.trainable(fitted, dataset.schema), dataset)


def _length(request: TrainingRequest) -> TrainingLength | None:
    """The length that the user requested, if any."""
    if request.seconds is None and request.epochs is None:
        return None
    steps = None if request.epochs is None else request.epochs * STEPS_PER_EPOCH
    return TrainingLength(steps, request.seconds)


def wanted_recipe(request: TrainingRequest, initial: bundle.Bundle | None) -> Recipe | PlannedRecipe:
    if request.recipe is None and initial is not None:
        return fine_tuning.recipe_of(initial)
    return load(request.recipe or DEFAULT)


def _transfer(path: Path, initial: bundle.Bundle, recipe: Recipe, dataset: Dataset) -> fine_tuning.Transfer:
    channels = len(dataset.channel_names)
    return fine_tuning.match(path.resolve().name, initial, recipe, dataset.schema, channels)


def _teachers(models: Sequence[str], dataset: Dataset, recipe: Recipe) -> distillation.Teachers | None:
    return distillation.load(models, dataset, recipe) if models else None


def _initial_folder(out: Path) -> Path:
    """A copy of the initial model: parts that a resumed training has not started yet need it, even if the
    model itself was moved."""
    return out / "training" / "init"


def _check_numbers(seconds: float | None, epochs: int | None, seed: int) -> None:
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        raise TrainingError(
            f"the time budget must be above 0 s, and at most {MOST_SECONDS:g} s; got {seconds:g}"
        )
    if epochs is not None and not 1 <= epochs <= MOST_EPOCHS:
        raise TrainingError(f"epochs must be 1 to {MOST_EPOCHS}, got {quoted(epochs)}")
    if not 0 <= seed <= MOST_SEED:
        raise TrainingError(f"the seed must be 0 to {MOST_SEED}, got {quoted(seed)}")
