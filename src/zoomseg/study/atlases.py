"""Multi-atlas segmentation of a study's held-out scans: the atlases are the fold's training cases.

The atlases of a fold and what was registered are kept in the study's folder, so that all rows that need a
scan's atlas prior register it once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from zoomseg.atlas.library import MANIFEST, AtlasLibrary
from zoomseg.atlas.register import LibraryMissingError
from zoomseg.core.case import Case
from zoomseg.core.errors import OutputError, RecipeError, ZoomSegError
from zoomseg.core.volume import LabelMap
from zoomseg.engine import look
from zoomseg.engine.atlases import AtlasOf, collect, of_library
from zoomseg.io.scans import read_image, write_labels
from zoomseg.stage import fusion
from zoomseg.study.trainings import Trainings


def atlas_of(trainings: Trainings, fold: int) -> AtlasOf:
    """What gives the atlas prior of a scan that is not among the fold's training cases.

    Raises:
        RecipeError: the study's recipe has no atlas.
        LibraryMissingError: the registration library is not installed.
        DatasetError: no training case is annotated completely.
    """
    folder = trainings.out / "atlases" / f"fold-{fold}"
    return of_library(_library(trainings, fold, folder), trainings.registered, trainings.watch.say)


def _library(trainings: Trainings, fold: int, folder: Path) -> AtlasLibrary:
    if (folder / MANIFEST).is_file():
        return AtlasLibrary.load(folder)
    recipe = trainings.recipe
    if recipe.atlas is None:
        raise RecipeError(f"recipe '{recipe.name}' has no atlas prior; give it an 'atlas'")
    trainings.watch.say(f"reading the atlases of fold {fold}")
    ids = trainings.split(fold).train
    with trainings.watch.training() as observer:
        library = collect(trainings.dataset, ids, recipe, observer, threading.Event()).reduced()
    library.save(folder)
    return library


def segment_by_atlas(trainings: Trainings, fold: int, ids: Sequence[str], out: Path) -> list[str]:
    """Label maps ``out/<case>.nii.gz`` of what the atlas prior alone finds most probable. Returns the cases
    that failed, one line each.

    Raises:
        LibraryMissingError: the registration library is not installed.
        OutputError: ``out`` cannot be written.
    """
    prior_of = atlas_of(trainings, fold)
    problems: list[str] = []
    for number, files in enumerate(trainings.dataset.subset(ids).cases, start=1):
        try:
            image = read_image(files.images, channels_last=trainings.dataset.channels_last(files))
            scan = look.prepare(Case(files.id, image), trainings.recipe)
            canvas = fusion.Canvas.blank(scan.grid, trainings.dataset.schema)
            fusion.replace_in_roi(canvas, prior_of(scan))
            labels = LabelMap(canvas.labels, canvas.grid, canvas.schema)
            labels = labels.reoriented(scan.orientation.inverse)
            write_labels(out / f"{files.id}.nii.gz", labels, like=files.images[0])
        except (OutputError, LibraryMissingError):
            raise
        except ZoomSegError as error:
            problems.append(f"{files.id}: {error}")
        trainings.watch.say(f"fused {number} of {len(ids)}: {files.id}")
    return problems
