"""Atlas priors in training: the atlases are the training cases, and no case is its own atlas."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoomseg.atlas.library import AtlasLibrary
from zoomseg.atlas.register import library as registration_library
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import DatasetError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import CaseFiles, Dataset
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.cascade import AtlasPriorOf
from zoomseg.recipe.spec import ATLAS, Recipe
from zoomseg.training.log import TrainingObserver


def collect(
    dataset: Dataset, ids: Sequence[str], recipe: Recipe, observer: TrainingObserver, stop: threading.Event
) -> AtlasLibrary:
    """The cases ``ids`` as atlases, without partially annotated ones, in which missing labels would vote for
    background. Pseudo-labelled cases are not atlases either.

    Raises:
        MissingPackageError: the registration library is not installed.
        DatasetError: no case is annotated completely.
        InterruptedTrainingError: ``stop`` was set.
    """
    assert recipe.atlas is not None  # graph.validate: without the prior, no stage uses it
    registration_library()  # before minutes are spent reading
    every = set(dataset.schema.names)
    files = {case.id: case for case in dataset.cases}
    manual = [files[i] for i in ids if not files[i].pseudo]
    complete = [case for case in manual if case.annotated is None or case.annotated >= every]
    if not complete:
        raise DatasetError("no training case is annotated completely; atlases need all labels")
    reading = _Step(ATLAS, "preparing the data", observer, stop)
    return AtlasLibrary.build(recipe.atlas, _labelled(reading.scans(dataset, complete, recipe)))


@dataclass(frozen=True, eq=False)
class _Step:
    """Iteration over cases, reported under ``name``, which can be stopped between two."""

    name: str
    doing: str
    observer: TrainingObserver
    stop: threading.Event

    def scans(
        self, dataset: Dataset, cases: Sequence[CaseFiles], recipe: Recipe
    ) -> Iterator[stage_input.PreparedScan]:
        for done, case in enumerate(cases):
            if self.stop.is_set():
                raise InterruptedTrainingError(f"stopped while {self.doing}; continue with --resume")
            self.observer.preparing(self.name, done, len(cases))
            yield stage_input.prepare(dataset.load(case), recipe)
        self.observer.preparing(self.name, len(cases), len(cases))


def _labelled(scans: Iterator[stage_input.PreparedScan]) -> Iterator[tuple[str, Volume, LabelMap]]:
    for scan in scans:
        assert scan.labels is not None  # training cases are labelled
        yield scan.id, scan.image, scan.labels


def prepare_all(
    prior_of: AtlasPriorOf,
    dataset: Dataset,
    ids: Sequence[str],
    recipe: Recipe,
    observer: TrainingObserver,
    stop: threading.Event,
) -> None:
    """Compute and store the priors of the cases ``ids`` before they are needed.

    Raises:
        InterruptedTrainingError: ``stop`` was set.
    """
    files = {case.id: case for case in dataset.cases}
    step = _Step(f"{ATLAS} (registration)", "registering atlases", observer, stop)
    for scan in step.scans(dataset, [files[i] for i in ids], recipe):
        prior_of(scan)


def of_library(library: AtlasLibrary, cache: Path | None, warn: Callable[[str], None]) -> AtlasPriorOf:
    """Priors of scans from the atlases of a library; no scan is its own atlas. Registered atlases are kept in
    ``cache``."""
    return _priors(library, cache, warn, lambda case: case)


def of_others(library: AtlasLibrary, cache: Path | None, warn: Callable[[str], None]) -> AtlasPriorOf:
    """As ``of_library``, for scans that are none of the atlases, even if one has the id of an atlas: another
    data set's case may."""
    return _priors(library, cache, warn, lambda case: None)


def _priors(
    library: AtlasLibrary,
    cache: Path | None,
    warn: Callable[[str], None],
    atlas_of: Callable[[str], str | None],
) -> AtlasPriorOf:
    """
    Args:
        atlas_of: by the id of a scan, that of the atlas which is the same scan.
    """

    def prior(scan: stage_input.PreparedScan) -> StagePrediction:
        return library.prior(
            scan.image,
            exclude=atlas_of(scan.id),
            cache=cache,
            on_warning=lambda message: warn(f"{scan.id}: {message}"),
        )

    return prior
