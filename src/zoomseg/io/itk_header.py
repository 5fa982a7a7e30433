"""NRRD and MetaImage headers, checked field by field before ITK sees them.

ITK's parsers are C: a field of a thousand characters ends the process where they make their error message of
it. Here everything that a header may say has a pattern and a length, and what fits none is refused.

Source: https://teem.sourceforge.net/nrrd/format.html, https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoomseg.core.errors import ScanError

MAX_HEADER_BYTES = 1 << 20
MAX_VALUE_BYTES = 250
"""Of one field. ITK's buffers hold 255 bytes and more."""

MAX_REMARK_BYTES = 1 << 16
"""Of what ITK keeps and we never look at: comments, keys with values, unknown fields."""

_INT = r"\d{1,10}"
_REAL = r"[-+]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE][-+]?\d{1,2})?"
_UNKNOWN = rf"{_REAL}|nan"
_TRUTH = r"true|false|0|1"
_VECTOR = rf"\(\s*{_REAL}(?:\s*,\s*{_REAL}){{0,7}}\s*\)"
_QUOTED = r'"[^"\\]{0,40}"'


def _list_of(one: str) -> str:
    """Up to 16, which is as many axes as a NRRD has, or elements as the matrix of a 4-D MetaImage."""
    return rf"(?:{one})(?:\s+(?:{one})){{0,15}}"


_LABEL = r"[\w?.-]{1,40}"
_NRRD_TYPES = (
    r"(?:signed |unsigned )?(?:char|short(?: int)?|int|long long(?: int)?)|u?char|u?short|uint|u?longlong"
    r"|u?int(?:8|16|32|64)(?:_t)?|float|double|block"
)
_NRRD = {
    "dimension": r"[1-9]|1[0-6]",
    "type": _NRRD_TYPES,
    "block size": _INT,
    "encoding": r"raw|txt|text|ascii|hex|gz|gzip|bz2|bzip2",
    "endian": r"little|big",
    "content": r".*",
    "min": _UNKNOWN,
    "max": _UNKNOWN,
    "old min": _UNKNOWN,
    "old max": _UNKNOWN,
    "data file": r".*",
    "line skip": _INT,
    "byte skip": rf"-1|{_INT}",
    "sample units": r".*",
    "sizes": _list_of(_INT),
    "spacings": _list_of(_UNKNOWN),
    "thicknesses": _list_of(_UNKNOWN),
    "axis mins": _list_of(_UNKNOWN),
    "axis maxs": _list_of(_UNKNOWN),
    "centers": _list_of(_LABEL),
    "centerings": _list_of(_LABEL),
    "kinds": _list_of(_LABEL),
    "labels": _list_of(_QUOTED),
    "units": _list_of(_QUOTED),
    "space": r"[\w-]{1,40}",
    "space dimension": r"[1-8]",
    "space units": _list_of(_QUOTED),
    "space origin": _VECTOR,
    "space directions": _list_of(rf"{_VECTOR}|none"),
    "measurement frame": _list_of(rf"{_VECTOR}|none"),
}
"""Fields of a NRRD, by their names in lower case; some are also written without the blank."""

_META = {
    "NDims": r"[1-4]",
    "DimSize": _list_of(_INT),
    "ElementSpacing": _list_of(_REAL),
    "ElementSize": _list_of(_REAL),
    "Offset": _list_of(_REAL),
    "Position": _list_of(_REAL),
    "Origin": _list_of(_REAL),
    "TransformMatrix": _list_of(_REAL),
    "Orientation": _list_of(_REAL),
    "Rotation": _list_of(_REAL),
    "CenterOfRotation": _list_of(_REAL),
    "Color": _list_of(_REAL),
    "AnatomicalOrientation": r"[\w?]{1,8}",
    "DistanceUnits": r"[\w?]{1,40}",
    "ObjectType": r"[\w ]{1,40}",
    "ObjectSubType": r"[\w ]{1,40}",
    "ElementType": r"MET_[A-Z_]{1,40}",
    "ElementNumberOfChannels": r"\d{1,4}",
    "ElementNBits": _INT,
    "ElementMin": _REAL,
    "ElementMax": _REAL,
    "ElementToIntensityFunctionSlope": _REAL,
    "ElementToIntensityFunctionOffset": _REAL,
    "BinaryData": _TRUTH,
    "BinaryDataByteOrderMSB": _TRUTH,
    "ElementByteOrderMSB": _TRUTH,
    "CompressedData": _TRUTH,
    "CompressedDataSize": r"\d{1,15}",
    "CompressionLevel": r"\d{1,4}",
    "HeaderSize": rf"-1|{_INT}",
    "ID": rf"-?{_INT}",
    "ParentID": rf"-?{_INT}",
    "SequenceID": _list_of(_REAL),
    "Modality": r"\w{1,40}",
    "Name": r".*",
    "ElementDataFile": r".*",
}
"""Fields of a MetaImage, of which capitals are part of the names."""

