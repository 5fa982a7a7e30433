"""Multi-atlas segmentation of a study's held-out scans: the atlases are the fold's training cases."""

from __future__ import annotations

from pathlib import Path

from zoomseg.core.arrays import to_numpy
from zoomseg.core.case import Case
from zoomseg.core.errors import OutputError, ZoomSegError
from zoomseg.core.extras import MissingPackageError
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import Dataset
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
    prior_of = trainings.atlas_of(fold)
    problems: list[str] = []
    for number, files in enumerate(scans.cases, start=1):
        try:
            image = read_image(files.images, channels_last=scans.channels_last(files))
            scan = stage_input.prepare(Case(files.id, image), trainings.recipe)
            atlas = prior_of(scan)
            fused = fusion.FusedLabelMap.blank(scan.grid, trainings.dataset.schema, atlas.probabilities)
            fusion.replace_in_roi(fused, atlas)
            labels = LabelMap(to_numpy(fused.labels), fused.grid, fused.schema)
            labels = labels.reoriented(scan.orientation.inverse)
            write_labels(out / f"{files.id}.nii.gz", labels, like=files.images[0])
        except (OutputError, MissingPackageError):
            raise
        except ZoomSegError as error:
            problems.append(f"{files.id}: {error}")
        trainings.watch.say(f"fused {number} of {len(scans.cases)}: {files.id}")
    return problems
