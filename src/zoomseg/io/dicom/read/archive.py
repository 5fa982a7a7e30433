"""Locations of DICOM objects: files in nested folders, or members of a zip.

A zip is read in place: nothing is extracted, so its names are never paths. It is hostile until its directory
has been checked (``io.zips``).
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from zoomseg.core.errors import ScanError
from zoomseg.io.zips import ZipLimits, checked_zip

MAX_FILES = 200_000
"""Maximum number of files in one folder or zip."""

_LIMITS = ZipLimits("scans", MAX_FILES, file_bytes=4 * 1024**3, total_bytes=64 * 1024**3)


@dataclass(frozen=True, order=True)
class Source:
    """One DICOM object: a file, or a member of a zip (``path`` is then the zip)."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {self.member!r}"


class BoundedReader(io.BufferedReader):
    """Limits reads to the remaining bytes: otherwise, for a damaged length, gigabytes would be allocated
    before anything is read."""

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw, 65536)
        self._bytes = size

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self._bytes - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


@dataclass(eq=False)
class Opener:
    """Opens sources; a zip stays open until the end of ``opening``. Any thread may use it."""

    _stack: ExitStack
    _zips: dict[Path, zipfile.ZipFile] = field(default_factory=dict)

    def add_zip(self, path: Path) -> zipfile.ZipFile:
        """Add a checked zip; to be called before threads share this."""
        if path not in self._zips:
            self._zips[path] = self._stack.enter_context(checked_zip(path, _LIMITS, ScanError))
        return self._zips[path]

    def open(self, source: Source) -> BinaryIO:
        """Seekable stream of the object's bytes."""
        if source.member is None:
            return BoundedReader(io.FileIO(source.path), self.size(source))
        raw = cast(io.RawIOBase, self._zips[source.path].open(source.member))
        return BoundedReader(raw, self.size(source))

    def size(self, source: Source) -> int:
        """Bytes of the object, unpacked."""
        if source.member is None:
            return source.path.stat().st_size
        return self._zips[source.path].getinfo(source.member).file_size


@contextmanager
def opening(*zips: Path) -> Iterator[Opener]:
    """An opener for these zips.

    Raises:
        ScanError: a zip is damaged, or claims more than any real one contains.
    """
    with ExitStack() as stack:
        opener = Opener(stack)
        for path in zips:
            opener.add_zip(path)
        yield opener


def is_zip(path: Path) -> bool:
    """Whether a file has the suffix of a zip."""
    return path.suffix.lower() == ".zip"


def sources_in(path: Path, opener: Opener) -> list[Source]:
    """Every possible DICOM object in a file, a zip, or a folder with its folders and zips; sorted. Hidden
    files are ignored, links to folders are not followed.

    Raises:
        ScanError: too many files, a folder that cannot be listed, or as ``opening``.
    """
    if path.is_file():
        return _members(path, opener) if is_zip(path) else [Source(path)]
    found: list[Source] = []
    for file in files_in(path):
        found += _members(file, opener) if is_zip(file) else [Source(file)]
        if len(found) > MAX_FILES:
            raise ScanError(f"{path}: more than {MAX_FILES} files; give the folder of one patient or study")
    return sorted(found)


def files_in(folder: Path) -> Iterator[Path]:
    """All files in a folder and its folders, in order, except hidden ones and those that are not regular
    files.

    Raises:
        ScanError: a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ScanError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(here, name) for name in sorted(files) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())  # not pipes or broken links


def _members(path: Path, opener: Opener) -> list[Source]:
    names = (info.filename for info in opener.add_zip(path).infolist())
    files = (name for name in names if name and not name.endswith("/"))  # hostile ones may have none
    return [Source(path, name) for name in files if not name.rpartition("/")[2].startswith(".")]
