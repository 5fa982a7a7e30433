"""Common parts of the text headers of NRRD and MetaImage files, which are checked field by field.

Every possible field of a header has a pattern and a maximum length, and anything else is refused: some of it
ends the process in other programs' parsers. Ambiguities are resolved as in ITK (3D Slicer, ITK-SNAP).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import LPS_TO_RAS, FloatArray, Grid
from zoomseg.io.header_limits import MAX_BZIP2, MAX_DEFLATION, check_grid, check_size

MAX_HEADER_BYTES = 1 << 20
MAX_VALUE_BYTES = 250
"""Maximum length of a field. ITK's buffers have at least 255 bytes."""

MAX_REMARK_BYTES = 1 << 16
"""Maximum length of parts that are never read: comments, keys with values, unknown fields."""

INT = r"\d{1,10}"
REAL = r"[-+]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE](?:\+?\d{1,2}|-\d{1,3}))?"
UNKNOWN = rf"{REAL}|nan"
TRUTH = r"true|false|0|1"
VECTOR = rf"\(\s*{REAL}(?:\s*,\s*{REAL}){{0,7}}\s*\)"
QUOTED = r'"[^"\\]{0,40}"'


def list_of(one: str) -> str:
    """A pattern for up to 16 items, the maximum number of axes of an NRRD, and of elements of the matrix of a
    4-D MetaImage."""
    return rf"(?:{one})(?:\s+(?:{one})){{0,15}}"


AS_LPS = "as in ITK, its axes are assumed to run to the patient's left, back and head"
NO_SIZES = "no voxel sizes are stored: interpreted as 1 mm, as in ITK"
NO_ORIGIN = "no origin is stored: the first voxel is placed at 0 mm, as in ITK"

_MILLIMETRES = re.compile(r"(?:mm|millimet(?:re|er)s?|\?+|)", re.IGNORECASE)

Packing = Literal["raw", "gzip", "zlib", "bzip2", "text", "hex"]
_COMPRESSION: Mapping[Packing, int] = {"raw": 1, "bzip2": MAX_BZIP2}
"""Maximum compression, where it is not that of deflate; text may be shorter than its number, too."""


@dataclass(frozen=True)
class VoxelStorage:
    """Position and storage of voxels."""

    file: Path
    packing: Packing
    begin: int = 0
    """First byte of the file that may belong to them, in compressed form."""
    skip_lines: int = 0
    """Number of lines to skip from there."""
    skip_bytes: int = 0
    """Number of bytes to skip then, after inflating; -1: all but the last ones."""


@dataclass(frozen=True, eq=False)
class ItkHeader:
    """The meaning of a header: sizes without trailing ones (at least three), grid in millimetres, voxels as
    ``raw * slope + intercept``."""

    shape: tuple[int, ...]
    grid: Grid
    dtype: np.dtype[Any]
    """As stored, with its byte order."""
    place: VoxelStorage
    slope: float
    intercept: float
    notes: tuple[str, ...]
    """What the user must know about the grid: the ambiguities of the header."""

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def checked(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    place: VoxelStorage,
    edges: FloatArray,
    origin: FloatArray,
    notes: tuple[str, ...],
    scaling: tuple[float, float] = (1.0, 0.0),
) -> ItkHeader:
    """A header from parsed numbers, after checks.

    Args:
        shape: without trailing ones.
        edges: ``[3, 3]``, from a voxel to the next along i, j and k (columns), in mm to the patient's left,
            back and head.
        origin: the first voxel's centre, likewise.

    Raises:
        ScanError: more voxels than the file can contain, or an implausible grid.
    """
    compression = _COMPRESSION.get(place.packing, MAX_DEFLATION)
    check_size(path, shape, dtype.itemsize, compression, place.file.stat().st_size, place.begin)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = edges, origin
    grid = Grid((shape[0], shape[1], shape[2]), LPS_TO_RAS @ affine)
    check_grid(path, grid)
    return ItkHeader(shape, grid, dtype, place, *scaling, notes)


def lps(grid: Grid) -> FloatArray:
    """The affine ``[4, 4]`` of a grid to millimetres to the patient's left, back and head."""
    affine: FloatArray = LPS_TO_RAS @ grid.affine
    return affine


def numbers(values: Iterable[float], separator: str = " ") -> str:
    """Written so that the same floating-point numbers are read back."""
    return separator.join(repr(float(value)) for value in values)


def add(path: Path, fields: dict[str, str], name: str, pattern: str, value: bytes) -> None:
    """Add a field of a header if its value matches its pattern.

    Raises:
        ScanError: it does not, is too long, or occurs twice.
    """
    text = value.decode("latin-1").strip()
    fits = len(text) <= MAX_VALUE_BYTES and text.isprintable() and re.fullmatch(pattern, text, re.IGNORECASE)
    if not fits:
        raise ScanError(f"{path}: the header's {name} cannot be {_shown(value)}")
    if name in fields:
        raise ScanError(f"{path}: the header gives {name} twice")
    fields[name] = text


def check_remark(path: Path, line: bytes) -> None:
    """Refuse a skipped line that no writer would write."""
    if len(line) > MAX_REMARK_BYTES or b"\0" in line:
        raise refused(path, line)


def refused(path: Path, line: bytes) -> ScanError:
    """The error for a line that does not belong to a header."""
    return ScanError(f"{path}: damaged, truncated or not an image (its header says {_shown(line)})")


def _shown(value: bytes) -> str:
    """In quotes, with non-ASCII characters escaped, and limited to a line."""
    text = ascii(value.decode("latin-1").strip())
    return text if len(text) <= 60 else f"{text[:60]}... ({len(value)} bytes)"


def require_millimetres(path: Path, *units: str) -> None:
    """Refuse other units: ITK reads every length as millimetres, regardless of the header."""
    other = next((unit for unit in units if not _MILLIMETRES.fullmatch(unit.strip())), None)
    if other is not None:
        raise ScanError(
            f"{path}: its lengths are in '{other}', and its format is read in mm alone; convert it"
        )


def voxels_file(path: Path, place: str | None) -> Path:
    """The file with the voxels of a header: itself, or one beside it.

    Raises:
        ScanError: there is none, or it is elsewhere.
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
