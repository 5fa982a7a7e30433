"""Self-training: trained models label unlabelled scans, and a new model learns from both (Lee
2013, "Pseudo-Label", ICML workshop; a teacher and its student as in Xie et al. 2020, arXiv:1911.04252).

```
OUT/unlabelled.json     the request; a resumed training reads it
OUT/recipe.yaml         a copy of the recipe's file, if one was given
OUT/init/<name>/        a copy of the initial model, if there is one
OUT/teachers/           the first round, unless teachers were given: a cross-validation of the labelled cases
OUT/pseudo-labels/      <case>.nii.gz, and pseudo-labels.json with the kept organs of each case
OUT/                    the model trained on both, as written by ``training.training_run``
```

An organ of a case is kept if its confidence, an estimate of its Dice calibrated by cross-validation
(``inference.confidence``), is high enough. The other organs of that case count as not annotated, so that
neither their presence nor their absence is learned there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from zoomseg.anatomy.organ_names import alike
from zoomseg.backends.device import Device
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, ModelError, TrainingError, quoted
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import CaseFiles, Dataset
from zoomseg.evaluation.result import Evaluation
from zoomseg.inference.batch import Failed
from zoomseg.inference.confidence import organ_rows_of
from zoomseg.inference.load import load_predictor
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.io.files import writable_directory, write_json_atomic, write_text_atomic
from zoomseg.io.scans import ScanInput, find_scans, write_labels
from zoomseg.pipeline.cascade import Prediction
from zoomseg.recipe.load import dump, load
from zoomseg.training import (
    cross_validation,
    data_leakage,
    fine_tuning,
    model_labels,
    record,
    requested_recipe,
    training_run,
)
from zoomseg.training.cross_validation import OnValidated
from zoomseg.training.log import TrainingObserver
from zoomseg.training.loop import Split
from zoomseg.training.record import SelfTrainingRecord
from zoomseg.training.requested_recipe import TrainingRequest

TEACHERS = "teachers"
LABELS = "pseudo-labels"
KEPT = "pseudo-labels.json"
RECIPE = "recipe.yaml"

FOLDS = 5
"""Of the first round; with fewer labelled cases, their number."""

MIN_CONFIDENCE = 0.8
"""Minimum confidence of an organ used for training."""


class _Kept(BaseModel):
    """One scan: its files, the organs that were kept, and why it could not be used, if so."""

    model_config = ConfigDict(frozen=True, strict=True)

    images: tuple[str, ...]
    organs: tuple[str, ...]
    failed: str | None = None


class _KeptCases(BaseModel):
    """``pseudo-labels.json``: by case, the processed scans, including those without kept organs."""

    model_config = ConfigDict(frozen=True, strict=True)

    cases: dict[str, _Kept]


@dataclass(frozen=True)
class SelfTraining:
    """A training of ``dataset`` and the scans in ``unlabelled``. ``request`` says how teachers and student
    are trained; its teachers, if there are any, label the scans."""

    dataset: Dataset
    out: Path
    unlabelled: Path
    request: TrainingRequest

    @property
    def folder(self) -> Path:
        """Folder of the first round's models."""
        return self.out / TEACHERS

    @property
    def held_out(self) -> tuple[str, ...]:
        """The cases on which the student is scored."""
        return requested_recipe.choose_split(self.dataset, self.request).validation

    @cached_property
    def labelled(self) -> Dataset:
        """Training cases of the first round: without those on which the student is scored."""
        return self.dataset.subset(requested_recipe.choose_split(self.dataset, self.request).train)

    @property
    def folds(self) -> int:
        """Number of models of the first round."""
        return min(FOLDS, len(self.labelled.cases))

    @property
    def teachers_request(self) -> TrainingRequest:
        """Settings of the first round."""
        return replace(self.request, folds=None, fold=0, split=None)

    def teach(
        self,
        device: Device,
        new_observer: Callable[[], AbstractContextManager[TrainingObserver]],
        on_validated: OnValidated,
    ) -> Evaluation | None:
        """The first round, started or resumed (``CrossValidation.run``); None if teachers are given, or the
        student's training has begun."""
        if self.request.teachers or self._student_begun:
            return None
        if cross_validation.is_begun(self.folder):
            first = cross_validation.reopen(
                self.labelled, self.folder, self.request.seconds, self.request.epochs
            )
        else:
            with new_observer() as observer:
                first = cross_validation.begin(
                    self.labelled, self.folder, self.folds, self.teachers_request, device, observer
                )
        return first.run(device, new_observer, on_validated)

    def label(self, device: Device, observer: TrainingObserver) -> None:
        """Label the scans that are not yet labelled, unless the student's training has begun. A scan that
        cannot be used is named and left out, and tried again by the next call.

        Raises:
            ModelError: a teacher is not a model, or predicts none of the data set's labels.
            TrainingError: no organ of any scan was kept.
            OutputError: labels cannot be written, or another process trains there.
        """
        if self._student_begun:
            return
        with record.locked_folder(self.out):
            self._label(device, observer)

    @property
    def _student_begun(self) -> bool:
        return training_run.is_begun(self.out)

    def _label(self, device: Device, observer: TrainingObserver) -> None:
        scans, done = scans_in(self.unlabelled, self.dataset), _read_kept(self.out, self.dataset.schema)
        todo = [scan for scan in scans if scan.id not in done or done[scan.id].failed is not None]
        if todo:
            predictor = load_predictor(
                self.request.teachers or (self.folder,), device, on_warning=observer.message
            )
            self._warn_of_leakage(observer)
            writable_directory(self.out / LABELS)
            for scan, found in self._labelled(todo, predictor, observer):
                images = tuple(str(file.resolve()) for file in scan.paths)
                if isinstance(found, Failed):
                    done[scan.id] = _Kept(images=images, organs=(), failed=found.reason)
                else:
                    done[scan.id] = _Kept(images=images, organs=found)
                write_json_atomic(self.out / LABELS / KEPT, _KeptCases(cases=done).model_dump(mode="json"))
        _report_used_organs(done, self.dataset.schema, observer)

    def _labelled(
        self, scans: Sequence[ScanInput], predictor: Predictor, observer: TrainingObserver
    ) -> Iterator[tuple[ScanInput, tuple[str, ...] | Failed]]:
        """Each scan with its kept organs, whose labels are written."""

        def keep(path: Path, case: Case, result: Prediction) -> tuple[str, ...]:
            labels, kept = _confident(case, result, predictor.bundle, self.dataset.schema)
            if kept:
                write_labels(path, labels)
            return kept

        return model_labels.label(scans, predictor, self.out / LABELS, keep, LABELS, observer)

    def model(self, device: Device, observer: TrainingObserver) -> Bundle:
        """The student: trained, or resumed.

        Raises:
            InterruptedTrainingError: stopped; the next call continues.
            ZoomSegError: as ``training.training_run.start`` and ``resume``.
        """
        data = extended(self.dataset, self.out)
        if self._student_begun:
            return training_run.resume(
                data, self.out, device, observer, self.request.seconds, self.request.epochs
            )
        return training_run.start(
            data, self.out, replace(self.request, teachers=(), part_of=record.UNLABELLED), device, observer
        )

    def _warn_of_leakage(self, observer: TrainingObserver) -> None:
        """Report that teachers may have been trained on the cases on which the student is scored."""
        models = tuple(bundle.load(model) for model in self.request.teachers)
        warning = data_leakage.warning(models, self.request.teachers, self.held_out, self.dataset)
        if warning is not None:
            observer.message(warning)


