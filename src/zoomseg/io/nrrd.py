"""NRRD files (``.nrrd``), 3D Slicer's format.

Source: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib as zlib

from zoomseg.core.errors import OutputError, ScanError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.io.header_limits import check_spacing
from zoomseg.io.inflate import COMPRESSION
from zoomseg.io.itk_header import (
    AS_LPS,
    INT,
    MAX_HEADER_BYTES,
    NO_ORIGIN,
    NO_SIZES,
    QUOTED,
    UNKNOWN,
    VECTOR,
    ItkHeader,
    Packing,
    VoxelStorage,
    add,
    check_remark,
    checked,
    list_of,
    lps,
    numbers,
    refused,
    require_millimetres,
    voxels_file,
)
from zoomseg.io.nifti_header import AnyArray, trimmed

_NEEDED = ("dimension", "type", "encoding", "sizes")

_LABEL = r"[\w?.-]{1,40}"
_CENTER = r"node|cell|none|\?\?\?"
_TYPES = {
    "i1": ("int8", "signed char", "int8_t"),
    "u1": ("uint8", "uchar", "unsigned char", "uint8_t"),
    "i2": ("int16", "short", "short int", "signed short", "signed short int", "int16_t"),
    "u2": ("uint16", "ushort", "unsigned short", "unsigned short int", "uint16_t"),
    "i4": ("int32", "int", "signed int", "int32_t"),
    "u4": ("uint32", "uint", "unsigned int", "uint32_t"),
    "i8": (
        "int64",
        "longlong",
        "long long",
        "long long int",
        "signed long long",
        "signed long long int",
        "int64_t",
    ),
    "u8": ("uint64", "ulonglong", "unsigned long long", "unsigned long long int", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
"""By numpy's name: names in headers, the one that is written first."""
_KINDS = {name: kind for kind, names in _TYPES.items() for name in names}

_ENCODINGS: dict[str, Packing] = {
    "raw": "raw",
    "txt": "text",
    "text": "text",
    "ascii": "text",
    "hex": "hex",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
}

_PATIENT = {
    "left-posterior-superior": (1, 1),
    "lps": (1, 1),
    "right-anterior-superior": (-1, -1),
    "ras": (-1, -1),
    "left-anterior-superior": (1, -1),
    "las": (1, -1),
}
"""Spaces that define the patient's sides; signs of their first two axes towards left and back."""
_PATIENT_IN_TIME = ("left-posterior-superior-time", "lpst")
_MISREAD = ("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last")
"""ITK reads these as LPS, which they are not."""
_UNSIDED = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
_SPACES = (*_PATIENT, *_PATIENT_IN_TIME, *_MISREAD, *_UNSIDED, *(f"{space}-time" for space in _UNSIDED))

_DOMAIN_KINDS = ("domain", "space", "time", "none", "???")
"""Kinds of axes that ITK counts as axes of the image; others are values of a voxel."""

FIELDS = {
    "dimension": r"[1-9]|1[0-6]",
    "type": r"|".join(_KINDS),
    "block size": INT,
    "encoding": r"|".join(_ENCODINGS),
    "endian": r"little|big",
    "content": r".*",
    "min": UNKNOWN,
    "max": UNKNOWN,
    "old min": UNKNOWN,
    "old max": UNKNOWN,
    "data file": r".*",
    "line skip": INT,
    "byte skip": rf"-1|{INT}",
    "sample units": r".*",
    "sizes": list_of(INT),
    "spacings": list_of(UNKNOWN),
    "thicknesses": list_of(UNKNOWN),
    "axis mins": list_of(UNKNOWN),
    "axis maxs": list_of(UNKNOWN),
    "centers": list_of(_CENTER),
    "centerings": list_of(_CENTER),
    "kinds": list_of(_LABEL),
    "labels": list_of(QUOTED),
    "units": list_of(QUOTED),
    "space": r"|".join(re.escape(name) for name in _SPACES),
    "space dimension": r"[1-8]",
    "space units": list_of(QUOTED),
    "space origin": VECTOR,
    "space directions": list_of(rf"{VECTOR}|none"),
    "measurement frame": list_of(rf"{VECTOR}|none"),
}
"""By name in lower case (some are also written without the blank): pattern of its value."""


