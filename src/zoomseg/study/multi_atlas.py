"""Multi-atlas segmentation of a study's held-out scans: the atlases are the fold's training cases."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from zoomseg.core.arrays import to_numpy
from zoomseg.core.case import Case
from zoomseg.core.extras import MissingPackageError
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import CaseFiles, Dataset
from zoomseg.inference.batch import Failed, tried
from zoomseg.io.scans import read_image, write_labels
from zoomseg.pipeline import fusion, stage_input
from zoomseg.study.trainings import Trainings


def segment_by_atlas(trainings: Trainings, fold: int, scans: Dataset, out: Path) -> list[str]:
    """Label maps ``out/<case>.nii.gz`` of all ``scans``: the most probable labels of the atlas prior alone.
    Returns the cases that failed, one line each.

    Raises:
        MissingPackageError: the registration library is not installed.
        OutputError: ``out`` cannot be written.
    """
    prior_of = trainings.atlas_of_others(fold)
    problems: list[str] = []

    def segmented(files: CaseFiles) -> MissingPackageError | None:
        image = read_image(files.images, channels_last=scans.channels_last(files))
        scan = stage_input.prepare(Case(files.id, image), trainings.recipe)
        try:
            atlas = prior_of(scan)
        except MissingPackageError as error:  # no other scan could be segmented either
            return error
        fused = fusion.FusedLabelMap.blank(scan.grid, trainings.dataset.schema, atlas.probabilities)
        fusion.replace_in_roi(fused, fusion.FusionInput(atlas))
        labels = LabelMap(to_numpy(fused.labels), fused.grid, fused.schema)
        labels = labels.reoriented(scan.orientation.inverse)
        write_labels(out / f"{files.id}.nii.gz", labels, like=files.images[0])
        return None

    for number, files in enumerate(scans.cases, start=1):
        outcome = tried(files.id, files.images[0], partial(segmented, files))
        if isinstance(outcome, MissingPackageError):
            raise outcome
        if isinstance(outcome, Failed):
            problems.append(f"{files.id}: {outcome.reason}")
        trainings.observer.say(f"fused {number} of {len(scans.cases)}: {files.id}")
    return problems