def begin(dataset: Dataset, out: Path, unlabelled: Path, request: TrainingRequest) -> SelfTraining:
    """Check a request and write it down.

    Raises:
        ModelError: ``out`` already contains a training; a teacher or ``request.init`` is not a model.
        DatasetError: too few labelled cases; unlabelled scans with a labelled case's name.
        ScanError: there are no scans in ``unlabelled``.
        OutputError: ``out`` cannot be written, or another process trains there.
    """
    record.require_new_folder(out)
    scans_in(unlabelled, dataset)
    teachers = tuple(str(bundle.find(model).resolve()) for model in request.teachers)
    run = SelfTraining(dataset, out, unlabelled, replace(request, teachers=teachers))
    for model in teachers:
        _require_known(bundle.load(model), dataset.schema)
    if not teachers and len(run.labelled.cases) < 2:
        raise DatasetError(
            "the first round needs at least two labelled cases; label more, or give a --teacher"
        )
    initial = None if request.init is None else fine_tuning.load(request.init, dataset)
    recipe = load(request.recipe) if request.recipe is not None and Path(request.recipe).is_file() else None
    asked = SelfTrainingRecord(
        **training_run.recorded(dataset, run.request),
        cases=dataset.labelled_ids,
        unlabelled=str(unlabelled.resolve()),
        recipe=request.recipe if recipe is None else RECIPE,
        folds=request.folds,
        fold=request.fold,
        split=None if request.split is None else (request.split.train, request.split.validation),
    )
    with record.locked_new_folder(out):
        init = request.init
        if recipe is not None:
            write_text_atomic(out / RECIPE, dump(recipe))
        if init is not None and initial is not None:
            init = fine_tuning.keep(initial, init, out)
        record.write(asked, out / record.UNLABELLED)
    return replace(run, request=replace(run.request, recipe=_recipe_of(asked, out), init=init))


def _recipe_of(known: SelfTrainingRecord, out: Path) -> str | None:
    """Its name, or the path of the copy."""
    return str(out / RECIPE) if known.recipe == RECIPE else known.recipe


