"""What the text headers of NRRD and MetaImage files have in common: both are checked field by field.

Everything that a header may say has a pattern and a length, and what fits none is refused: other programs'
parsers end their process at some. What is ambiguous is read as ITK (3D Slicer, ITK-SNAP) reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.io.header_limits import check_grid, check_size

MAX_HEADER_BYTES = 1 << 20
MAX_VALUE_BYTES = 250
"""Of one field. Those of ITK hold 255 bytes and more."""

MAX_REMARK_BYTES = 1 << 16
"""Of what is never looked at: comments, keys with values, unknown fields."""

INT = r"\d{1,10}"
REAL = r"[-+]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE](?:\+?\d{1,2}|-\d{1,3}))?"
UNKNOWN = rf"{REAL}|nan"
TRUTH = r"true|false|0|1"
VECTOR = rf"\(\s*{REAL}(?:\s*,\s*{REAL}){{0,7}}\s*\)"
QUOTED = r'"[^"\\]{0,40}"'


def list_of(one: str) -> str:
    """Up to 16, which is as many axes as a NRRD has, or elements as the matrix of a 4-D MetaImage."""
    return rf"(?:{one})(?:\s+(?:{one})){{0,15}}"


AS_LPS = "as in ITK, its axes are assumed to run to the patient's left, back and head"
NO_SIZES = "no voxel sizes are stored: interpreted as 1 mm, as in ITK"
NO_ORIGIN = "no origin is stored: the first voxel is placed at 0 mm, as in ITK"

_MILLIMETRES = re.compile(r"(?:mm|millimet(?:re|er)s?|\?+|)", re.IGNORECASE)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Packing = Literal["raw", "gzip", "zlib", "bzip2", "text", "hex"]


@dataclass(frozen=True)
class Place:
    """Where and how voxels lie."""

    file: Path
    packing: Packing
    begin: int = 0
    """First byte of the file that may belong to them, as they are packed."""
    skip_lines: int = 0
    """Lines that are passed over from there."""
    skip_bytes: int = 0
    """Bytes that are passed over then, once inflated; -1: all but the last ones."""


@dataclass(frozen=True, eq=False)
class ItkHeader:
    """What a header says: sizes without trailing ones (at least three), grid in millimetres, voxels as
    ``raw * slope + intercept``."""

    shape: tuple[int, ...]
    grid: Grid
    dtype: np.dtype[Any]
    """As stored, with its byte order."""
    place: Place
    slope: float
    intercept: float
    notes: tuple[str, ...]
    """What its user must know of how the grid was found: what the header leaves open."""

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def checked(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    place: Place,
    edges: FloatArray,
    origin: FloatArray,
    notes: tuple[str, ...],
    scaling: tuple[float, float] = (1.0, 0.0),
) -> ItkHeader:
    """A header whose numbers were read, if they can be.

    Args:
        shape: without trailing ones.
        edges: ``[3, 3]``, from a voxel to the next along i, j and k (columns), in mm to the patient's left,
            back and head.
        origin: the first voxel's centre, likewise.

    Raises:
        ScanError: more voxels than the file can hold, or a grid that no scan has.
    """
    packed = place.packing != "raw"  # text may be shorter than its number, too
    check_size(path, shape, dtype.itemsize, packed, place.file.stat().st_size, place.begin)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = edges, origin
    grid = Grid((shape[0], shape[1], shape[2]), _LPS_TO_RAS @ affine)
    check_grid(path, grid)
    return ItkHeader(shape, grid, dtype, place, *scaling, notes)


def lps(grid: Grid) -> FloatArray:
    """The affine ``[4, 4]`` of a grid to millimetres to the patient's left, back and head."""
    affine: FloatArray = _LPS_TO_RAS @ grid.affine
    return affine


def numbers(values: Iterable[float], separator: str = " ") -> str:
    """Written so that the same floating-point numbers are read."""
    return separator.join(repr(float(value)) for value in values)


def add(path: Path, fields: dict[str, str], name: str, pattern: str, value: bytes) -> None:
    """Take a field of a header whose value fits its pattern.

    Raises:
        ScanError: it does not, is too long, or is there already.
    """
    text = value.decode("latin-1").strip()
    fits = len(text) <= MAX_VALUE_BYTES and text.isprintable() and re.fullmatch(pattern, text, re.IGNORECASE)
    if not fits:
        raise ScanError(f"{path}: the header's {name} cannot be {_shown(value)}")
    if name in fields:
        raise ScanError(f"{path}: the header gives {name} twice")
    fields[name] = text


def check_remark(path: Path, line: bytes) -> None:
    """Refuse a line that is passed over if no writer writes it."""
    if len(line) > MAX_REMARK_BYTES or b"\0" in line:
        raise refused(path, line)


def refused(path: Path, line: bytes) -> ScanError:
    """That a line belongs to no header."""
    return ScanError(f"{path}: damaged, truncated or not an image (its header says {_shown(line)})")


def _shown(value: bytes) -> str:
    """In quotes, what is no ASCII written out, and no longer than a line."""
    text = ascii(value.decode("latin-1").strip())
    return text if len(text) <= 60 else f"{text[:60]}... ({len(value)} bytes)"


def require_millimetres(path: Path, *units: str) -> None:
    """Refuse other units: ITK reads every length as millimetres, whatever the header says."""
    other = next((unit for unit in units if not _MILLIMETRES.fullmatch(unit.strip())), None)
    if other is not None:
        raise ScanError(
            f"{path}: its lengths are in '{other}', and its format is read in mm alone; convert it"
        )


def voxels_file(path: Path, place: str | None) -> Path:
    """The file with the voxels of a header: itself, or one beside it.

    Raises:
        ScanError: there is none, or it lies elsewhere.
    """
    if place is None:
        return path
    if place.upper().startswith("LIST"):
        raise ScanError(f"{path}: voxels spread over several files are not supported; convert it to one file")
    if not re.fullmatch(r"[^/\\%]+", place) or place in (".", ".."):
        raise ScanError(f"{path}: its voxels must be in one file in the same folder, not in {place}")
    voxels = path.with_name(place)
    if not voxels.is_file():
        raise ScanError(f"{path}: its voxels should be in {place} beside it, which is no file")
    return voxels
