"""The trainings of a study: each once per fold, all with the same budget, resumed after interruptions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from zoomseg.anatomy.organ_names import alike, label_of
from zoomseg.atlas.library import MANIFEST, AtlasLibrary
from zoomseg.backends.device import Device
from zoomseg.core.errors import DatasetError, RecipeError, TrainingError
from zoomseg.core.interrupts import GO_ON, InterruptedTrainingError
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.datasets.split_file import CaseSplit, read_splits
from zoomseg.inference import atlas_priors
from zoomseg.io import bundle, digests
from zoomseg.io.bundle import Bundle
from zoomseg.io.files import writable_directory, write_text_atomic
from zoomseg.io.scans import find_scans
from zoomseg.pipeline.cascade import AtlasPriorOf
from zoomseg.recipe import graph
from zoomseg.recipe.load import dump, load
from zoomseg.recipe.spec import PlannedRecipe, Recipe
from zoomseg.study.ablations import Ablation, RegionCurve, StudyTraining
from zoomseg.study.recipe_edits import (
    Edit,
    chain,
    coarser,
    narrower,
    shipped,
    unchanged,
    with_atlases,
    with_small_organs,
)
from zoomseg.study.study_record import StudyRecord
from zoomseg.training import atlases, fine_tuning, requested_recipe, self_training, training_run
from zoomseg.training.log import NullObserver, TrainingObserver
from zoomseg.training.loop import Split
from zoomseg.training.validation import Validation


@dataclass(frozen=True)
class StudySettings:
    """The user's settings. ``seconds`` is for each training; None: the recipe's own number of iterations.

    ``folds`` None: the study's own scheme. With ``fold`` only that one is trained. ``recipe`` None: the
    study's own; a training's own recipe is kept. ``atlases`` None: the recipe's number. ``small`` are the
    organs with a stage each, which are tabulated; empty: all. ``split`` is a file for ``split_file``, in
    place of folds; ``test`` is a data set that is not used for training; ``unlabelled`` is a folder of
    unlabelled scans.
    """

    seconds: float | None = None
    folds: int | None = None
    fold: int | None = None
    seed: int = 0
    coarser: float = 1.0
    narrower: float = 1.0
    init: Path | None = None
    recipe: str | None = None
    small: tuple[str, ...] = ()
    atlases: int | None = None
    split: Path | None = None
    test: Path | None = None
    unlabelled: Path | None = None


def _silent() -> AbstractContextManager[TrainingObserver]:
    return nullcontext(NullObserver())


@dataclass(frozen=True)
class StudyObserver:
    """Observer of a study: the current activity, and a display for each training."""

    say: Callable[[str], None] = lambda text: None
    training: Callable[[], AbstractContextManager[TrainingObserver]] = _silent


def chosen_folds(
    study: Ablation | RegionCurve, settings: StudySettings, splits: int = 0
) -> tuple[int, tuple[int, ...]]:
    """The number of folds, and those that are trained: all ``splits`` of a file, if there is one.

    Raises:
        DatasetError: a fold that does not exist; a number of folds together with a file of them.
    """
    if splits and settings.folds is not None:
        raise DatasetError(f"the split file has {splits} fold(s); omit --folds")
    count = splits or (study.folds if settings.folds is None else settings.folds)
    if settings.fold is not None:
        if not 0 <= settings.fold < count:
            raise DatasetError(f"fold must be 0 to {count - 1}, got {settings.fold}")
        return count, (settings.fold,)
    if settings.folds is None and not study.pooled and not splits:
        return count, (0,)
    return count, tuple(range(count))


@dataclass(frozen=True)
class Trainings:
    """A study's folder: ``runs/<training>/fold-<n>`` is a model with its training, as written by ``zoomseg
    train``; ``study.json`` prevents two different studies from being mixed, also if a recipe, model or folder
    that was given has changed meanwhile."""

    study: Ablation | RegionCurve
    dataset: Dataset
    out: Path
    settings: StudySettings
    device: Device
    observer: StudyObserver
    recipe: Recipe
    """The initial recipe of all trainings without their own."""
    count: int
    folds: tuple[int, ...]
    splits: tuple[CaseSplit, ...] = ()
    """From a file, one per fold; empty: folds are drawn."""
    unseen: Dataset | None = None
    """Labelled cases on which rows are also scored; none of them is used for training, and their labels have
    the names of those of ``dataset``."""
    small: tuple[str, ...] = ()
    """The only tabulated labels, if there are any."""

    def split(self, fold: int) -> Split:
        """A fold's training cases, and the held-out ones."""
        if self.splits:
            return self._listed(fold)
        return requested_recipe.choose_split(
            self.dataset, requested_recipe.TrainingRequest(folds=self.count, fold=fold)
        )

    def _listed(self, fold: int) -> Split:
        return requested_recipe.trained_on(self.splits)[fold]

    def start(self, training: StudyTraining) -> Recipe:
        """The recipe that a training changes: the study's, or its own, reduced in the same way."""
        return _start(training, self.recipe, self.settings)

    def folder(self, run: str, fold: int) -> Path:
        return self.out / "runs" / run / f"fold-{fold}"

    @property
    def registered(self) -> Path:
        """Folder of registered atlases, for all trainings and rows."""
        return self.out / "atlases" / "registered"

    def model(self, training: StudyTraining, fold: int) -> Bundle:
        """The trained model: from disk if it is finished, otherwise, or if it is damaged, trained or resumed
        now.

        Raises:
            InterruptedTrainingError: the user stopped it; the next call continues.
        """
        folder = self.folder(training.id, fold)
        model = training_run.complete_model(folder)
        if model is not None and model.graphs:
            return model
        if model is not None:
            with self.observer.training() as observer:
                return training_run.with_graphs(model, folder, observer)
        self.observer.say(f"training '{training.id}', fold {fold} of {self.count}")
        try:
            return self._train(training, fold, folder)
        except InterruptedTrainingError as error:
            raise InterruptedTrainingError(f"stopped; {GO_ON}") from error

    def steps_log(self, training: StudyTraining, fold: int) -> Path:
        """The file with a training's steps."""
        return self.folder(training.id, fold) / "training" / "metrics.csv"

    def atlas_of(self, fold: int) -> AtlasPriorOf:
        """Computes the atlas priors of a training; no case is its own atlas. Registered atlases are kept for
        all trainings and rows.

        Raises:
            RecipeError: the study's recipe has no atlas.
            MissingPackageError: the registration library is not installed.
            DatasetError: no training case is annotated completely.
        """
        return atlases.of_library(self._atlases(fold), self.registered, self.observer.say)

    def atlas_of_others(self, fold: int) -> AtlasPriorOf:
        """As ``atlas_of``, for held-out cases and those of a test set: none of them is an atlas, even if it
        has the id of one."""
        return atlases.of_others(self._atlases(fold), self.registered, self.observer.say)

    def _atlases(self, fold: int) -> AtlasLibrary:
        """The fold's training cases as atlases, read once. No training changes them, as its rows could then
        not be compared with the others."""
        folder = self.out / "atlases" / f"fold-{fold}"
        if (folder / MANIFEST).is_file():
            return AtlasLibrary.load(folder)
        if self.recipe.atlas is None:
            raise RecipeError(f"recipe '{self.recipe.name}' has no atlas prior; give it an 'atlas'")
        self.observer.say(f"reading the atlases of fold {fold}")
        ids = self.split(fold).train
        with self.observer.training() as observer:
            library = atlases.collect(self.dataset, ids, self.recipe, observer, threading.Event())
        library.save(folder)
        return library

    def _train(self, training: StudyTraining, fold: int, folder: Path) -> Bundle:
        if training.unlabelled:
            return self._train_with_unlabelled(training, fold, folder)
        if training_run.is_begun(folder):
            with self.observer.training() as observer:
                return training_run.resume(self.dataset, folder, self.device, observer)
        recipe = training.change(self.start(training))
        request = self._request(training, recipe, fold)
        if atlas_priors.uses_atlas(recipe):
            self._make_priors(recipe, fold, self.dataset, annotated=self._annotated_cases(training, fold))
        with self.observer.training() as observer:
            return training_run.start(self.dataset, folder, request, self.device, observer)

    def _request(
        self, training: StudyTraining, recipe: Recipe, fold: int
    ) -> requested_recipe.TrainingRequest:
        """The training request of a fold, for the recipe written to disk."""
        file = self.out / "runs" / training.id / "recipe.yaml"
        writable_directory(file.parent)
        write_text_atomic(file, dump(recipe.model_copy(update={"name": f"{recipe.name}-{training.id}"})))
        settings = self.settings
        split = self._listed(fold) if self.splits else None
        if split is not None:
            split = replace(split, train=(*split.train, *self._annotated_cases(training, fold)))
        return requested_recipe.TrainingRequest(
            str(file),
            settings.seconds,
            folds=None if self.splits else self.count,
            fold=0 if self.splits else fold,
            split=split,
            seed=settings.seed,
            init=settings.init if training.fine_tuned else None,
            registered=self.registered,
        )

    def _train_with_unlabelled(self, training: StudyTraining, fold: int, folder: Path) -> Bundle:
        """As ``zoomseg train --unlabelled``; without cases that a split file omits."""
        assert self.settings.unlabelled is not None  # ``open_trainings`` refuses a study without them
        data = self._of_fold(fold)
        if self_training.is_begun(folder):
            run = self_training.reopen(data, folder)
            run = replace(run, request=replace(run.request, registered=self.registered))
        else:
            request = self._request(training, training.change(self.start(training)), fold)
            run = self_training.begin(data, folder, self.settings.unlabelled, request)
        run.teach(self.device, self.observer.training, self._report_teacher)
        with self.observer.training() as observer:
            run.label(self.device, observer)
        recipe = shipped(str(run.request.recipe))
        if not training_run.is_begun(folder) and atlas_priors.uses_atlas(recipe):
            self._make_priors(recipe, fold, self_training.extended(data, folder))
        with self.observer.training() as observer:
            return run.model(self.device, observer)

    def _of_fold(self, fold: int) -> Dataset:
        split = self.split(fold)
        return self.dataset.subset((*split.train, *split.validation)) if self.splits else self.dataset

    def _annotated_cases(self, training: StudyTraining, fold: int) -> tuple[str, ...]:
        """The scans given as unlabelled that a training uses with their own labels."""
        if not (training.own_labels and self.splits and self.settings.unlabelled is not None):
            return ()
        scans = self_training.scans_in(self.settings.unlabelled, self._of_fold(fold))
        return tuple(scan.id for scan in scans)

    def _report_teacher(self, folder: Path, found: Validation) -> None:
        self.observer.say(
            f"teacher {folder.name}: mean Dice {found.scores.mean['dice']:.3f} of its held-out cases"
        )

    def _make_priors(
        self, recipe: Recipe, fold: int, dataset: Dataset, annotated: tuple[str, ...] = ()
    ) -> None:
        """Atlas priors are computed before the training's clock starts, so that rows with and without them
        have the same training time: for the fold's cases, for those in ``dataset`` that models labelled, and
        for those ``annotated``, which are atlases, too."""
        split, stop = self.split(fold), threading.Event()
        pseudo = (case.id for case in dataset.cases if case.pseudo)
        with self.observer.training() as observer:
            if annotated:
                library = atlases.collect(dataset, (*split.train, *annotated), recipe, observer, stop)
                prior_of = atlases.of_library(library, self.registered, self.observer.say)
            else:
                prior_of = self.atlas_of(fold)
            ids = (*split.train, *annotated, *pseudo, *split.validation)
            atlases.prepare_all(prior_of, dataset, ids, recipe, observer, stop)