def reopen(
    dataset: Dataset,
    out: Path,
    seconds: float | None = None,
    epochs: int | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> SelfTraining:
    """The training in ``out``; ``seconds`` or ``epochs`` replace the length of the unfinished parts, also for
    later calls without one. ``settings`` as in ``training_run.resume``.

    Raises:
        TrainingError: there is none, it is damaged, or it had other settings, cases, labels or channels.
        OutputError: another process trains there, and a length is given.
    """
    before = record.read_self_training(out)
    known = before.resumed(dataset, out, settings, seconds, epochs)
    init = None if known.init is None else fine_tuning.kept(known.init, out)
    request = TrainingRequest(
        _recipe_of(known, out),
        known.seconds,
        known.epochs,
        known.folds,
        known.fold,
        known.seed,
        init,
        teachers=known.teachers,
        split=None if known.split is None else Split(*known.split),
    )
    record.keep_length(known, before, out, record.UNLABELLED)
    return SelfTraining(dataset, out, Path(known.unlabelled), request)


def is_begun(out: Path) -> bool:
    """Whether a folder contains a training with unlabelled scans."""
    return (out / record.UNLABELLED).is_file()


def scans_in(folder: Path, dataset: Dataset) -> list[ScanInput]:
    """The scans without labels.

    Raises:
        ScanError: there are none.
        DatasetError: DICOM, or a case of the data set: by its name, or by a common file.
    """
    scans = find_scans(folder)
    cases = {path.resolve(): case.id for case in dataset.cases for path in case.images}
    for scan in scans:
        if scan.dicom is not None:
            raise DatasetError(f"{folder}: unlabelled scans must be NIfTI, NRRD or MHA files, not DICOM")
        if scan.id in dataset.ids:
            raise DatasetError(
                f"unlabelled scan '{quoted(scan.id)}' has the name of a case of data set '{dataset.name}'; "
                "rename it, or remove it if it is the same scan"
            )
        case = next((cases[file] for file in map(Path.resolve, scan.paths) if file in cases), None)
        if case is not None:
            raise DatasetError(
                f"unlabelled scan '{quoted(scan.id)}' is the file of case '{case}' of data set "
                f"'{dataset.name}'; take it out"
            )
    return scans


def extended(dataset: Dataset, out: Path) -> Dataset:
    """The data set, and the scans with at least one kept organ.

    Raises:
        TrainingError: ``pseudo-labels.json`` is damaged.
    """
    added = [
        CaseFiles(
            id_,
            tuple(Path(image) for image in kept.images),
            out / LABELS / f"{id_}.nii.gz",
            frozenset(kept.organs),
            pseudo=True,
        )
        for id_, kept in _read_kept(out, dataset.schema).items()
        if kept.organs
    ]
    return replace(dataset, cases=tuple(sorted((*dataset.cases, *added), key=lambda case: case.id)))


def _require_known(teacher: Bundle, schema: LabelSchema) -> None:
    if not alike(schema, teacher.schema):
        raise ModelError(
            f"teacher {teacher.folder or teacher.recipe.name} predicts none of the data set's labels (it has "
            f"{', '.join(teacher.schema.names)})"
        )


def _confident(
    case: Case, result: Prediction, teacher: Bundle, schema: LabelSchema
) -> tuple[LabelMap, tuple[str, ...]]:
    """The label map with the confident organs only, as classes of the data set, and their names."""
    rows = organ_rows_of(case.id, result, case.image, teacher.calibration, domain=teacher.domain)
    table = np.zeros(result.schema.classes, dtype=np.uint8)
    known = {theirs: own for own, theirs in alike(schema, result.schema).items()}
    kept = set()
    for row in rows:
        own = known.get(row.organ)
        if own is not None and row.confidence is not None and row.confidence >= MIN_CONFIDENCE:
            table[result.schema.class_of(row.organ)] = schema.class_of(own)
            kept.add(own)
    labels = LabelMap(table[result.labels.data], case.image.grid, schema)
    return labels, tuple(name for name in schema.names if name in kept)


def _read_kept(out: Path, schema: LabelSchema) -> dict[str, _Kept]:
    found = model_labels.read_list(out / LABELS / KEPT, _KeptCases, _organs_by_case, schema)
    return {} if found is None else dict(found.cases)


def _organs_by_case(known: _KeptCases) -> dict[str, tuple[str, ...]]:
    return {case: kept.organs for case, kept in known.cases.items()}


def _report_used_organs(done: dict[str, _Kept], schema: LabelSchema, observer: TrainingObserver) -> None:
    counts = {name: sum(name in kept.organs for kept in done.values()) for name in schema.names}
    if not any(counts.values()):
        raise TrainingError(
            f"of {len(done)} unlabelled scans, the teachers predict no organ with a confidence of "
            f"{MIN_CONFIDENCE} or more; train them for longer, or train without --unlabelled"
        )
    organs = ", ".join(f"{name} {count}" for name, count in counts.items())
    observer.message(f"of {len(done)} unlabelled scans, organs to learn from: {organs}")
