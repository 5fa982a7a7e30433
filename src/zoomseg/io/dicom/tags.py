"""Values of DICOM elements, checked: a header is hostile until then."""

from __future__ import annotations

import math
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Vector3
from zoomseg.io.dicom.read.archive import Source

UNIT_TOLERANCE = 1e-2
"""Tolerance of unit length and perpendicularity of the direction cosines of rows and columns."""

MAX_VALUE_BYTES = 65_536
"""Of an attribute. Those that are read here have 10 240 characters at most (PS3.5 6.2); of a list of numbers,
every second byte may become an object of 300."""


def require_short(element: DataElement | RawDataElement | None) -> None:
    """Refuse a value that would take much memory once it is converted; sequences are limited otherwise.

    Raises:
        ValueError: it is too long.
    """
    if isinstance(element, RawDataElement) and len(element.value or b"") > MAX_VALUE_BYTES:
        name = keyword_for_tag(element.tag)
        if not (name.endswith("Sequence") and element.VR in ("SQ", "UN", None)):
            raise ValueError(f"{name or element.tag} takes {len(element.value or b'')} bytes")


def value_of(header: Dataset, keyword: str) -> Any:
    """A value, converted by pydicom; None if it is missing.

    Raises:
        ValueError: it is too long.
    """
    require_short(header.get_item(keyword))
    return header.get(keyword)


def text(header: Dataset, keyword: str) -> str:
    """A value as text, with single spaces; several ones are separated by a backslash, as in the file."""
    value = value_of(header, keyword)
    values = value if isinstance(value, MultiValue) else [value]
    return "" if value is None else "\\".join(" ".join(str(one).split()) for one in values)


def number(source: Source, header: Dataset, keyword: str, low: int, high: int) -> int:
    value = value_of(header, keyword)
    if value is None or not low <= int(value) <= high:
        raise ScanError(f"{source}: {keyword} is {value}; a number from {low} to {high} is needed")
    return int(value)


def vector(source: Source, header: Dataset, keyword: str, length: int) -> tuple[float, ...]:
    value = value_of(header, keyword)
    found = tuple(float(v) for v in value) if isinstance(value, (list, tuple, MultiValue)) else ()
    if len(found) != length or not all(math.isfinite(v) and abs(v) < 1e6 for v in found):
        raise ScanError(f"{source}: {keyword} is {str(value)[:80]}; {length} finite numbers are needed")
    return found


def rescale(source: Source, header: Dataset) -> tuple[float, float] | None:
    """Slope and intercept; None if neither is present."""
    given = value_of(header, "RescaleSlope"), value_of(header, "RescaleIntercept")
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