def open_trainings(
    study: Ablation | RegionCurve,
    dataset: Dataset,
    out: Path,
    settings: StudySettings,
    device: Device,
    observer: StudyObserver | None = None,
) -> Trainings:
    """Start a study in ``out``, or resume the existing one.

    Raises:
        TrainingError: ``out`` contains another study; --init or --unlabelled is missing, or given where it
            has no meaning.
        DatasetError: a fold that does not exist; the data set lacks the organs of the study; an unsuitable
            split file, test set or unlabelled scans.
        ScanError: no unlabelled scans.
        RecipeError: the recipe is not complete, or lacks a part that ``settings`` or a row change.
        OutputError: ``out`` cannot be written.
    """
    splits = () if settings.split is None else read_splits(settings.split, dataset)
    count, folds = chosen_folds(study, settings, len(splits))
    unseen = _unseen(study, dataset, settings, splits[folds[0]] if splits else None)
    study = _with_unlabelled(study, dataset, settings, splits, unseen)
    recipe = _recipe(study, settings, dataset)
    if isinstance(study, Ablation) and isinstance(recipe, Recipe):
        _check_rows(study, recipe, settings, dataset)
    record, file = _record(study, dataset, settings, count, splits, unseen), out / "study.json"
    if file.exists():
        record.require_same(file)
    writable_directory(out)
    record.write(file)
    observer, small = observer or StudyObserver(), _small(settings, dataset)
    if isinstance(recipe, PlannedRecipe):
        cases = splits[folds[0]].train if splits else dataset.labelled_ids
        recipe = _smaller(settings)(_planned(recipe, dataset, cases, out, settings, device, observer))
    opened = Trainings(study, dataset, out, settings, device, observer, recipe, count, folds)
    return replace(opened, splits=splits, unseen=unseen, small=small)