def header(path: Path, axes: int = 3) -> ItkHeader:
    """The header; voxels are not read.

    Args:
        axes: maximum number of axes longer than 1.

    Raises:
        ScanError: no such header, invalid content, units other than millimetres, voxels that are not in one
            file in the same folder, several values per voxel, more voxels than the file can contain, or
            impossible geometry.
    """
    with path.open("rb") as stream:
        fields, end = _fields(path, stream.read(MAX_HEADER_BYTES))
    _check_axes(path, fields)
    sizes = _by_axis(path, fields, "sizes", "")
    kinds = [kind.lower() for kind in _by_axis(path, fields, "kinds", "domain")]
    channels = math.prod(int(n) for n, kind in zip(sizes, kinds, strict=True) if kind not in _DOMAIN_KINDS)
    if channels != 1:
        raise ScanError(f"{path}: {channels} values per voxel; give one 3-D file per channel")
    domain = [a for a, kind in enumerate(kinds) if kind in _DOMAIN_KINDS]
    shape = trimmed(path, tuple(int(sizes[a]) for a in domain), axes)
    edges, origin = _geometry(path, fields, domain)
    dtype = _dtype(path, fields)
    return checked(path, shape, dtype, _place(path, fields, end), edges, origin, tuple(_notes(fields)))


def _fields(path: Path, start: bytes) -> tuple[dict[str, str], int]:
    """The fields of a header, and the position of its end."""
    blank = re.search(rb"\r?\n\r?\n", start)
    end = blank.end() if blank else len(start)
    first, *lines = start[: blank.start() if blank else end].splitlines() or [b""]
    if not re.fullmatch(rb"NRRD000[1-5]", first):
        raise ScanError(f"{path}: damaged, truncated or not an image (no NRRD header)")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b": ")
        known = _name(name) if colon else None
        if known is not None:
            add(path, fields, known, FIELDS[known], value)
        elif not line.startswith(b"#") and b":=" not in line:
            raise refused(path, line)
        else:
            check_remark(path, line)
    missing = [name for name in _NEEDED if name not in fields]
    if missing:
        raise ScanError(f"{path}: damaged, truncated or not an image (its header gives no {missing[0]})")
    require_millimetres(
        path, *re.findall(r'"([^"]*)"', fields.get("space units", "") + fields.get("units", ""))
    )
    return fields, end


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    dtype = np.dtype(_KINDS[fields["type"].lower()])
    text = _ENCODINGS[fields["encoding"].lower()] == "text"
    if dtype.itemsize > 1 and not text and "endian" not in fields:
        raise ScanError(f"{path}: the header does not give the byte order (endian); repair the header")
    return dtype.newbyteorder(">" if fields.get("endian", "").lower() == "big" else "<")


def _place(path: Path, fields: dict[str, str], end: int) -> VoxelStorage:
    file = voxels_file(path, fields.get("data file"))
    packing = _ENCODINGS[fields["encoding"].lower()]
    lines, skip = int(fields.get("line skip", 0)), int(fields.get("byte skip", 0))
    if skip < 0 and packing != "raw":
        raise ScanError(f"{path}: a byte skip of -1 is read with raw voxels alone; write them uncompressed")
    return VoxelStorage(file, packing, end if file == path else 0, lines, skip)


def _by_axis(path: Path, fields: dict[str, str], name: str, otherwise: str) -> list[str]:
    """The values of a field by axis.

    Raises:
        ScanError: there are more or fewer than axes.
    """
    axes = int(fields["dimension"])
    entries = re.findall(rf"{VECTOR}|[^\s()]+", fields[name]) if name in fields else [otherwise] * axes
    if len(entries) != axes:
        raise ScanError(f"{path}: {len(entries)} values for {name}; {axes} are needed, one per axis")
    return entries


