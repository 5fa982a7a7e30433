"""The cases for the further training of the coarse network alone: those of the model, whole and cut short
from above, and scans of another part of the body, in which it must find nothing.

    uv run python benchmarks/abdomen_ct/coarse_cases.py MODEL BTCV OPENKBP -o CASES
    zoomseg train CASES -o coarse -r recipe-coarse.yaml --init MODEL --epochs 30

BTCV contributes the cases that MODEL was trained on, so that the held-out ones of a twin remain so. Of each,
a lower part of random height is another case: a scan of the pelvis shows few of the organs, or none. OPENKBP
is a data set of head-and-neck scans; every second one of them is used, with an empty label map, and the
others remain for the measurement (``elsewhere.py``). As the arch of the aorta and the upper esophagus may be
in view, these two count as not annotated there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from zoomseg.core.case import Case
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import CaseFiles, dataset_description, open_dataset
from zoomseg.io import bundle
from zoomseg.io.scan_writing import write_image, write_labels

sys.path.insert(0, str(Path(__file__).parents[1]))
from robustness import part

IN_VIEW = {"aorta", "esophagus"}
LOWER_PART = (0.25, 0.6)
"""Heights of lower parts, as shares of the scan's."""


def trained_on(others: tuple[CaseFiles, ...]) -> tuple[CaseFiles, ...]:
    """The scans of another part of the body with which the coarse network is trained."""
    return others[::2]


def kept_for_measuring(others: tuple[CaseFiles, ...]) -> tuple[CaseFiles, ...]:
    return others[1::2]


def empty(case: Case, schema: LabelSchema) -> LabelMap:
    """A label map without any organ, on the scan's grid."""
    return LabelMap(np.zeros(case.image.grid.shape, np.uint8), case.image.grid, schema)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("others", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    dataset, others = open_dataset(options.dataset), open_dataset(options.others)
    schema = dataset.schema
    images, labels = options.out / "imagesTr", options.out / "labelsTr"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    cases = bundle.load(options.model).provenance["training_cases"]
    assert isinstance(cases, list)
    rng = np.random.default_rng(0)
    for known in dataset.subset([str(case) for case in cases]).cases:
        assert known.labels is not None
        (images / f"{known.id}_0000.nii.gz").symlink_to(known.images[0].absolute())
        (labels / f"{known.id}.nii.gz").symlink_to(known.labels.absolute())
        case = dataset.load(known)
        assert isinstance(case.labels, LabelMap)
        image, organs = part(0.0, rng.uniform(*LOWER_PART))((case.image, case.labels))
        write_image(images / f"{known.id}_lower_0000.nii.gz", image)
        write_labels(labels / f"{known.id}_lower.nii.gz", organs)
    used = trained_on(others.cases)
    for other in used:
        (images / f"{other.id}_0000.nii.gz").symlink_to(other.images[0].absolute())
        write_labels(labels / f"{other.id}.nii.gz", empty(others.load(other), schema))
    annotated = {other.id: frozenset(schema.names) - IN_VIEW for other in used}
    count = 2 * len(cases) + len(used)
    name = "BTCV, its lower parts, and heads"
    description = dataset_description(name, dataset.channel_names, schema, count, annotated)
    (options.out / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    print(f"{options.out}: {len(cases)} cases, a lower part of each, {len(used)} scans from elsewhere")


if __name__ == "__main__":
    main()