_META_NEEDED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
_META_ORIGINS = ("Offset", "Position", "Origin")
_META_PER_AXIS = (
    "DimSize",
    "ElementSpacing",
    "ElementSize",
    *_META_ORIGINS,
    "CenterOfRotation",
)
_META_MATRICES = ("TransformMatrix", "Orientation", "Rotation")
_META_OF_ANY_CASE = {name.lower() for name in _META}

_PATIENT = (
    "left-posterior-superior",
    "lps",
    "right-anterior-superior",
    "ras",
    "left-anterior-superior",
    "las",
)
"""Spaces of a NRRD that say where the patient's sides are; ITK turns them into LPS."""
_MISREAD = ("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last")
"""ITK takes them for LPS, which they are not."""
_PATIENT_IN_TIME = ("left-posterior-superior-time", "lpst")

_DOMAIN_KINDS = ("domain", "space", "time", "none", "???")
"""Kinds of a NRRD's axes that ITK counts as axes of the image; it makes the others values of a voxel."""

_AS_LPS = "as ITK does, its axes are taken to run to the patient's left, back and head"
_NO_SIZES = "no voxel sizes are stored: taken as 1 mm, as ITK does"
_NO_ORIGIN = "no origin is stored: the first voxel is taken to lie at 0 mm, as ITK does"

_MILLIMETRES = re.compile(r"(?:mm|millimet(?:re|er)s?|\?+|)", re.IGNORECASE)


@dataclass(frozen=True)
class TextHeader:
    """What is checked of a header: its fields, and where and how its voxels lie."""

    fields: dict[str, str]
    voxels: Path
    """The file that holds them."""
    compressed: bool
    """Whether a voxel may take less room in the file than in memory."""
    begin: int = 0
    """Where the voxels of a MetaImage begin in it, at the earliest."""
    notes: tuple[str, ...] = ()
    """What its user must know of how ITK finds the grid: what the header leaves open."""
    slope: float = 1.0
    intercept: float = 0.0
    """Of a MetaImage: the real value is ``stored * slope + intercept``. ITK does not apply them."""

    @property
    def deflated(self) -> bool:
        """Whether it is a MetaImage with voxels as zlib packs them."""
        return _is_true(self.fields, "CompressedData")

    @property
    def big_endian(self) -> bool:
        """Of a MetaImage."""
        return any(_is_true(self.fields, name) for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))


def read(path: Path, nrrd: bool) -> TextHeader:
    """The header of a NRRD or MetaImage file, fit for ITK.

    Raises:
        ScanError: no such header, something in it that no image says, another unit than millimetres, or
            voxels that are not in one file in the same folder.
    """
    with path.open("rb") as stream:
        start = stream.read(MAX_HEADER_BYTES)
    return _nrrd(path, start) if nrrd else _meta(path, start)


def _nrrd(path: Path, start: bytes) -> TextHeader:
    first, *lines = re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0].splitlines() or [b""]
    if not re.fullmatch(rb"NRRD000[1-5]", first):
        raise ScanError(f"{path}: damaged, truncated or not an image (no NRRD header)")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b": ")
        known = _nrrd_name(name) if colon else None
        if known is not None:
            _add(path, fields, known, _NRRD[known], value)
        elif not line.startswith(b"#") and b":=" not in line:
            raise _refused(path, line)
        else:
            _check_remark(path, line)
    _require_millimetres(
        path, *re.findall(r'"([^"]*)"', fields.get("space units", "") + fields.get("units", ""))
    )
    _check_axes(path, fields)
    compressed = fields.get("encoding", "raw").lower() != "raw"  # text may be shorter than its number, too
    voxels = _voxels(path, fields.get("data file"))
    return TextHeader(fields, voxels, compressed, notes=tuple(_nrrd_notes(fields)))


def _check_axes(path: Path, fields: dict[str, str]) -> None:
    """Refuse what ITK takes for something else without a word: a space of other sides, axes without a size.

    Raises:
        ScanError: it is there.
    """
    space = fields.get("space", "")
    if space.lower() in _MISREAD:
        raise ScanError(
            f"{path}: the header's space '{space}' is not supported; write it as LPS without time"
        )
    name = "space directions" if "space directions" in fields else "spacings"
    sizes = re.findall(rf"{_VECTOR}|[^\s()]+", fields.get(name, ""))
    bad = next((size for size in _in_space(fields, sizes) if size.lower() in ("none", "nan")), None)
    if bad is not None:
        raise ScanError(f"{path}: the header's {name} give {bad} for an axis in space; repair the header")


def _in_space(fields: dict[str, str], by_axis: Sequence[str]) -> list[str]:
    """Of what a NRRD says of its axes, that of the axes in space."""
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(by_axis)
    return [one for one, kind in zip(by_axis, kinds, strict=False) if kind in _DOMAIN_KINDS][:3]


def _nrrd_notes(fields: dict[str, str]) -> Iterator[str]:
    space = fields.get("space")
    if space is None:
        yield f"no orientation is stored (no space in the header): the sides are a guess; {_AS_LPS}"
    elif space.lower() not in (*_PATIENT, *_PATIENT_IN_TIME):
        yield f"the header's space '{space}' does not tell the patient's sides, they are a guess; {_AS_LPS}"
    if "space directions" not in fields and "spacings" not in fields:
        yield _NO_SIZES
    if not _has_origin(fields):
        yield _NO_ORIGIN


