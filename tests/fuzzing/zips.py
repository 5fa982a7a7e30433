"""Zips with malicious names, damaged directories, and members that are zips, links, encrypted or huge."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile
from collections.abc import Mapping

from fuzzing.mutation import TEXTS, Mutation, damaged, shown

NAMES = (
    *(
        "../a.dcm",
        "../../a.dcm",
        "/tmp/a.dcm",
        "a/../../b.dcm",
        "..\\a.dcm",
        "C:\\a.dcm",
        "a//b.dcm",
        "./a.dcm",
    ),
    *(
        "",
        "/",
        "a/",
        "äöü.dcm",
        "a\nb.dcm",
        "\x1b[31m.dcm",
        "[red].dcm",
        "." + "a" * 300,
        "a" * 5_000,
        "a/" * 500,
    ),
    *("a.zip", "__MACOSX/._a.dcm", "DICOMDIR"),
)
WAYS = (
    *(
        "bytes",
        "bytes",
        "names",
        "names",
        "twice",
        "checksum",
        "encrypted",
        "nested",
        "bomb",
        "link",
        "sizes",
    ),
    *("method", "comment", "empty", "overlap"),
)
BOMB_BYTES = 300 * 1024**2
_LOCAL, _CENTRAL = b"PK\3\4", b"PK\1\2"


def packed(members: Mapping[str, bytes] | list[tuple[str, bytes]], comment: bytes = b"") -> bytes:
    """A zip of these members, reproducible byte by byte."""
    pairs = members.items() if isinstance(members, Mapping) else members
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.filterwarnings("ignore", "Duplicate name")  # intended
        for name, data in pairs:
            archive.writestr(_info(name), data)
        archive.comment = comment
    return target.getvalue()


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.filename = name  # zipfile would truncate it at NUL and replace separators
    stored = name.startswith("model/")  # as in exported packages, which are read only so
    info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    return info


def zip_changed(m: Mutation, members: Mapping[str, bytes]) -> bytes:
    """A zip of ``members`` with an error in the zip itself."""
    way = m.pick(WAYS)
    m.note(f"zip: {way}")
    pairs = list(members.items())
    number = m.rng.randrange(len(pairs))
    name, data = pairs[number]
    match way:
        case "bytes":
            whole = packed(pairs)
            start = m.pick((0, whole.index(_CENTRAL), max(0, len(whole) - 22)))
            return damaged(m, whole, start)
        case "names":
            new = m.pick((*NAMES, *(text for text in TEXTS if "\0" not in text and len(text) < 60_000)))
            pairs[number] = (new, data)
            m.note(f"{name} is called {shown(new)}")
        case "twice":
            pairs.append((name, m.pick((data, b"", data[::-1]))))
        case "checksum":
            return _patched(packed(pairs), name, 14, 16, m.rng.randbytes(4))
        case "encrypted":
            return _patched(packed(pairs), name, 6, 8, b"\1\0")
        case "method":
            return _patched(packed(pairs), name, 8, 10, struct.pack("<H", m.pick((1, 9, 12, 14, 93, 99))))
        case "sizes":
            return _patched(packed(pairs), name, 22, 24, struct.pack("<I", m.pick((0, 1, 2**31, 2**32 - 1))))
        case "nested":
            pairs = [(f"{depth}.zip", packed(pairs)) for depth in range(m.pick((1, 3, 40)))]
        case "bomb":
            pairs.append((m.pick(("a.dcm", "a.zip", "a/b.bin")), data + bytes(BOMB_BYTES)))
        case "link":
            return _link(pairs, name, m.pick(("/etc/passwd", "../../..", name)))
        case "comment":
            return packed(pairs, m.rng.randbytes(m.pick((1, 22, 65_535))))
        case "overlap":
            return _overlapping(pairs)
        case _:
            pairs = []
    return packed(pairs)


def _patched(archive: bytes, name: str, local: int, central: int, value: bytes) -> bytes:
    """Set a field of one member in both of its headers; ``local`` and ``central`` are its offsets there."""
    changed = bytearray(archive)
    encoded = name.encode()
    for mark, place, start in ((_LOCAL, local, 30), (_CENTRAL, central, 46)):
        found = archive.find(mark)
        while found >= 0:
            if archive[found + start : found + start + len(encoded)] == encoded:
                changed[found + place : found + place + len(value)] = value
            found = archive.find(mark, found + 1)
    return bytes(changed)


def _link(pairs: list[tuple[str, bytes]], name: str, target: str) -> bytes:
    stream = io.BytesIO(packed([pair for pair in pairs if pair[0] != name]))
    with zipfile.ZipFile(stream, "a") as archive:
        info = _info(name)
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
    return stream.getvalue()


def _overlapping(pairs: list[tuple[str, bytes]]) -> bytes:
    """A zip in which every entry of the directory points to the first member's bytes."""
    changed = bytearray(packed(pairs))
    found = changed.find(_CENTRAL)
    while found >= 0:
        changed[found + 42 : found + 46] = bytes(4)
        found = changed.find(_CENTRAL, found + 1)
    return bytes(changed)
