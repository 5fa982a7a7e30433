"""Accuracy on scans unlike the training scans: the cases held out in training, changed in one way at a time.

    uv run python benchmarks/robustness.py DATASET MODEL -o OUT

Writes OUT/table.md: for every change, Dice per organ, for the organs that are still in the changed scan, and
the volume that was found of those that are not (mean over the scans).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoomseg.backends.device import resolve
from zoomseg.core.case import Case
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.resample import resample, resample_labels
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle

MIN_VOXELS = 50
"""Organs with fewer voxels, as at the edge of a cut, are not scored."""

Scan = tuple[Volume, LabelMap]


def part(first: float, last: float) -> Callable[[Scan], Scan]:
    """Crop the scan to the slices between two fractions of its height."""

    def cut(scan: Scan) -> Scan:
        image, labels = scan
        i, j, k = image.grid.shape
        box = Box((0, 0, round(first * k)), (i, j, round(last * k)))
        return image.crop(box), labels.crop(box)

    return cut


def thick(mm: float) -> Callable[[Scan], Scan]:
    """Average the scan into slices ``mm`` thick."""

    def thicken(scan: Scan) -> Scan:
        image, labels = scan
        spacing = image.grid.spacing_mm
        count = max(1, round(image.grid.extent_mm[2] / mm))
        target = Grid(
            (*image.grid.shape[:2], count),
            image.grid.affine @ np.diag([1.0, 1.0, mm / spacing[2], 1.0]),
        )
        return resample(image, target), resample_labels(labels, target)

    return thicken


def without_contrast(scan: Scan) -> Scan:
    """Reduce intensities above 45 HU to 45 HU plus a quarter of the excess: roughly an unenhanced scan."""
    image, labels = scan
    data = image.data.astype(np.float32)
    return Volume(np.where(data > 45, 45 + (data - 45) / 4, data), image.grid), labels


def noisy(scan: Scan) -> Scan:
    image, labels = scan
    noise = np.random.default_rng(0).standard_normal(image.data.shape, dtype=np.float32) * 40
    return Volume(image.data.astype(np.float32) + noise, image.grid), labels


def turned(scan: Scan) -> Scan:
    """The same image with all three axes stored in reverse order; world positions are unchanged."""
    image, labels = scan
    shape = np.array(image.grid.shape)
    flip = np.diag([-1.0, -1.0, -1.0, 1.0])
    flip[:3, 3] = shape - 1
    grid = Grid(image.grid.shape, image.grid.affine @ flip)
    return (
        Volume(image.data[:, ::-1, ::-1, ::-1], grid),
        LabelMap(labels.data[::-1, ::-1, ::-1], grid, labels.schema),
    )


CHANGES: dict[str, Callable[[Scan], Scan]] = {
    "as it is": lambda scan: scan,
    "stored the other way round": turned,
    "upper half only": part(0.5, 1.0),
    "lower half only": part(0.0, 0.5),
    "middle third only": part(1 / 3, 2 / 3),
    "slices of 5 mm": thick(5.0),
    "slices of 10 mm": thick(10.0),
    "without contrast": without_contrast,
    "noise of 40 HU": noisy,
}


def arguments(described: str | None) -> argparse.ArgumentParser:
    """A parser for a data set, a model that held out some of its cases, and a folder for results."""
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser


def opened(options: argparse.Namespace) -> tuple[Predictor, Dataset]:
    """The model, and the cases that were held out in its training."""
    options.out.mkdir(parents=True, exist_ok=True)
    model = bundle.load(options.model)
    held_out = [str(i) for i in model.provenance["validation_cases"]]  # type: ignore[union-attr]
    return Predictor(model, resolve("auto"), any_scan=True), open_dataset(options.dataset).subset(held_out)


def main() -> None:
    options = arguments(__doc__).parse_args()
    predictor, dataset = opened(options)
    scores: dict[str, dict[str, list[float]]] = {change: {} for change in CHANGES}
    absent_ml = dict.fromkeys(CHANGES, 0.0)
    for files in dataset.cases:
        case = dataset.load(files)
        assert isinstance(case.labels, LabelMap)
        for name, change in CHANGES.items():
            image, labels = change((case.image, case.labels))
            found = predictor.predict(Case(case.id, image)).labels.data
            for c, organ in enumerate(labels.schema.names, start=1):
                reference, answer = labels.data == c, found == c
                if not reference.any():
                    absent_ml[name] += image.grid.voxel_volume_ml * int(answer.sum()) / len(dataset.cases)
                if int(reference.sum()) >= MIN_VOXELS:
                    both = int((reference & answer).sum())
                    dice = 2 * both / (int(reference.sum()) + int(answer.sum()))
                    scores[name].setdefault(organ, []).append(dice)
    organs = dataset.schema.names
    lines = [
        f"| change | mean | absent organs, ml | {' | '.join(organs)} |",
        "|---|" + "---:|" * (len(organs) + 2),
    ]
    for name, found_ in scores.items():
        means = [float(np.mean(found_[organ])) if organ in found_ else float("nan") for organ in organs]
        row = [f"{np.nanmean(means):.3f}", f"{absent_ml[name]:.0f}", *(f"{mean:.3f}" for mean in means)]
        lines.append(f"| {name} | {' | '.join(row)} |")
    text = "\n".join(lines) + "\n"
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
