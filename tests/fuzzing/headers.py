"""Mutated headers of NIfTI-1, NIfTI-2, NRRD and MetaImage files, field by field."""

# mypy: allow-untyped-calls

from __future__ import annotations

import gzip
import re
from typing import Any

import nibabel as nib
import numpy as np

from fuzzing.mutation import FLOATS, INTEGERS, TEXTS, Mutation, damaged, shown

GEOMETRY = (
    *("dim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "xyzt_units"),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "magic", "sizeof_hdr"),
)
"""Fields that define type and position of the voxels; changed more often than the others."""

TOKENS = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "3",
        "4",
        "16",
        "1000",
        "32768",
        "2147483648",
        "9223372036854775808",
        "1" + "0" * 400,
    ),
    *(
        "nan",
        "inf",
        "-inf",
        "1e-30",
        "1e-6",
        "1e38",
        "1e400",
        "0.5",
        "abc",
        "",
        "()",
        "(1,0,0)",
        "none",
        "%s",
    ),
    *(
        "a" * 1_100,
        "a" * 65_536,
        "../a",
        "/etc/hostname",
        "a/b",
        "\0",
        "\x1b[31m",
        "\xff\xfe",
        '"',
        "LIST",
        "True",
    ),
)
"""Replacements for numbers and words of a textual header; written as Latin-1, so that some are invalid
UTF-8."""


# --- NIfTI ----------------------------------------------------------------------------------------


def nifti_changed(m: Mutation, data: bytes) -> bytes:
    """An uncompressed NIfTI file with an error in its header, its size or its voxels."""
    dtype = _dtype(data)
    way = m.pick(("fields",) * 8 + ("bytes", "order", "cut", "voxels"))
    if way == "fields":
        for _ in m.times(4):
            data = _field_changed(m, data, dtype)
        return data
    if way == "bytes":
        return damaged(m, data, 0, dtype.itemsize + 4)
    if way == "cut":
        return damaged(m, data, dtype.itemsize)
    header, voxels = data[: dtype.itemsize], data[dtype.itemsize :]
    if way == "order":
        m.note("header in the other byte order")
        return np.frombuffer(header, dtype).byteswap().tobytes() + voxels
    value = m.pick(FLOATS)
    m.note(f"voxels are {value}")
    with np.errstate(over="ignore"):
        return header + voxels[:4] + np.full((len(voxels) - 4) // 4, value, np.float32).tobytes()


def _dtype(data: bytes) -> np.dtype[np.void]:
    second = data[:4] == b"\x1c\x02\0\0"
    header = nib.Nifti2Header if second else nib.Nifti1Header
    found: np.dtype[np.void] = header.template_dtype
    return found


def _field_changed(m: Mutation, data: bytes, dtype: np.dtype[np.void]) -> bytes:
    name = m.pick(GEOMETRY) if m.chance(0.85) else m.pick(dtype.names or ())
    assert dtype.fields is not None
    kind, offset = dtype.fields[name][:2]
    base, count = kind.base, int(np.prod(kind.shape))
    index = m.rng.randrange(count)
    value = np.array(_number(m, base), base)
    m.note(f"{name}{f'[{index}]' if count > 1 else ''} = {shown(value.tolist())}")
    start = offset + index * base.itemsize
    return data[:start] + value.tobytes() + data[start + base.itemsize :]


def _number(m: Mutation, base: np.dtype[Any]) -> Any:
    """An edge case for a field's type, wrapped around if it is out of range."""
    if base.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(m.pick(FLOATS)).astype(base)[()]
    if base.kind in "iu":
        whole = m.pick((*INTEGERS, m.rng.randrange(2048)))
        wrapped = (whole % 2 ** (8 * base.itemsize)).to_bytes(base.itemsize, "little")
        return np.frombuffer(wrapped, base)[0]
    return np.frombuffer(m.rng.randbytes(base.itemsize), base)[0]


def zipped(m: Mutation, data: bytes) -> bytes:
    """The file as gzip with one member, sometimes with an error in it."""
    packed = gzip.compress(data, 1, mtime=0)
    if m.chance(0.8):
        return packed
    way = m.pick(("damaged", "trailing", "members", "plain", "checksum", "empty"))
    if way == "damaged":
        return damaged(m, packed)
    m.note(f"gzip: {way}")
    match way:
        case "trailing":
            return packed + m.pick((b"\0" * 512, m.rng.randbytes(64), b"\x1f\x8b"))
        case "members":
            half = len(data) // 2
            return gzip.compress(data[:half], 1, mtime=0) + gzip.compress(data[half:], 1, mtime=0)
        case "plain":
            return data
        case "checksum":
            return packed[:-8] + b"\1\2\3\4" + packed[-4:]
        case _:
            return gzip.compress(b"", mtime=0)


# --- NRRD and MetaImage ---------------------------------------------------------------------------


def text_changed(m: Mutation, data: bytes, header_end: int) -> bytes:
    """A NRRD or MetaImage file with an error in its header of ``header_end`` bytes, or after it."""
    header, voxels = data[:header_end], data[header_end:]
    way = m.pick(("lines",) * 8 + ("bytes", "voxels"))
    if way == "bytes":
        return damaged(m, header) + voxels
    if way == "voxels":
        return damaged(m, data, header_end) if voxels else damaged(m, header)
    lines = header.split(b"\n")
    for _ in m.times(4):
        _line_changed(m, lines)
    return b"\n".join(lines) + voxels


def _line_changed(m: Mutation, lines: list[bytes]) -> None:
    number = m.rng.randrange(len(lines))
    line = lines[number]
    way = m.pick(("token",) * 6 + ("near",) * 6 + ("value", "key", "removed", "twice", "new"))
    match = re.match(rb"([^:=]*[:=]+\s*)(.*)", line, re.DOTALL)
    if way in ("token", "near", "value", "key") and match:
        token = m.pick(TOKENS).encode("latin-1")
        parts = list(re.finditer(rb"[^\s,()]+", match[2]))
        if way == "key":
            line = token + b": " + match[2]
        elif way == "value" or not parts:
            line = match[1] + token
        else:
            part = m.pick(parts)
            token = _near(m, part[0]) if way == "near" else token
            line = match[1] + match[2][: part.start()] + token + match[2][part.end() :]
        m.note(f"line {number + 1} = {shown(line)}")
        lines[number] = line
    elif way == "removed":
        m.note(f"line {shown(line)} removed")
        del lines[number]
        lines[:] = lines or [b""]
    elif way == "twice":
        m.note(f"line {shown(line)} twice")
        lines.insert(number, line)
    else:
        new = f"{m.pick(TEXTS)}{m.pick((': ', ':=', ' = '))}{m.pick(TEXTS)}".encode()
        m.note(f"new line {number + 1}: {shown(new)}")
        lines.insert(number, new)


def _near(m: Mutation, old: bytes) -> bytes:
    """Another number near the original one, or the same; another spelling of a word."""
    try:
        number = float(old)
    except ValueError:
        return m.pick((old.upper(), old.lower()))
    return f"{number * m.pick((1.0, 0.9999, 1.01, 1.5)):g}".encode()
