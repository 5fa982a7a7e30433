"""Cross-validation: a model per fold, one after the other.

```
OUT/folds.json       the request; a resumed cross-validation reads it
OUT/recipe.yaml      the recipe of all folds, planned once, so that their models form an ensemble
OUT/plan.md          reasons for its numbers, if it was planned
OUT/init/<name>/     a copy of the initial model, if there is one
OUT/fold-<n>/        a model with its training, as ``training.training_run`` writes it
```

A plan uses all labelled cases (of given splits: those on which some fold trains), as their spacings and
sizes reveal little about any one of them. (nnU-Net also takes its fingerprint from all of them: Isensee et
al. 2021.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zoomseg.backends.device import Device
from zoomseg.core.errors import DatasetError
from zoomseg.datasets.layouts import Dataset
from zoomseg.evaluation.result import Evaluation
from zoomseg.evaluation.saved import gather, read_scores
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.io.files import write_text_atomic
from zoomseg.planning import fingerprint
from zoomseg.recipe.load import dump
from zoomseg.recipe.spec import PlannedRecipe
from zoomseg.training import fine_tuning, record, requested_recipe, training_run, validation
from zoomseg.training.log import TrainingObserver
from zoomseg.training.loop import Split
from zoomseg.training.record import CrossValidationRecord
from zoomseg.training.requested_recipe import TrainingRequest
from zoomseg.training.validation import Validation

OnValidated = Callable[[Path, Validation], None]
"""Called with a model's folder and its validation on the cases on which it was not trained."""


@dataclass(frozen=True)
class CrossValidation:
    """All ``count`` folds of a data set; ``request`` says how each is trained. ``splits`` are their cases;
    without them, they are drawn."""

    dataset: Dataset
    out: Path
    count: int
    request: TrainingRequest
    splits: tuple[Split, ...] = ()

    def folder(self, fold: int) -> Path:
        return self.out / f"fold-{fold}"

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(self.folder(fold) for fold in range(self.count))

    def split(self, fold: int) -> Split:
        """The cases on which a fold's model is trained, and those on which it is scored."""
        return requested_recipe.choose_split(self.dataset, self._request_of(fold))

    def model(self, fold: int, device: Device, observer: TrainingObserver) -> Bundle:
        """A fold's model: from disk if it is finished, otherwise trained or resumed.

        Raises:
            InterruptedTrainingError: stopped; the next call continues.
            ZoomSegError: as ``training.training_run.start`` and ``resume``.
        """
        observer.message(f"fold {fold} (of 0 to {self.count - 1})")
        return training_run.finished(
            self.dataset, self.folder(fold), self._request_of(fold), device, observer
        )

    def run(
        self,
        device: Device,
        new_observer: Callable[[], AbstractContextManager[TrainingObserver]],
        on_validated: OnValidated,
    ) -> Evaluation:
        """Train and then validate one fold after the other; finished ones are not repeated.

        Args:
            new_observer: returns an observer for each training.

        Returns:
            The scores of all cases, as in ``OUT/validation``.

        Raises:
            InterruptedTrainingError: stopped; the next call continues.
            ZoomSegError: as ``model`` and ``training.validation.validate``.
        """
        for fold, folder in enumerate(self.folders):
            with new_observer() as observer:
                self.model(fold, device, observer)
            held_out = self.split(fold).validation
            if not _is_validated(folder, held_out):
                on_validated(folder, validation.validate(self.dataset, folder, held_out, device))
        parts = [folder / validation.FOLDER for folder in self.folders]
        return gather(parts, self.dataset, self.out / validation.FOLDER)

    def _request_of(self, fold: int) -> TrainingRequest:
        recipe, atlases = str(self.out / "recipe.yaml"), self.out / "atlases"
        split = self.splits[fold] if self.splits else None
        return replace(
            self.request, recipe=recipe, folds=self.count, fold=fold, registered=atlases, split=split
        )


def _is_validated(folder: Path, held_out: tuple[str, ...]) -> bool:
    """Whether each of these cases was scored, or is listed as failed."""
    known = read_scores(folder / validation.FOLDER)
    if known is None:
        return False
    listed = [case.id for case in known.cases] + [failure.case for failure in known.failures]
    return sorted(listed) == sorted(held_out)


def begin(
    dataset: Dataset,
    out: Path,
    count: int,
    request: TrainingRequest,
    device: Device,
    observer: TrainingObserver,
    splits: tuple[Split, ...] = (),
) -> CrossValidation:
    """Plan a cross-validation and write it down.

    Args:
        request: how each fold is trained; its length applies to each fold.
        splits: the ``count`` folds, unless they are drawn. Other cases are not used.

    Raises:
        ModelError: ``out`` already contains a model or a cross-validation; ``request.init`` is none.
        DatasetError: too few labelled cases for the folds; an organ that the training cases of one lack.
        RecipeError: the recipe does not fit the data set's labels.
        OutputError: ``out`` cannot be written, or another process trains there.
    """
    record.require_new_folder(out)
    if count < 2:
        raise DatasetError(f"a cross-validation needs at least 2 folds, got {count}")
    folds = CrossValidation(dataset, out, count, request, splits)
    trained = [folds.split(fold).train for fold in range(count)]
    cases = requested_recipe.choose_split(dataset, TrainingRequest())
    in_some_fold = frozenset().union(*trained)
    used = Split(tuple(case for case in cases.train if case in in_some_fold), ())
    initial = None if request.init is None else fine_tuning.load(request.init, dataset)
    recipe = requested_recipe.load_requested_recipe(request, initial)
    organs = requested_recipe.organs_of(recipe, dataset)
    fingerprint.require_in_every(dataset, trained, organs, partial(observer.preparing, "folds"))
    with record.locked_new_folder(out):
        if isinstance(recipe, PlannedRecipe):
            planned = requested_recipe.plan_recipe(dataset, used, recipe, device, observer, request)
            write_text_atomic(out / "plan.md", planned.markdown(dataset.name))
            recipe = planned.recipe
        write_text_atomic(out / "recipe.yaml", dump(recipe))
        asked = CrossValidationRecord(
            **training_run.recorded(dataset, request),
            cases=cases.train,
            folds=count,
            split=tuple((split.train, split.validation) for split in splits) or None,
        )
        if request.init is not None and initial is not None:
            request = replace(request, init=fine_tuning.keep(initial, request.init, out))
        record.write(asked, out / bundle.FOLDS)
    return replace(folds, request=request)


def reopen(
    dataset: Dataset,
    out: Path,
    seconds: float | None = None,
    epochs: int | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> CrossValidation:
    """The cross-validation in ``out``; ``seconds`` or ``epochs`` replace the length of unfinished folds, also
    for later calls without one. ``settings`` as in ``training_run.resume``.

    Raises:
        TrainingError: there is none, it is damaged, or it had other settings, cases, labels or channels.
        OutputError: another process trains there, and a length is given.
    """
    before = record.read_cross_validation(out)
    known = before.resumed(dataset, out, settings, seconds, epochs)
    init = None if known.init is None else fine_tuning.kept(known.init, out)
    request = TrainingRequest(
        seconds=known.seconds, epochs=known.epochs, seed=known.seed, init=init, teachers=known.teachers
    )
    record.keep_length(known, before, out, bundle.FOLDS)
    splits = tuple(Split(*split) for split in known.split or ())
    return CrossValidation(dataset, out, known.folds, request, splits)


def is_begun(out: Path) -> bool:
    """Whether a folder contains a cross-validation."""
    return (out / bundle.FOLDS).is_file()
