"""Convert a data set and one of its folds to nnU-Net's raw layout.

    python benchmarks/train/convert.py DATASET -o RAW --folds 5 --fold 0 [--for-nnunet]

Writes RAW/imagesTr and labelsTr with all labelled cases, RAW/imagesTs with the held-out cases, dataset.json
and splits_final.json, and prints a description as JSON. Files that nnU-Net can read directly become links;
others (several channels in one file, other formats, label values with gaps) are rewritten. The fold is the
one that ``zoomseg train`` holds out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoomseg.core.errors import DatasetError, ZoomSegError
from zoomseg.core.labels import BACKGROUND
from zoomseg.datasets.layouts import CaseFiles, Dataset, open_dataset
from zoomseg.io.files import writable_directory, write_json_atomic, writing
from zoomseg.io.scans import scan_suffix, write_array
from zoomseg.training.loop import Split
from zoomseg.training.requested_recipe import TrainingRequest, choose_split

SUFFIX = ".nii.gz"


def convert(dataset: Dataset, split: Split, raw: Path) -> None:
    """Write the labelled cases of ``split`` to ``raw``.

    Raises:
        ScanError: a case that has to be rewritten cannot be read.
        OutputError: ``raw`` cannot be written.
    """
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        writable_directory(raw / folder)
    used = dataset.subset((*split.train, *split.validation))
    for case in used.cases:
        images = _convert_case(used, case, raw)
        if case.id in split.validation:
            for image in images:
                _link(image, raw / "imagesTs" / image.name)
    write_json_atomic(raw / "dataset.json", describe(dataset, len(used.cases)))
    folds = [{"train": list(split.train), "val": list(split.validation)}]
    write_json_atomic(raw / "splits_final.json", folds)


def describe(dataset: Dataset, cases: int) -> dict[str, object]:
    """nnU-Net's ``dataset.json``; labels are numbered from 1 in the order of the schema."""
    return {
        "channel_names": {str(c): name for c, name in enumerate(dataset.channel_names)},
        "labels": {BACKGROUND: 0} | {name: value for value, name in enumerate(dataset.schema.names, start=1)},
        "numTraining": cases,
        "file_ending": SUFFIX,
    }


def require_full_annotation(dataset: Dataset, ids: Sequence[str]) -> None:
    """Require that all labels are annotated: nnU-Net would learn unannotated organs as background.

    Raises:
        DatasetError: some labels of a case are not annotated.
    """
    for case in dataset.subset(ids).cases:
        if case.annotated is not None and case.annotated != set(dataset.schema.names):
            raise DatasetError(
                f"{dataset.root}: case {case.id} is annotated in part, which nnU-Net cannot train on; "
                "take the fully annotated cases, or give --only zoomseg"
            )


def _convert_case(dataset: Dataset, case: CaseFiles, raw: Path) -> tuple[Path, ...]:
    """Write the case's images, one file per channel, to ``raw/imagesTr``, and its labels to ``labelsTr``."""
    channels = range(len(dataset.channel_names))
    images = tuple(raw / "imagesTr" / f"{case.id}_{channel:04d}{SUFFIX}" for channel in channels)
    labels = raw / "labelsTr" / f"{case.id}{SUFFIX}"
    assert case.labels is not None, "only labelled cases are in a split"
    readable = all(scan_suffix(path) == SUFFIX for path in (*case.images, case.labels))
    consecutive = dataset.schema.values == tuple(range(1, 1 + len(dataset.schema.names)))
    if readable and consecutive and not dataset.channels_last(case):
        for source, target in zip((*case.images, case.labels), (*images, labels), strict=True):
            _link(source, target)
        return images
    loaded = dataset.load(case)
    assert loaded.labels is not None
    for channel, target in enumerate(images):
        write_array(target, loaded.image.data[channel], loaded.image.grid)
    write_array(labels, loaded.labels.data.astype(np.uint8), loaded.image.grid)
    return images


def _link(source: Path, target: Path) -> None:
    with writing(target):
        target.unlink(missing_ok=True)  # left by an earlier run for other rows
        target.symlink_to(source.resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("dataset", type=Path)
    add("-o", "--out", type=Path, required=True)
    add("--folds", type=int, required=True)
    add("--fold", type=int, required=True)
    add("--for-nnunet", action="store_true", help="reject cases that nnU-Net cannot train on")
    options = parser.parse_args()
    try:
        dataset = open_dataset(options.dataset)
        split = choose_split(dataset, TrainingRequest(folds=options.folds, fold=options.fold))
        if options.for_nnunet:
            require_full_annotation(dataset, split.train)
        convert(dataset, split, options.out)
    except ZoomSegError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    facts = {"name": dataset.name, "training": split.train, "held_back": split.validation}
    print(json.dumps({**facts, "organs": dataset.schema.names}))


if __name__ == "__main__":
    main()