def _has_origin(fields: dict[str, str]) -> bool:
    """Whether ITK finds one: without a space by where the axes begin, if it knows voxel sizes or ends."""
    if "space origin" in fields:
        return True
    begins = _in_space(fields, fields.get("axis mins", "nan").lower().split())
    return "nan" not in begins and ("spacings" in fields or "axis maxs" in fields)


def _nrrd_name(written: bytes) -> str | None:
    name = written.decode("latin-1").lower()
    return next((known for known in _NRRD if name in (known, known.replace(" ", ""))), None)


def _meta(path: Path, start: bytes) -> TextHeader:
    end = re.search(rb"^ElementDataFile.*\n?", start, re.MULTILINE)
    fields: dict[str, str] = {}
    for line in start[: end.end()].splitlines() if end else []:
        name, equals, value = line.partition(b"=")
        known = name.decode("latin-1").rstrip()
        if known in _META:
            _add(path, fields, known, _META[known], value)
            _check_count(path, fields, known)
        elif (
            line.strip() and not (equals and len(name) <= MAX_VALUE_BYTES)
        ) or known.strip().lower() in _META_OF_ANY_CASE:
            raise _refused(path, line)
        else:
            _check_remark(path, line)
    if not all(name in fields for name in _META_NEEDED):  # ITK would complain on standard error by itself
        raise ScanError(f"{path}: damaged, truncated or not an image (no MetaImage header)")
    _require_millimetres(path, fields.get("DistanceUnits", "mm"))
    place = fields["ElementDataFile"]
    voxels = _voxels(path, None if place.upper() == "LOCAL" else place)
    packed = int(fields.get("CompressedDataSize", 0))
    if packed > voxels.stat().st_size:
        raise ScanError(f"{path}: truncated; header promises {packed} bytes of compressed voxels")
    binary = _is_true(fields, "BinaryData") and not _is_true(fields, "CompressedData")
    begin = end.end() if end and voxels == path else 0
    slope, intercept = _meta_scaling(path, fields)
    return TextHeader(fields, voxels, not binary, begin, tuple(_meta_notes(fields)), slope, intercept)


def _meta_scaling(path: Path, fields: dict[str, str]) -> tuple[float, float]:
    slope, intercept = (
        float(fields.get(f"ElementToIntensityFunction{name}", usual))
        for name, usual in (("Slope", 1.0), ("Offset", 0.0))
    )
    if slope == 0:
        raise ScanError(
            f"{path}: the header's ElementToIntensityFunctionSlope is 0; another number is needed"
        )
    return slope, intercept


def _meta_notes(fields: dict[str, str]) -> Iterator[str]:
    if not any(name in fields for name in _META_MATRICES):
        yield f"no orientation is stored (no TransformMatrix): the sides are a guess; {_AS_LPS}"
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        yield _NO_SIZES
    if not any(name in fields for name in _META_ORIGINS):
        yield _NO_ORIGIN


def _is_true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "").lower() in ("true", "1")


def _check_count(path: Path, fields: dict[str, str], name: str) -> None:
    """MetaIO reads as many numbers as the axes ask for, be they on the next line."""
    power = 1 if name in _META_PER_AXIS else 2 if name in _META_MATRICES else None
    if power is None:
        return
    if "NDims" not in fields:
        raise ScanError(f"{path}: the header gives {name} before NDims")
    count, found = int(fields["NDims"]) ** power, len(fields[name].split())
    if found != count:
        raise ScanError(f"{path}: {found} numbers for {name}; {count} are needed")


def _add(path: Path, fields: dict[str, str], name: str, pattern: str, value: bytes) -> None:
    text = value.decode("latin-1").strip()
    fits = len(text) <= MAX_VALUE_BYTES and text.isprintable() and re.fullmatch(pattern, text, re.IGNORECASE)
    if not fits:
        raise ScanError(f"{path}: the header's {name} cannot be {_shown(value)}")
    if name in fields:
        raise ScanError(f"{path}: the header gives {name} twice")
    fields[name] = text


def _check_remark(path: Path, line: bytes) -> None:
    if len(line) > MAX_REMARK_BYTES or b"\0" in line:
        raise _refused(path, line)


def _refused(path: Path, line: bytes) -> ScanError:
    return ScanError(f"{path}: damaged, truncated or not an image (its header says {_shown(line)})")


def _shown(value: bytes) -> str:
    """In quotes, what is no ASCII written out, and no longer than a line."""
    text = ascii(value.decode("latin-1").strip())
    return text if len(text) <= 60 else f"{text[:60]}... ({len(value)} bytes)"


def _require_millimetres(path: Path, *units: str) -> None:
    """ITK reads every length as millimetres, whatever the header says."""
    other = next((unit for unit in units if not _MILLIMETRES.fullmatch(unit.strip())), None)
    if other is not None:
        raise ScanError(
            f"{path}: its lengths are in '{other}', and its format is read in mm alone; convert it"
        )


def _voxels(path: Path, place: str | None) -> Path:
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