def _planned(
    recipe: PlannedRecipe,
    dataset: Dataset,
    cases: tuple[str, ...],
    out: Path,
    settings: StudySettings,
    device: Device,
    observer: StudyObserver,
) -> Recipe:
    """The recipe of all trainings, planned once, as in a cross-validation, before their time begins."""
    file = out / "recipe.yaml"
    if not file.is_file():
        length = requested_recipe.TrainingRequest(seconds=settings.seconds)
        with observer.training() as display:
            planned = requested_recipe.plan_recipe(dataset, Split(cases, ()), recipe, device, display, length)
        write_text_atomic(out / "plan.md", planned.markdown(dataset.name))
        write_text_atomic(file, dump(planned.recipe))
    return shipped(str(file))


def _with_unlabelled(
    study: Ablation | RegionCurve,
    dataset: Dataset,
    settings: StudySettings,
    splits: tuple[CaseSplit, ...],
    unseen: Dataset | None,
) -> Ablation | RegionCurve:
    """The study with the rows that the unlabelled scans allow, after checking that they are suitable."""
    if isinstance(study, RegionCurve) or not study.needs_unlabelled:
        if settings.unlabelled is not None:
            raise TrainingError(f"study '{study.name}' uses labelled scans only; omit --unlabelled")
        return study
    if settings.unlabelled is None:
        raise TrainingError(
            f"study '{study.name}' needs unlabelled scans; give them with --unlabelled FOLDER"
        )
    listed = {case for split in splits for case in (*split.train, *split.validation, *split.test)}
    scans = self_training.scans_in(settings.unlabelled, dataset.subset(listed) if splits else dataset)
    if unseen is not None:  # scored cases are not used for training
        self_training.scans_in(settings.unlabelled, unseen)
    if splits and {scan.id for scan in scans} <= set(dataset.labelled_ids):
        return study
    rows = (r for r in study.rows if r.training is None or not r.training.own_labels)
    return replace(study, rows=tuple(rows))


