"""A training from the data set to the model: split, plan, train, resume.

Decisions are written down before the first step (``training.record``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError, TrainingError, listed
from zoomseg.datasets.advice import advise
from zoomseg.datasets.layouts import Dataset
from zoomseg.io import bundle
from zoomseg.io.files import writable_directory, write_text_atomic
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.planning import fingerprint, training_domain
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import PlannedRecipe, Recipe
from zoomseg.training import data_leakage, distillation, fine_tuning, loop, record
from zoomseg.training.distributed import SINGLE_PROCESS, Processes
from zoomseg.training.log import TrainingObserver
from zoomseg.training.requested_recipe import (
    DEFAULT,
    TrainingRequest,
    check_numbers,
    choose_split,
    load_requested_recipe,
    plan_recipe,
    predicted_labels,
    resolve_recipe,
)


def start(
    dataset: Dataset,
    out: Path,
    request: TrainingRequest,
    device: Device,
    observer: TrainingObserver,
    processes: Processes = SINGLE_PROCESS,
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
    record.require_new_folder(out, request.part_of)
    started = time.monotonic() if request.began is None else request.began
    new = _NewTraining(
        dataset, out, request, _resolve(dataset, request, observer), device, observer, processes
    )
    with record.locked_new_folder(out, request.part_of):
        return _train_new(new, started)


def is_begun(out: Path) -> bool:
    """Whether there is a training in ``out`` that ``resume`` can continue."""
    return (out / record.FILE).is_file()


def _train_new(new: _NewTraining, started: float) -> bundle.Bundle:
    request, decided = new.request, _decide(new)
    known = _record_of(new.dataset, request, decided, time.monotonic() - started)
    if known.seconds_left == 0:
        raise TrainingError(
            f"the time budget of {request.seconds:g} s was used up by start-up and planning, which took "
            f"{known.planning_seconds:.1f} s; increase it"
        )
    record.write(known, new.out / record.FILE)
    new.processes.wait_for_first(threading.Event())
    settings = _loop_settings(known, new.device, new.processes, decided.taken, decided.teachers)
    return loop.train(new.dataset, decided.split, decided.recipe, new.out, settings, new.observer)


@dataclass(frozen=True, eq=False)
class _ResolvedRequest:
    """A request resolved for a data set."""

    split: loop.Split
    initial: bundle.Bundle | None
    recipe: Recipe | PlannedRecipe


@dataclass(frozen=True, eq=False)
class _NewTraining:
    """A training that starts."""

    dataset: Dataset
    out: Path
    request: TrainingRequest
    asked: _ResolvedRequest
    device: Device
    observer: TrainingObserver
    processes: Processes


@dataclass(frozen=True, eq=False)
class _Decisions:
    """The decisions at the start of a training."""

    split: loop.Split
    recipe: Recipe
    domain: TrainingDomain
    taken: fine_tuning.Transfer | None
    """The weights that the networks adopt from the initial model."""
    teachers: distillation.Teachers | None


def _resolve(dataset: Dataset, request: TrainingRequest, observer: TrainingObserver) -> _ResolvedRequest:
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
    return _ResolvedRequest(split, initial, load_requested_recipe(request, initial))


def _decide(new: _NewTraining) -> _Decisions:
    dataset, request, observer = new.dataset, new.request, new.observer
    split, initial, wanted = new.asked.split, new.asked.initial, new.asked.recipe
    writable_directory(new.out / "training")
    labelled = _without_pseudo_labelled(dataset, split)
    if isinstance(wanted, PlannedRecipe):
        # Every process gets at least one patch.
        wanted = wanted.model_copy(update={"batch": max(wanted.batch, new.processes.world)})
        recipe, seen = _planned(new, labelled, wanted)
    else:
        recipe, seen = _as_published(new, labelled, wanted)
    domain = training_domain.describe(seen, recipe.intensity, dataset.channel_names, dataset.schema.names)
    taken: fine_tuning.Transfer | None = None
    if request.init is not None and initial is not None:
        recipe = fine_tuning.with_lower_rates(recipe)
        taken = _transfer(request.init, initial, recipe, dataset)
        observer.message(f"starting from {request.init}; learning rates are a tenth of the recipe's")
        for name, stage in taken.stages.items():
            observer.message(stage.summary(name))
        bundle.save(initial, _initial_folder(new.out))
    teachers = _teachers(request.teachers, dataset, recipe)
    if teachers is not None:
        observer.message(teachers.summary)
    _warn_of_leakage(new, teachers)
    return _Decisions(split, recipe, domain, taken, teachers)


def _warn_of_leakage(new: _NewTraining, teachers: distillation.Teachers | None) -> None:
    request, initial = new.request, new.asked.initial
    models = dict(zip(request.teachers, () if teachers is None else teachers.models, strict=True))
    if initial is not None:
        models[str(request.init)] = initial
    held_out = new.asked.split.validation
    warning = data_leakage.warning(tuple(models.values()), tuple(models), held_out, new.dataset)
    if warning is not None:
        new.observer.message(warning)


def _planned(
    new: _NewTraining, split: loop.Split, wanted: PlannedRecipe
) -> tuple[Recipe, list[training_domain.CaseSample]]:
    """The complete recipe, explained in ``plan.md``, and the properties of the cases."""
    seen: list[training_domain.CaseSample] = []

    def on_case(case: Case) -> None:
        seen.append(training_domain.sample(case))

    planned = plan_recipe(new.dataset, split, wanted, new.device, new.observer, new.request, on_case)
    write_text_atomic(new.out / "training" / "plan.md", planned.markdown(new.dataset.name))
    return resolve_recipe(new.dataset, split, planned.recipe, new.device, new.observer, new.request), seen


def _as_published(
    new: _NewTraining, split: loop.Split, wanted: Recipe
) -> tuple[Recipe, list[training_domain.CaseSample]]:
    dataset, observer = new.dataset, new.observer
    recipe = resolve_recipe(dataset, split, wanted, new.device, observer, new.request)
    fingerprint.require(dataset, split.train, predicted_labels(recipe, dataset))
    for advice in advise(dataset):  # a complete recipe does not depend on a scan's unit
        observer.message(f"{advice.what}: {advice}")
    on_progress = partial(observer.preparing, "training domain")
    return recipe, training_domain.samples(dataset, split.train, on_progress)


def _record_of(
    dataset: Dataset, request: TrainingRequest, decided: _Decisions, planning_seconds: float
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
    split = None if request.split is None else (request.split.train, request.split.validation)
    known = _settings(request) | {"folds": request.folds, "fold": request.fold, "split": split}
    return {key: value for key, value in known.items() if key.removeprefix("requested_") in given}


def finished(
    dataset: Dataset, out: Path, request: TrainingRequest, device: Device, observer: TrainingObserver
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


def with_graphs(model: bundle.Bundle, out: Path, observer: TrainingObserver) -> bundle.Bundle:
    """A complete model, converted if its training was stopped before that."""
    if not model.graphs:
        loop.convert(out, observer)
    return model


def resume(
    dataset: Dataset,
    out: Path,
    device: Device,
    observer: TrainingObserver,
    seconds: float | None = None,
    epochs: int | None = None,
    processes: Processes = SINGLE_PROCESS,
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
    check_numbers(known.seconds, known.epochs, known.seed)
    with record.locked_folder(out) if processes.first else nullcontext():
        complete, longer = complete_model(out), known.is_longer_than(before)
        if processes.broadcast_value(complete is not None and not longer):
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
) -> tuple[loop.Split, Recipe, loop.LoopSettings]:
    """The decisions made at the start."""
    recipe = known.resolved_recipe(out)
    taken: fine_tuning.Transfer | None = None
    if known.init is not None:
        initial = fine_tuning.load(_initial_folder(out), dataset)
        taken = _transfer(Path(known.init), initial, recipe, dataset)
    teachers = _teachers(known.teachers, dataset, recipe)
    settings = _loop_settings(known, device, processes, taken, teachers)
    return loop.Split(known.train, known.validation), recipe, settings


def _loop_settings(
    known: record.TrainingRecord,
    device: Device,
    processes: Processes,
    init: fine_tuning.Transfer | None,
    teachers: distillation.Teachers | None,
) -> loop.LoopSettings:
    """As recorded at the start, for a new and a resumed training."""
    return loop.LoopSettings(
        device,
        known.seconds_left,
        known.epochs,
        known.seed,
        init=init,
        registered=None if known.registered is None else Path(known.registered),
        processes=processes,
        teachers=teachers,
        recorded=known.recipe,
        domain=known.training_domain,
    )


def _without_pseudo_labelled(dataset: Dataset, split: loop.Split) -> loop.Split:
    """The split without the cases that a model labelled."""
    pseudo = {case.id for case in dataset.cases if case.pseudo}
    return loop.Split(tuple(i for i in split.train if i not in pseudo), split.validation)


def _transfer(path: Path, initial: bundle.Bundle, recipe: Recipe, dataset: Dataset) -> fine_tuning.Transfer:
    channels = len(dataset.channel_names)
    return fine_tuning.match(path.resolve().name, initial, recipe, dataset.schema, channels)


def _teachers(models: Sequence[str], dataset: Dataset, recipe: Recipe) -> distillation.Teachers | None:
    return distillation.load(models, dataset, recipe) if models else None


def _initial_folder(out: Path) -> Path:
    """A copy of the initial model: parts that a resumed training has not started yet need it, even if the
    model itself was moved."""
    return out / "training" / "init"
