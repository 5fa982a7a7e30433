"""Values of DICOM elements, checked: a header is hostile until then."""

from __future__ import annotations

import math

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Vector3
from zoomseg.io.dicom.read.archive import Source

UNIT_TOLERANCE = 1e-2
"""Tolerance of unit length and perpendicularity of the direction cosines of rows and columns."""


def text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else " ".join(str(value).split())


def number(source: Source, header: Dataset, keyword: str, low: int, high: int) -> int:
    value = header.get(keyword)
    if value is None or not low <= int(value) <= high:
        raise ScanError(f"{source}: {keyword} is {value}; a number from {low} to {high} is needed")
    return int(value)


def vector(source: Source, header: Dataset, keyword: str, length: int) -> tuple[float, ...]:
    value = header.get(keyword)
    found = tuple(float(v) for v in value) if isinstance(value, (list, tuple, MultiValue)) else ()
    if len(found) != length or not all(math.isfinite(v) and abs(v) < 1e6 for v in found):
        raise ScanError(f"{source}: {keyword} is {str(value)[:80]}; {length} finite numbers are needed")
    return found


def rescale(source: Source, header: Dataset) -> tuple[float, float] | None:
    """Slope and intercept; None if neither is present."""
    given = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if given == (None, None):
        return None
    if None in given:
        lacking = "RescaleIntercept" if given[1] is None else "RescaleSlope"
        raise ScanError(f"{source}: {lacking} is missing; what its values mean is not known")
    slope, intercept = (float(value) for value in given)
    if not (math.isfinite(slope) and slope != 0 and math.isfinite(intercept)):
        raise ScanError(f"{source}: rescale slope {slope:g} and intercept {intercept:g} are impossible")
    return slope, intercept


def orientation(source: Source, header: Dataset) -> tuple[Vector3, Vector3]:
    x = vector(source, header, "ImageOrientationPatient", 6)
    row, column = x[:3], x[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    if max(abs(n - 1) for n in lengths) > UNIT_TOLERANCE:
        raise ScanError(f"{source}: ImageOrientationPatient {list(x)} are not two unit vectors")
    row, column = (tuple(v / n for v in axis) for axis, n in zip((row, column), lengths, strict=True))
    if abs(sum(a * b for a, b in zip(row, column, strict=True))) > UNIT_TOLERANCE:
        raise ScanError(f"{source}: ImageOrientationPatient {list(x)} are not at a right angle")
    return (row[0], row[1], row[2]), (column[0], column[1], column[2])


def spacing(source: Source, header: Dataset) -> tuple[float, float]:
    rows, columns = vector(source, header, "PixelSpacing", 2)
    if min(rows, columns) <= 0:
        raise ScanError(f"{source}: PixelSpacing is {[rows, columns]} mm; it must be positive")
    return columns, rows
