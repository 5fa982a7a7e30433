"""MetaImage files (``.mha``, ``.mhd``).

Source: https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    MAX_VALUE_BYTES,
    NO_ORIGIN,
    NO_SIZES,
    REAL,
    TRUTH,
    ItkHeader,
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

FIELDS = {
    "NDims": r"[1-4]",
    "DimSize": list_of(INT),
    "ElementSpacing": list_of(REAL),
    "ElementSize": list_of(REAL),
    "Offset": list_of(REAL),
    "Position": list_of(REAL),
    "Origin": list_of(REAL),
    "TransformMatrix": list_of(REAL),
    "Orientation": list_of(REAL),
    "Rotation": list_of(REAL),
    "CenterOfRotation": list_of(REAL),
    "Color": list_of(REAL),
    "AnatomicalOrientation": r"[\w?]{1,8}",
    "DistanceUnits": r"[\w?]{1,40}",
    "ObjectType": r"[\w ]{1,40}",
    "ObjectSubType": r"[\w ]{1,40}",
    "ElementType": r"MET_[A-Z_]{1,40}",
    "ElementNumberOfChannels": r"\d{1,4}",
    "ElementNBits": INT,
    "ElementMin": REAL,
    "ElementMax": REAL,
    "ElementToIntensityFunctionSlope": REAL,
    "ElementToIntensityFunctionOffset": REAL,
    "BinaryData": TRUTH,
    "BinaryDataByteOrderMSB": TRUTH,
    "ElementByteOrderMSB": TRUTH,
    "CompressedData": TRUTH,
    "CompressedDataSize": r"\d{1,15}",
    "CompressionLevel": r"\d{1,4}",
    "HeaderSize": rf"-1|{INT}",
    "ID": rf"-?{INT}",
    "ParentID": rf"-?{INT}",
    "SequenceID": list_of(REAL),
    "Modality": r"\w{1,40}",
    "Name": r".*",
    "ElementDataFile": r".*",
}
"""By name, case-sensitive: pattern of its value."""

_NEEDED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
_ORIGINS = ("Origin", "Offset", "Position")
_PER_AXIS = (
    "DimSize",
    "ElementSpacing",
    "ElementSize",
    *_ORIGINS,
    "CenterOfRotation",
)
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_OF_ANY_CASE = {name.lower() for name in FIELDS}

_TYPES = {
    "MET_CHAR": "i1",
    "MET_ASCII_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NAMES = {kind: name for name, kind in reversed(_TYPES.items()) if "LONG" not in name or kind[1] == "8"}


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
    channels = int(fields.get("ElementNumberOfChannels", 1))
    if channels != 1:
        raise ScanError(f"{path}: {channels} values per voxel; give one 3-D file per channel")
    shape = trimmed(path, tuple(int(n) for n in fields["DimSize"].split()), axes)
    if fields["ElementType"].upper() not in _TYPES:
        raise ScanError(f"{path}: voxels of type {fields['ElementType']}; one real number each is needed")
    dtype = np.dtype(_TYPES[fields["ElementType"].upper()])
    # The older of the two names takes precedence, as in ITK.
    big = _is_true(fields, "BinaryDataByteOrderMSB", _is_true(fields, "ElementByteOrderMSB"))
    place = _place(path, fields, end)
    edges, origin = _geometry(path, fields)
    dtype = dtype.newbyteorder(">" if big else "<")
    return checked(path, shape, dtype, place, edges, origin, tuple(_notes(fields)), _scaling(path, fields))


def _fields(path: Path, start: bytes) -> tuple[dict[str, str], int]:
    """The fields of a header, and the position of its end."""
    end = re.search(rb"^ElementDataFile.*\n?", start, re.MULTILINE)
    fields: dict[str, str] = {}
    for line in start[: end.end()].splitlines() if end else []:
        name, equals, value = line.partition(b"=")
        known = name.decode("latin-1").rstrip()
        if known in FIELDS:
            add(path, fields, known, FIELDS[known], value)
            _check_count(path, fields, known)
        elif (
            line.strip() and not (equals and len(name) <= MAX_VALUE_BYTES)
        ) or known.strip().lower() in _OF_ANY_CASE:
            raise refused(path, line)
        else:
            check_remark(path, line)
    if end is None or not all(name in fields for name in _NEEDED):
        raise ScanError(f"{path}: damaged, truncated or not an image (no MetaImage header)")
    require_millimetres(path, fields.get("DistanceUnits", "mm"))
    return fields, end.end()


def _place(path: Path, fields: dict[str, str], end: int) -> VoxelStorage:
    given = fields["ElementDataFile"]
    file = voxels_file(path, None if given.upper() == "LOCAL" else given)
    begin, skip = end if file == path else 0, int(fields.get("HeaderSize", 0))
    if _is_true(fields, "CompressedData"):
        if skip:
            raise ScanError(
                f"{path}: compressed voxels after a HeaderSize are not supported; write it uncompressed"
            )
        packed = int(fields.get("CompressedDataSize", 0))
        if packed > file.stat().st_size:
            raise ScanError(f"{path}: truncated; header promises {packed} bytes of compressed voxels")
        return VoxelStorage(file, "zlib", begin)
    if not _is_true(fields, "BinaryData", True):
        return VoxelStorage(file, "text", skip if skip > 0 else begin)
    return VoxelStorage(file, "raw", skip if skip > 0 else begin, skip_bytes=min(skip, 0))


def _geometry(path: Path, fields: dict[str, str]) -> tuple[FloatArray, FloatArray]:
    """Edges and origin for ``checked``. Of several names for one field, ITK uses the first of these."""
    axes = int(fields["NDims"])
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), np.ones(axes))[:3]
    check_spacing(path, spacing.tolist())
    directions = _numbers(fields, _MATRICES, np.eye(axes).ravel()).reshape(axes, axes)[:3, :3]
    return directions.T * spacing, _numbers(fields, _ORIGINS, np.zeros(axes))[:3]


def _numbers(fields: dict[str, str], names: Sequence[str], otherwise: FloatArray) -> FloatArray:
    given = next((fields[name] for name in names if name in fields), None)
    return otherwise if given is None else np.array([float(one) for one in given.split()])


def _scaling(path: Path, fields: dict[str, str]) -> tuple[float, float]:
    slope, intercept = (
        float(fields.get(f"ElementToIntensityFunction{name}", usual))
        for name, usual in (("Slope", 1.0), ("Offset", 0.0))
    )
    if slope == 0:
        raise ScanError(
            f"{path}: the header's ElementToIntensityFunctionSlope is 0; another number is needed"
        )
    return slope, intercept


def _notes(fields: dict[str, str]) -> Iterator[str]:
    if not any(name in fields for name in _MATRICES):
        yield f"no orientation is stored (no TransformMatrix): the patient's sides are assumed; {AS_LPS}"
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        yield NO_SIZES
    if not any(name in fields for name in _ORIGINS):
        yield NO_ORIGIN


def _is_true(fields: dict[str, str], name: str, otherwise: bool = False) -> bool:
    return fields[name].lower() in ("true", "1") if name in fields else otherwise


def _check_count(path: Path, fields: dict[str, str], name: str) -> None:
    """Check the count: MetaIO reads as many numbers as there are axes, even from the next line."""
    power = 1 if name in _PER_AXIS else 2 if name in _MATRICES else None
    if power is None:
        return
    if "NDims" not in fields:
        raise ScanError(f"{path}: the header gives {name} before NDims")
    count, found = int(fields["NDims"]) ** power, len(fields[name].split())
    if found != count:
        raise ScanError(f"{path}: {found} numbers for {name}; {count} are needed")


def save(path: Path, array: AnyArray, grid: Grid) -> None:
    """Write ``[I, J, K]`` on ``grid`` as one compressed file.

    Raises:
        OutputError: the format does not support the numbers' type.
    """
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    if kind not in _NAMES:
        raise OutputError(f"{path}: the format has no numbers of type {array.dtype}")
    packed = zlib.compress(array.astype(f"<{kind}", copy=False).tobytes(order="F"), COMPRESSION)
    affine, spacing = lps(grid), np.array(grid.spacing_mm)
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": f"{len(packed)}",
        "TransformMatrix": numbers((affine[:3, :3] / spacing).T.ravel()),
        "Offset": numbers(affine[:3, 3]),
        "ElementSpacing": numbers(spacing),
        "DimSize": " ".join(str(n) for n in array.shape),
        "ElementType": _NAMES[kind],
        "ElementDataFile": "LOCAL",
    }
    written = "".join(f"{name} = {value}\n" for name, value in fields.items())
    path.write_bytes(written.encode("ascii") + packed)
