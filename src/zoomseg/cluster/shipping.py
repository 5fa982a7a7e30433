"""Files as bytes, for workers without access to the client's folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from zoomseg.core.errors import ModelError, ScanError
from zoomseg.io import bundle
from zoomseg.io.bundle import ATLASES
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.files import reading, reason_of, stays_inside, write_bytes_atomic
from zoomseg.io.scans import ScanInput, find_scans, source_files


@dataclass(frozen=True)
class FileContents:
    """The contents of files by their path relative to a folder, with ``/`` as separator."""

    contents: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path, paths: Iterable[Path]) -> FileContents:
        """
        Raises:
            OSError: one cannot be read.
        """
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    def write(self, folder: Path) -> None:
        """Write the files to ``folder``, one after the other, each atomically.

        Raises:
            OutputError: one cannot be written.
            ValueError: a path outside the folder.
        """
        for name, content in self.contents.items():
            if not stays_inside(name):
                raise ValueError(f"a path that leaves its folder: {name!r}")
            write_bytes_atomic(folder / name, content)


def model_files(folder: Path) -> FileContents:
    """The files of a model, with its atlases.

    Raises:
        ModelError: no model there, or a damaged or unreadable one.
    """
    names = bundle.files(folder)
    try:
        atlases = sorted(path for path in (folder / ATLASES).rglob("*") if path.is_file())
        return FileContents.of(folder, (*names, *atlases))
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({reason_of(error)})") from error


StoredAt: TypeAlias = tuple[str, str | None, int | None]
"""Where a slice is stored: file relative to a folder, member of a zip, frame. UIDs do not identify it: all
frames of an object have the same one, and some files have none."""


@dataclass(frozen=True)
class ShippedScan:
    """A scan with all of its files."""

    id: str
    files: FileContents
    paths: tuple[str, ...]
    """``ScanInput.paths``, in ``files``; empty for DICOM."""
    slices: tuple[StoredAt, ...] = ()
    """The slices of the series, of which the files may contain several."""

    @classmethod
    def of(cls, scan: ScanInput) -> ShippedScan:
        """
        Raises:
            ScanError: a file cannot be read, or the series cannot be used.
        """
        with reading(scan.paths[0], "a scan"):
            found = source_files(scan)
            folder = Path(os.path.commonpath([path.parent.absolute() for path in found]))
            files = FileContents.of(folder, (path.absolute() for path in found))
            if scan.dicom is not None:
                return cls(scan.id, files, (), _stored_at(scan.dicom.usable().series, folder))
            paths = tuple(path.absolute().relative_to(folder).as_posix() for path in scan.paths)
            return cls(scan.id, files, paths)

    def unpack(self, folder: Path) -> ScanInput:
        """Write the files to an empty folder; returns the scan that they contain.

        Raises:
            ScanError: the series is not found again.
            OutputError: a file cannot be written.
        """
        from zoomseg.io.dicom.read.series_discovery import Stack

        self.files.write(folder)
        if self.paths:
            return ScanInput(self.id, tuple(folder / path for path in self.paths))
        for scan in find_scans(folder):
            if isinstance(scan.dicom, Stack) and _stored_at(scan.dicom.series, folder) == self.slices:
                return ScanInput(self.id, scan.paths, scan.dicom)
        raise ScanError(f"{self.id}: its series was not found again where it was sent")


def _stored_at(series: DicomSeries, folder: Path) -> tuple[StoredAt, ...]:
    """Where the slices of a series are stored in a folder."""
    return tuple(
        (one.source.path.absolute().relative_to(folder.absolute()).as_posix(), one.source.member, one.frame)
        for one in series.stored
    )
