"""Checks of zips of any origin before anything in them is read: number and size of members, claimed inflated
size, overlap, encryption."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from zoomseg.core.errors import ZoomSegError

HARMLESS_BYTES = 256 * 1024**2
"""Any zip may inflate to this size."""

MAX_RATIO = 100
"""Maximum ratio of inflated to stored size, unless the former is small: scans, even with much air, compress
to a tenth at best, and weights hardly at all."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class ZipLimits:
    """Limits on a zip of ``content``."""

    content: str
    """For messages, in the plural."""
    files: int
    file_bytes: int
    total_bytes: int


def checked_zip(path: Path, limits: ZipLimits, error: type[ZoomSegError]) -> zipfile.ZipFile:
    """An open zip with a plausible directory. Its names are not checked: this is left to callers that create
    paths from them.

    Raises:
        ZoomSegError: of the kind ``error``, in one line.
    """
    try:
        opened = zipfile.ZipFile(path)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason})") from reason
    except Exception as reason:  # reading the directory of a hostile zip may raise many exceptions
        raise error(f"{path}: damaged, truncated or not a zip ({reason})") from reason
    problem = _problem(path.stat().st_size, opened.infolist(), limits)
    if problem is not None:
        opened.close()
        raise error(f"{path}: {problem}")
    return opened


def _problem(stored: int, members: list[zipfile.ZipInfo], limits: ZipLimits) -> str | None:
    """The problem of the contents of a zip of this size, if there is one."""
    if len(members) > limits.files:
        return f"{len(members)} files in the zip; at most {limits.files} are read"
    names = [info.filename for info in members]
    if len(set(names)) < len(names):
        return "several files of the zip have one name; pack it again"
    packed, total = sum(info.compress_size for info in members), sum(info.file_size for info in members)
    if packed > stored:
        return "files in the zip overlap; this is not a valid zip"
    if total > limits.total_bytes or max((i.file_size for i in members), default=0) > limits.file_bytes:
        return f"inflates to {total} bytes; at most {limits.total_bytes} are read"
    if total > max(HARMLESS_BYTES, MAX_RATIO * stored):
        times = total // max(1, stored)
        return f"inflates to {times} times its size, which is not plausible for {limits.content}"
    for info in members:
        if info.flag_bits & 1:
            return f"{info.filename!r} is encrypted; unpack it with its password first"
        if info.compress_type not in _METHODS:
            return f"{info.filename!r} has an unsupported compression; only deflate is read"
    return None