def _geometry(path: Path, fields: dict[str, str], domain: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Edges and origin for ``checked``.

    Args:
        domain: which axes are in space (or time).
    """
    if any(name in fields for name in ("space", "space dimension", "space directions", "space origin")):
        return _in_world(path, fields, domain)
    spacings, begins, ends = (
        np.array([float(entries[a]) for a in domain[:3]])
        for entries in (
            _by_axis(path, fields, name, "nan") for name in ("spacings", "axis mins", "axis maxs")
        )
    )
    edges = np.where(np.isnan(spacings), 1.0, spacings)
    check_spacing(path, edges.tolist())
    if np.isnan(begins).any() and not np.isnan(begins).all():
        raise ScanError(f"{path}: the header's axis mins give nan for an axis in space; repair the header")
    if not _has_origin(fields):
        return np.diag(edges), np.zeros(3)
    centers = _by_axis(path, fields, "centers" if "centers" in fields else "centerings", "cell")
    node = np.array([centers[a].lower() == "node" for a in domain[:3]])
    counts = np.array([int(_by_axis(path, fields, "sizes", "")[a]) for a in domain[:3]])
    steps = np.where(np.isnan(spacings), (ends - begins) / np.maximum(counts - node, 1), spacings)
    return np.diag(edges), begins + np.where(node, 0.0, steps / 2)


def _in_world(path: Path, fields: dict[str, str], domain: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Edges and origin of a header that defines them in a space."""
    for name in ("spacings", "axis mins", "axis maxs"):
        if any(entry.lower() != "nan" for entry in _by_axis(path, fields, name, "nan")):
            raise ScanError(f"{path}: the header gives {name} and a place in space; repair the header")
    if not ("space" in fields or "space dimension" in fields):
        raise ScanError(f"{path}: the header gives a place in space, but not which space; repair the header")
    if int(fields.get("space dimension", len(domain))) != len(domain):
        raise ScanError(
            f"{path}: {len(domain)} axes lie in a space of {fields['space dimension']} dimensions"
        )
    signs = np.array([*_PATIENT.get(fields.get("space", "").lower(), (1, 1)), 1])
    entries = _by_axis(path, fields, "space directions", "none")
    unsized = "space directions" not in fields
    edges = np.eye(3) if unsized else np.array([_vector(path, entries[a], domain) for a in domain[:3]]).T
    origin = _vector(path, fields["space origin"], domain) if "space origin" in fields else np.zeros(3)
    if not unsized:
        edges = signs[:, None] * edges
        check_spacing(path, np.linalg.norm(edges, axis=0).tolist())
    return edges, signs * origin


def _vector(path: Path, entry: str, domain: Sequence[int]) -> FloatArray:
    """The first three numbers of a vector, which has one for each axis in space or time."""
    found = [float(one) for one in entry.strip("()").split(",")]
    if len(found) != len(domain):
        raise ScanError(f"{path}: {entry} is no vector for {len(domain)} axes; repair the header")
    return np.array(found[:3])


def _check_axes(path: Path, fields: dict[str, str]) -> None:
    """Refuse what ITK silently misreads: a space with other sides, axes without a size.

    Raises:
        ScanError: it occurs.
    """
    space = fields.get("space", "")
    if space.lower() in _MISREAD:
        raise ScanError(
            f"{path}: the header's space '{space}' is not supported; write it as LPS without time"
        )
    name = "space directions" if "space directions" in fields else "spacings"
    sizes = re.findall(rf"{VECTOR}|[^\s()]+", fields.get(name, ""))
    bad = next((size for size in _in_space(fields, sizes) if size.lower() in ("none", "nan")), None)
    if bad is not None:
        raise ScanError(f"{path}: the header's {name} give {bad} for an axis in space; repair the header")


def _in_space(fields: dict[str, str], by_axis: Sequence[str]) -> list[str]:
    """Of a field's values by axis, those of the axes in space."""
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(by_axis)
    return [one for one, kind in zip(by_axis, kinds, strict=False) if kind in _DOMAIN_KINDS][:3]


def _notes(fields: dict[str, str]) -> Iterator[str]:
    space = fields.get("space")
    if space is None:
        yield f"no orientation is stored (no space in the header): the patient's sides are assumed; {AS_LPS}"
    elif space.lower() not in (*_PATIENT, *_PATIENT_IN_TIME):
        yield f"the header's space '{space}' does not state the patient's sides, they are assumed; {AS_LPS}"
    if "space directions" not in fields and "spacings" not in fields:
        yield NO_SIZES
    if not _has_origin(fields):
        yield NO_ORIGIN


def _has_origin(fields: dict[str, str]) -> bool:
    """Whether ITK finds an origin: without a space, from the start of the axes, if it knows voxel sizes or
    ends."""
    if "space origin" in fields:
        return True
    begins = _in_space(fields, fields.get("axis mins", "nan").lower().split())
    return "nan" not in begins and ("spacings" in fields or "axis maxs" in fields)


def _name(written: bytes) -> str | None:
    name = written.decode("latin-1").lower()
    return next((known for known in FIELDS if name in (known, known.replace(" ", ""))), None)


def save(path: Path, array: AnyArray, grid: Grid, keys: Iterable[tuple[str, str]] = ()) -> None:
    """Write ``[I, J, K]`` on ``grid`` as one compressed file.

    Args:
        keys: names and values for other programs, in addition to the fields of the format.

    Raises:
        OutputError: the format does not support the numbers' type.
    """
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    if kind not in _TYPES:
        raise OutputError(f"{path}: the format has no numbers of type {array.dtype}")
    affine = lps(grid)
    edges = " ".join(f"({numbers(edge, ',')})" for edge in affine[:3, :3].T)
    lines = [
        "NRRD0004",
        f"type: {_TYPES[kind][0]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in array.shape)}",
        f"space directions: {edges}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({numbers(affine[:3, 3], ',')})",
        *(f"{key}:={_escaped(value)}" for key, value in keys),
    ]
    data = array.astype(f"<{kind}", copy=False).tobytes(order="F")
    # A gzip header without a time: equal images are equal files.
    packed = zlib.compress(data, COMPRESSION, wbits=31)
    path.write_bytes("\n".join([*lines, "", ""]).encode() + packed)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
