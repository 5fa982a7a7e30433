"""Mutated DICOM objects: missing, empty or invalid elements, files without preamble, damaged bytes."""

# mypy: allow-untyped-calls

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from fuzzing.mutation import FLOATS, INTEGERS, TEXTS, Mutation, damaged, shown

PREAMBLE = 132
"""Number of bytes before the first element, including the prefix ``DICM``."""

SYNTAX = b"1.2.840.10008.1.2.1\0"
SYNTAXES = (b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.9\0", b"\0" * 20)
"""Transfer syntaxes of the same length: big endian, RLE, and two that do not exist."""

NUMBERS = (
    "0",
    "-1",
    "1e400",
    "nan",
    "inf",
    "abc",
    "",
    "1\\2",
    "1\\2\\3\\4\\5\\6\\7",
    "0\\0\\0",
    "1e-30",
    "9" * 40,
)
UIDS = ("", "1", "1.2.3", "1..2", "a", "1" * 100, "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.66.4")
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "AT": "I", "UV": "Q", "SV": "q"}


def dicom_changed(m: Mutation, data: bytes) -> bytes:
    """One object with an error."""
    way = m.pick(("elements",) * 6 + ("bytes",) * 3 + ("bare", "syntax", "empty"))
    match way:
        case "elements":
            return _elements_changed(m, data)
        case "bytes":
            return damaged(m, data, m.pick((0, PREAMBLE)), m.pick((600, 2_000, None)))
        case "bare":
            m.note("no preamble")
            return data[PREAMBLE:]
        case "syntax":
            syntax = m.pick(SYNTAXES)
            m.note(f"transfer syntax {syntax!r}")
            return data.replace(SYNTAX, syntax)
        case _:
            m.note("empty file")
            return b""


def _elements_changed(m: Mutation, data: bytes) -> bytes:
    dataset = pydicom.dcmread(BytesIO(data))
    for _ in m.times(4):
        try:
            holder, tag, path = m.pick(list(_elements(dataset)))
        except Exception as error:  # pydicom cannot read the object after an earlier change
            m.note(f"not read by pydicom ({type(error).__name__})")
            break
        if tag in holder:  # it may have been removed by an earlier change
            m.pick(_CHANGES)(m, holder, tag, path)
    changed = BytesIO()
    try:
        dataset.save_as(changed)
    except Exception as error:  # pydicom refuses to write it: damage the bytes instead
        m.note(f"not written by pydicom ({type(error).__name__})")
        return damaged(m, data)
    return changed.getvalue()


def _elements(dataset: Dataset, path: str = "") -> Iterator[tuple[Dataset, BaseTag, str]]:
    """Every element of an object and of its sequences."""
    for element in dataset:
        where = f"{path}{element.keyword or element.tag}"
        yield dataset, element.tag, where
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                yield from _elements(item, f"{where}[{number}].")


def _removed(m: Mutation, holder: Dataset, tag: BaseTag, path: str) -> None:
    m.note(f"{path} removed")
    del holder[tag]


def _emptied(m: Mutation, holder: Dataset, tag: BaseTag, path: str) -> None:
    element = holder[tag]
    if element.VR == "SQ":
        element.value = []
    else:
        _store(holder, tag, str(element.VR), b"")
    m.note(f"{path} emptied")


def _set(m: Mutation, holder: Dataset, tag: BaseTag, path: str) -> None:
    element = holder[tag]
    if element.VR == "SQ":
        items = list(element.value)
        element.value = m.pick((items[:-1], items + items[:1], items[::-1], [Dataset()], items[:1] * 3))
        m.note(f"{path}: {len(element.value)} items for {len(items)}")
        return
    value = _value(m, str(element.VR))
    _store(holder, tag, str(element.VR), value)
    m.note(f"{path} = {shown(value)}")


def _value(m: Mutation, representation: str) -> bytes:
    """An edge case of a value representation, as stored in a file."""
    if representation in ("FL", "FD"):
        width = np.float32 if representation == "FL" else np.float64
        with np.errstate(over="ignore"):
            return bytes(width(m.pick(FLOATS)).tobytes())
    if representation in _BINARY:
        size = struct.calcsize(_BINARY[representation])
        return (m.pick(INTEGERS) % 2 ** (8 * size)).to_bytes(size, "little")
    if representation in ("DS", "IS"):
        text = m.pick(NUMBERS)
    elif representation == "UI":
        text = m.pick(UIDS)
    elif representation.startswith("O"):
        return m.rng.randbytes(m.pick((1, 2, 7, 512)))
    else:
        text = m.pick(TEXTS)[:1_100]
    return text.encode("utf-8", "replace")


def _store(holder: Dataset, tag: BaseTag, representation: str, value: bytes) -> None:
    """Store a raw value without pydicom's validation."""
    value += b" " * (len(value) % 2)
    holder[tag] = RawDataElement(tag, representation, len(value), value, 0, False, True)


_CHANGES: tuple[Callable[[Mutation, Dataset, BaseTag, str], None], ...] = (
    _set,
    _set,
    _set,
    _removed,
    _emptied,
)
