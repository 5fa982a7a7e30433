"""Atlas priors in training and prediction: the atlases are the training cases, kept in the model's folder."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoomseg.core.case import Prior
from zoomseg.core.errors import DatasetError, ModelError
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.engine import look
from zoomseg.engine.stop import InterruptedTrainingError
from zoomseg.io.bundle import ATLASES, Bundle
from zoomseg.recipe import graph
from zoomseg.recipe.spec import ATLAS, Recipe

# Prediction by a model without atlases starts without the library and what only training needs.
if TYPE_CHECKING:
    from zoomseg.atlas.library import AtlasLibrary
    from zoomseg.engine.log import Observer
    from zoomseg.io.dataset import CaseFiles, Dataset

FOLDER = ATLASES
"""In the model's folder."""

AtlasOf = Callable[[look.Scan], Prior]
"""What gives the atlas prior of a scan."""

Progress = Callable[[str, int, int], None]
"""Called with (case id, steps done, steps in all): a step for every atlas, and one for fusion."""


def wanted(recipe: Recipe) -> bool:
    """Whether any stage uses the atlas prior."""
    return any(graph.uses_atlas(stage) for stage in recipe.stages)


def collect(
    dataset: Dataset, ids: Sequence[str], recipe: Recipe, observer: Observer, stop: threading.Event
) -> AtlasLibrary:
    """The cases ``ids`` as atlases, but for those in which not every label was drawn: there, what is not
    drawn would be a vote for background.

    Raises:
        LibraryMissingError: the registration library is not installed.
        DatasetError: no case is annotated completely.
        InterruptedTrainingError: ``stop`` was set.
    """
    from zoomseg.atlas.library import AtlasLibrary
    from zoomseg.atlas.register import library as registration_library

    assert recipe.atlas is not None  # graph.validate: no stage uses the prior without it
    registration_library()  # before minutes are spent on reading
    every = set(dataset.schema.names)
    files = {case.id: case for case in dataset.cases}
    complete = [files[i] for i in ids if (drawn := files[i].annotated) is None or drawn >= every]
    if not complete:
        raise DatasetError("no training case is annotated completely; atlases need all labels")
    reading = _Step(ATLAS, "preparing the data", observer, stop)
    return AtlasLibrary.build(recipe.atlas, _labelled(reading.scans(dataset, complete, recipe)))


@dataclass(frozen=True, eq=False)
class _Step:
    """Cases gone through one by one: told under ``name``, and stopped between two."""

    name: str
    doing: str
    observer: Observer
    stop: threading.Event

    def scans(self, dataset: Dataset, cases: Sequence[CaseFiles], recipe: Recipe) -> Iterator[look.Scan]:
        for done, case in enumerate(cases):
            if self.stop.is_set():
                raise InterruptedTrainingError(f"stopped while {self.doing}; go on with --resume")
            self.observer.preparing(self.name, done, len(cases))
            yield look.prepare(dataset.load(case), recipe)
        self.observer.preparing(self.name, len(cases), len(cases))


def _labelled(scans: Iterator[look.Scan]) -> Iterator[tuple[str, Volume, LabelMap]]:
    for scan in scans:
        assert scan.labels is not None  # cases to train on are labelled
        yield scan.id, scan.image, scan.labels


def prepare_all(
    prior_of: AtlasOf,
    dataset: Dataset,
    ids: Sequence[str],
    recipe: Recipe,
    observer: Observer,
    stop: threading.Event,
) -> None:
    """Have the priors of the cases ``ids`` computed, and kept, before they are needed.

    Raises:
        InterruptedTrainingError: ``stop`` was set.
    """
    files = {case.id: case for case in dataset.cases}
    step = _Step(f"{ATLAS} (registration)", "registering atlases", observer, stop)
    for scan in step.scans(dataset, [files[i] for i in ids], recipe):
        prior_of(scan)


def of_library(library: AtlasLibrary, cache: Path | None, warn: Callable[[str], None]) -> AtlasOf:
    """Priors of scans by the atlases of a library; no scan is its own atlas. What was registered is kept in
    ``cache``."""

    def prior(scan: look.Scan) -> Prior:
        return library.prior(
            scan.image,
            exclude=scan.id,
            cache=cache,
            on_warning=lambda message: warn(f"{scan.id}: {message}"),
        )

    return prior


def _warn(message: str) -> None:
    """To whoever calls from Python; commands have their own way to say it."""
    warnings.warn(message, stacklevel=2)


def _silent(case: str, done: int, total: int) -> None:
    pass


def of_model(
    model: Bundle, warn: Callable[[str], None] = _warn, progress: Progress = _silent
) -> AtlasOf | None:
    """Priors by a model's own atlases; None if it uses none.

    Args:
        warn: is told of every atlas that is dropped, and for which case.
        progress: registration takes many seconds for each atlas.

    Raises:
        ModelError: its atlases are not in its folder, or damaged.
    """
    if not wanted(model.recipe):
        return None
    if model.folder is None:
        raise ModelError("the model uses an atlas prior, but was not read from a folder with its atlases")
    from zoomseg.atlas.library import AtlasLibrary

    library = AtlasLibrary.load(model.folder / FOLDER)
    if library.schema.names != model.schema.names:
        raise ModelError(f"{model.folder / FOLDER} has other labels than the model; copy the whole folder")

    def prior(scan: look.Scan) -> Prior:
        return library.prior(
            scan.image,
            on_warning=lambda message: warn(f"{scan.id}: {message}"),
            progress=lambda done, total: progress(scan.id, done, total),
        )

    return prior
