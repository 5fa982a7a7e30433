"""``summary.csv``: one row per case and organ; ``review.csv``: the same, lowest confidence first."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from zoomseg.anatomy.measurements import OrganMeasurement
from zoomseg.anatomy.plausibility import plausibility_flags
from zoomseg.core.geometry import Box, Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.io.files import write_text_atomic
from zoomseg.io.tables import csv_text, read_rows

COLUMNS = (
    *("case", "organ", "volume_ml", "mean_intensity", "confidence", "flags", "median_intensity"),
    *("i_start", "i_stop", "j_start", "j_stop", "k_start", "k_stop"),
    *("x_min_mm", "x_max_mm", "y_min_mm", "y_max_mm", "z_min_mm", "z_max_mm"),
    *("dice_low", "dice_high"),
)
REVIEW_COLUMNS = ("case", "organ", "confidence", "flags", "volume_ml", "dice_low", "dice_high")

MISSING = "missing"
"""No voxel of the organ was found."""
TOUCHES_SCAN_BORDER = "touches_scan_border"
"""The organ reaches the first or last voxel plane of the scan and may extend beyond it."""
TOUCHES_REGION_BORDER = "touches_region_border"
"""The organ reaches the border of the last stage's region, also after its expansion."""

MISPLACED = "misplaced"
"""The whole organ lies far from its position in training relative to other organs."""
UNUSUAL_VOLUME = "unusual_volume"
"""The organ is smaller than half of the smallest in training, or larger than twice the largest."""


@dataclass(frozen=True)
class OrganRow:
    """An organ of a case. Intensities (of the first channel) and boxes are None if the organ is missing.

    ``box`` is in voxel indices of the scan, ``corners_mm`` are its lowest and highest RAS+ coordinates;
    ``dice_range`` is the 90 % interval of its Dice, None if the model has no calibration that tells it.
    """

    case: str
    organ: str
    volume_ml: float
    mean_intensity: float | None
    confidence: float | None
    flags: tuple[str, ...]
    median_intensity: float | None = None
    box: Box | None = None
    corners_mm: tuple[Vector3, Vector3] | None = None
    dice_range: tuple[float, float] | None = None


def organ_flags(
    schema: LabelSchema,
    found: Mapping[str, OrganMeasurement],
    organs: Iterable[str],
    cut: Iterable[str] = (),
    odd: Mapping[str, Iterable[str]] = MappingProxyType({}),
    implausible: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """The flags of each of ``organs``.

    Args:
        cut: organs that reach the end of a stage's region.
        odd: further flags, and their organs.
        implausible: flags of organs in implausible positions; None: judged by ``found``.
    """
    if implausible is None:
        implausible = plausibility_flags(schema, found)
    of_all = {TOUCHES_REGION_BORDER: set(cut), **{flag: set(those) for flag, those in odd.items()}}
    flags: dict[str, tuple[str, ...]] = {}
    for organ in organs:
        if organ not in found:
            flags[organ] = (MISSING,)
            continue
        border = (TOUCHES_SCAN_BORDER,) if found[organ].touches_scan_border else ()
        own = (flag for flag, those in of_all.items() if organ in those)
        flags[organ] = (*border, *own, *implausible.get(organ, ()))
    return flags


def organ_rows(
    case_id: str,
    found: Mapping[str, OrganMeasurement],
    flags: Mapping[str, tuple[str, ...]],
    confidence: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> list[OrganRow]:
    """One row for each organ that has an entry in ``flags``, in their order."""
    rows = []
    for organ, own in flags.items():
        sure = confidence.get(organ)
        if organ not in found:
            rows.append(OrganRow(case_id, organ, 0.0, None, sure, own))
            continue
        what = found[organ]
        numbers = (what.median, what.box, what.corners_mm, ranges.get(organ))
        rows.append(OrganRow(case_id, organ, what.volume_ml, what.mean, sure, own, *numbers))
    return rows


def least_certain(rows: Iterable[OrganRow]) -> list[OrganRow]:
    """Rows with a confidence, lowest first; of equals those with more flags, then in their order."""
    sure = [row for row in rows if row.confidence is not None]
    return sorted(sure, key=lambda row: (row.confidence or 0.0, -len(row.flags)))


def write_summary(path: Path, rows: Iterable[OrganRow]) -> None:
    """Write ``summary.csv``; missing values are left empty, flags are joined by ``;``.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, COLUMNS, (_cells(row) for row in rows))


def read_summary(path: Path) -> list[OrganRow]:
    """The rows that ``write_summary`` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file.
    """
    try:
        return [_row(cells) for cells in read_rows(path)]
    except (csv.Error, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a summary that `zoomseg predict` wrote") from error


def _row(cells: Mapping[str, str]) -> OrganRow:
    def number(column: str) -> float | None:
        return float(cells[column]) if cells[column] else None

    box = corners = dice_range = None
    if cells.get("dice_low"):  # missing in files of earlier versions
        dice_range = float(cells["dice_low"]), float(cells["dice_high"])
    if cells["i_start"]:
        start, stop = ([int(cells[f"{axis}_{end}"]) for axis in "ijk"] for end in ("start", "stop"))
        low, high = ([float(cells[f"{axis}_{end}_mm"]) for axis in "xyz"] for end in ("min", "max"))
        box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        corners = ((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    return OrganRow(
        cells["case"],
        cells["organ"],
        float(cells["volume_ml"]),
        number("mean_intensity"),
        number("confidence"),
        tuple(flag for flag in cells["flags"].split(";") if flag),
        number("median_intensity"),
        box,
        corners,
        dice_range,
    )


def write_review(path: Path, rows: Iterable[OrganRow]) -> None:
    """Write ``review.csv``: of all cases, the organs to inspect first (see ``least_certain``); missing ones,
    which have no confidence, at the end.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = list(rows)
    ordered = [*least_certain(rows), *(row for row in rows if row.confidence is None)]
    named = (dict(zip(COLUMNS, _cells(row), strict=True)) for row in ordered)
    _write(path, REVIEW_COLUMNS, ([cells[column] for column in REVIEW_COLUMNS] for cells in named))


def _cells(row: OrganRow) -> list[str]:
    numbers = [f"{row.volume_ml:.3f}", _number(row.mean_intensity, 3), _number(row.confidence, 4)]
    ends = [""] * 6 if row.box is None else [str(n) for n in _paired(row.box.start, row.box.stop)]
    corners = [""] * 6 if row.corners_mm is None else [f"{mm:.2f}" for mm in _paired(*row.corners_mm)]
    flags, median = ";".join(row.flags), _number(row.median_intensity, 3)
    likely = [_number(dice, 4) for dice in row.dice_range or (None, None)]
    return [row.case, row.organ, *numbers, flags, median, *ends, *corners, *likely]


def _paired(low: Sequence[float], high: Sequence[float]) -> list[float]:
    return [value for pair in zip(low, high, strict=True) for value in pair]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    write_text_atomic(path, csv_text(columns, rows))
