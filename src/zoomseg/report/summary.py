"""``summary.csv``: what was found in each scan, one row per case and organ."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import GeometryError
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.files import write_text_atomic

COLUMNS = ("case", "organ", "volume_ml", "mean_intensity", "confidence", "flags")
MISSING = "missing"
"""No voxel of the organ was found."""
TOUCHES_BORDER = "touches_border"
"""The organ reaches the first or last voxel plane of the scan: it may go on outside."""

SLAB_VOXELS = 4 * 1024**2
"""Voxels counted at once, so that counting needs little memory beside a large scan."""

_CLASSES = 256


@dataclass(frozen=True)
class OrganRow:
    """One organ of one case. ``mean_intensity`` (of the first channel) is None if the organ is missing."""

    case: str
    organ: str
    volume_ml: float
    mean_intensity: float | None
    confidence: float | None
    flags: tuple[str, ...]


def organ_rows(
    case_id: str,
    labels: LabelMap,
    image: Volume,
    confidence: Mapping[str, float],
    organs: Iterable[str] | str = "all",
) -> list[OrganRow]:
    """One row per organ (of ``organs``, in schema order) of a label map on the image's grid.

    Raises:
        GeometryError: labels and image lie on different grids.
        LabelError: an organ that the schema does not know.
    """
    if not labels.grid.same_as(image.grid):
        raise GeometryError(f"case {case_id}: labels and image lie on different grids")
    classes = labels.data.cpu().numpy()
    voxels, sums = _count(classes, image.data[0].detach().cpu().numpy())
    at_border = _classes_at_border(classes)
    rows = []
    for organ in labels.schema.select(organs):
        c = labels.schema.class_of(organ)
        n = int(voxels[c])
        flags = (MISSING,) if n == 0 else (TOUCHES_BORDER,) if c in at_border else ()
        intensity = float(sums[c]) / n if n else None
        volume_ml = n * labels.grid.voxel_volume_ml
        rows.append(OrganRow(case_id, organ, volume_ml, intensity, confidence.get(organ), flags))
    return rows


def write_summary(path: Path, rows: Iterable[OrganRow]) -> None:
    """Write ``summary.csv``; a value that does not exist is left empty, flags are joined by ``;``.

    Raises:
        OutputError: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        numbers = [f"{row.volume_ml:.3f}", _number(row.mean_intensity, 3), _number(row.confidence, 4)]
        table.writerow([row.case, row.organ, *numbers, ";".join(row.flags)])
    write_text_atomic(path, text.getvalue())


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _count(
    classes: npt.NDArray[np.uint8], values: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Voxels and sum of values per class, in one pass over foreground voxels."""
    voxels = np.zeros(_CLASSES, dtype=np.int64)
    sums = np.zeros(_CLASSES, dtype=np.float64)
    as_they_lie = np.argsort(classes.strides)[::-1]
    classes, values = classes.transpose(as_they_lie), values.transpose(as_they_lie)
    step = max(1, SLAB_VOXELS * len(classes) // classes.size)
    for start in range(0, len(classes), step):
        slab = classes[start : start + step]
        inside = slab != 0
        found = slab[inside]
        voxels += np.bincount(found, minlength=_CLASSES)
        sums += np.bincount(found, weights=values[start : start + step][inside], minlength=_CLASSES)
    return voxels, sums


def _classes_at_border(classes: npt.NDArray[np.uint8]) -> set[int]:
    # Views: ``take`` would first copy the whole array wherever it is not in C order.
    planes = [np.moveaxis(classes, axis, 0)[i] for axis in range(3) for i in (0, -1)]
    return {int(c) for plane in planes for c in np.unique(plane)}