def _unseen(
    study: Ablation | RegionCurve, dataset: Dataset, settings: StudySettings, split: CaseSplit | None
) -> Dataset | None:
    """The test list of the split file, or the test data set with the names of ``dataset``."""
    listed = split.test if split else ()
    if settings.test is None:
        return dataset.subset(listed) if listed and isinstance(study, Ablation) else None
    if isinstance(study, RegionCurve):
        raise TrainingError(f"study '{study.name}' evaluates training and held-out cases; omit --test")
    if listed:
        raise DatasetError("the split file has a test list; omit it or --test")
    if settings.test.resolve() == dataset.root.resolve():
        raise DatasetError(f"{settings.test} is the data set that is trained on; --test needs another one")
    return named_alike(open_dataset(settings.test), dataset)


def named_alike(test: Dataset, dataset: Dataset) -> Dataset:
    """The labelled cases of ``test``, with labels named like those of ``dataset`` with the same meaning
    (``alike``).

    Raises:
        DatasetError: no case is labelled, no label is in both, or other channels.
    """
    labelled = tuple(case for case in test.cases if case.labels is not None)
    if not labelled:
        raise DatasetError(f"test set '{test.name}' has no labelled case; nothing can be evaluated on it")
    if len(test.channel_names) != len(dataset.channel_names):
        raise DatasetError(
            f"test set '{test.name}' has channels {', '.join(test.channel_names)}, the data set has "
            f"{', '.join(dataset.channel_names)}"
        )
    called = alike(test.schema, dataset.schema)
    if not called:
        raise DatasetError(
            f"test set '{test.name}' has labels {', '.join(test.schema.names)}, the data set has "
            f"{', '.join(dataset.schema.names)}; none is in both"
        )
    schema = LabelSchema(tuple(called.get(n, n) for n in test.schema.names), test.schema.values)
    cases = tuple(
        case
        if case.annotated is None
        else replace(case, annotated=frozenset(called.get(n, n) for n in case.annotated))
        for case in labelled
    )
    return replace(test, schema=schema, cases=cases)


def _small(settings: StudySettings, dataset: Dataset) -> tuple[str, ...]:
    """The labels of the organs that the user named."""
    found = {organ: label_of(organ, dataset.schema) for organ in settings.small}
    lacking = [organ for organ, own in found.items() if own is None]
    if lacking:
        raise DatasetError(
            f"data set '{dataset.name}' has no {', '.join(lacking)}; it has {', '.join(dataset.schema.names)}"
        )
    return tuple(own for own in found.values() if own is not None)


def _smaller(settings: StudySettings) -> Edit:
    return chain(coarser(settings.coarser), narrower(settings.narrower))


def _recipe(
    study: Ablation | RegionCurve, settings: StudySettings, dataset: Dataset
) -> Recipe | PlannedRecipe:
    """The initial recipe of all trainings; still to be planned if stages may have any names."""
    if study.recipe is not None:
        if settings.init is not None:
            raise TrainingError(f"study '{study.name}' does not start from a model; omit --init")
        name = settings.recipe or study.recipe
        if isinstance(study, Ablation) and study.changes_nothing and not (settings.small or settings.atlases):
            wanted = load(name)
            if isinstance(wanted, PlannedRecipe):
                return wanted
        return chain(
            with_small_organs(_small(settings, dataset)) if settings.small else unchanged,
            unchanged if settings.atlases is None else with_atlases(settings.atlases),
            _smaller(settings),
        )(shipped(name))
    if settings.init is None:
        raise TrainingError(f"study '{study.name}' fine-tunes a model; give it with --init MODEL")
    if settings.recipe is not None or settings.small or settings.atlases is not None:
        raise TrainingError(
            "the recipe is that of the model given with --init; omit --recipe, --small and --atlases"
        )
    if settings.coarser != 1 or settings.narrower != 1:
        raise TrainingError(
            "grids and networks are those of the model given with --init; omit --coarser and --narrower"
        )
    return fine_tuning.recipe_of(fine_tuning.load(settings.init, dataset))


def _start(training: StudyTraining, recipe: Recipe, settings: StudySettings) -> Recipe:
    return recipe if training.recipe is None else _smaller(settings)(shipped(training.recipe))


def _trained(training: StudyTraining, recipe: Recipe, settings: StudySettings, dataset: Dataset) -> Recipe:
    """The recipe of a training, in the form that is trained."""
    fitted = graph.fit(training.change(_start(training, recipe, settings)), dataset.schema)[0]
    return graph.trainable(fitted, dataset.schema)


def _check_rows(study: Ablation, recipe: Recipe, settings: StudySettings, dataset: Dataset) -> None:
    """Refuse a recipe of the user's from which a row cannot be made, and studies whose rows differ only in
    stages for organs that the data set lacks, which would compare a training with itself for hours."""
    seen: dict[tuple[str, str], str] = {}
    for row in study.rows:
        if row.training is None:
            continue
        try:
            predicting = row.predict(_trained(row.training, recipe, settings, dataset))
        except RecipeError as error:
            if settings.recipe is not None and row.training.recipe is None:
                raise RecipeError(f"row '{row.name}' of study '{study.name}': {error}") from error
            continue  # the row is omitted, with a message, later
        same = seen.setdefault((row.training.id, predicting.model_dump_json()), row.name)
        if same != row.name:
            organs = dict.fromkeys(o for s in recipe.stages if isinstance(s.labels, tuple) for o in s.labels)
            raise DatasetError(
                f"study '{study.name}' compares nothing on data set '{dataset.name}' (labels "
                f"{', '.join(dataset.schema.names)}): without the organs that its stages are for "
                f"({', '.join(organs)}), rows '{same}' and '{row.name}' are the same; "
                "choose another --ablation or data set"
            )


def _record(
    study: Ablation | RegionCurve,
    dataset: Dataset,
    settings: StudySettings,
    count: int,
    splits: tuple[CaseSplit, ...],
    unseen: Dataset | None,
) -> StudyRecord:
    scans = () if settings.unlabelled is None else find_scans(settings.unlabelled)
    return StudyRecord(
        ablation=study.name,
        data_set=dataset.name,
        cases=dataset.ids,
        time_budget_in_seconds=settings.seconds,
        folds=count,
        seed=settings.seed,
        coarser=settings.coarser,
        narrower=settings.narrower,
        init=None if settings.init is None else digests.of_model(bundle.load(settings.init)),
        recipe=None if settings.recipe is None else load(settings.recipe).model_dump(mode="json"),
        small_organs=settings.small or None,
        atlases=settings.atlases,
        splits=tuple((s.train, s.validation, s.test) for s in splits) or None,
        test_set=None if settings.test is None or unseen is None else (unseen.name, *unseen.ids),
        unlabelled_scans=tuple(scan.id for scan in scans) or None,
    )
