"""Identify scans by their files: names, suffixes, channels of one scan, DICOM series in folders and zips."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from zoomseg.core.errors import ScanError, quoted
from zoomseg.io.files import printable, why_unreadable

if TYPE_CHECKING:
    from zoomseg.io.dicom.read.series_discovery import Refused, Stack
# Imported where they are needed: they take a tenth of a second, and most scans are NIfTI.

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_SUPPORTED = f"{', '.join(SCAN_SUFFIXES)}, and DICOM series in folders or zips"

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class ScanInput:
    """One case to be read: its name and one file per channel, in channel order; for DICOM the given folder,
    zip or file."""

    id: str
    paths: tuple[Path, ...]
    dicom: Stack | Refused | None = None
    """The series among those in there; reading a refused one raises its reason."""


def scan_suffix(path: Path) -> str | None:
    """The supported suffix of a file name, or None."""
    name = Path(path).name.lower()
    return next((s for s in SCAN_SUFFIXES if name.endswith(s) and len(name) > len(s)), None)


def scan_name(path: Path) -> str:
    """File name without its scan suffix: ``a/liver_01.nii.gz`` -> ``liver_01``; valid text for any file."""
    name = Path(path).name
    return printable(name[: len(name) - len(scan_suffix(path) or "")])


def split_channel(name: str) -> tuple[str, int | None]:
    """``case_0001`` -> ``("case", 1)``; a name without a channel number -> ``(name, None)``."""
    match = _CHANNEL.fullmatch(name)
    return (match["case"], int(match["channel"])) if match else (name, None)


def scan_files(folder: Path) -> list[Path]:
    """Supported files directly in ``folder``, sorted by name; hidden ones (partial results) are ignored.
    Broken links count as files: reading them reports an error.

    Raises:
        ScanError: the folder cannot be listed.
    """
    try:
        files = [p for p in Path(folder).iterdir() if not p.name.startswith(".") and scan_suffix(p)]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ScanError(f"{quoted(folder)}: cannot be listed ({reason})") from error
    return sorted(p for p in files if os.path.isfile(p) or not os.path.exists(p))


def files_by_case(folder: Path) -> dict[str, Path]:
    """``<case>.nii.gz`` and the like in a folder, by case.

    Raises:
        ScanError: two files of one case, or the folder cannot be listed.
    """
    files: dict[str, Path] = {}
    for file in scan_files(folder):
        _add_case(files, scan_name(file), file)
    return files


def _add_case(cases: dict[str, Path], case: str, file: Path) -> None:
    if case in cases:
        names = f"{quoted(cases[case].name)} and {quoted(file.name)}"
        raise ScanError(f"{quoted(file.parent)}: {names} are both case '{quoted(case)}'; keep one of them")
    cases[case] = file


def _silent(note: str) -> None:
    pass


def find_scans(
    path: Path,
    on_note: Callable[[str], None] = _silent,
    apart: Container[str] = (),
    described: bool = True,
) -> list[ScanInput]:
    """The cases in a file or folder. ``<case>_0000, <case>_0001, ...`` are channels of one case if they count
    from 0000; every other file is a separate case.

    A folder without such files, a zip or a DICOM file is searched for DICOM series, including folders and
    zips in it. Each is a case (see ``io.dicom.read.series_names.case_names``), including those that cannot be
    used.

    Args:
        on_note: receives notes on files that were read as channels, and on ignored DICOM objects. Corrections
            that made a volume possible are reported with each case (see ``io.scans.notes_on``).
        apart: names of files that are known to be separate cases.
        described: as for ``io.dicom.read.series_discovery.find_series``.

    Raises:
        ScanError: nothing there, a channel missing in between, or two files of one name.
    """
    path = Path(path)
    if os.path.isfile(path):
        if scan_suffix(path) is None and (found := _dicom_scans(path, on_note, described)):
            return found
        require_suffix(path)
        case, channel = split_channel(scan_name(path))
        return [ScanInput(case if channel == 0 else scan_name(path), (path,))]
    if not os.path.isdir(path):
        reason = why_unreadable(path) or ""
        what = reason.replace("no such file", "no such file or folder", 1)
        raise ScanError(f"{quoted(path)}: {what}")
    files = scan_files(path)
    if files and _dicom_beside(path):
        what = f"only {files[0].name} and the like are read, the DICOM objects or zips beside them are not"
        on_note(f"{path}: {what}; give those in a folder of their own")
    found = _group_channels(files, apart) if files else _dicom_scans(path, on_note, described)
    if not found:
        raise ScanError(f"{path}: no scans in this folder; supported are {_SUPPORTED}")
    note = as_channels(found)
    if note is not None:
        on_note(
            f"{path}: {note}; if each is a scan of its own, give the files, not their folder, or rename them"
        )
    return found


def as_channels(scans: Sequence[ScanInput]) -> str | None:
    """A note on files that were taken for channels of one scan by their names; None if there were none."""
    several = [scan for scan in scans if len(scan.paths) > 1]
    if not several:
        return None
    first = several[0]
    names = f"{quoted(first.paths[0].name)} to {quoted(first.paths[-1].name)}"
    more = f", and so on for {len(several) - 1} more" if len(several) > 1 else ""
    return f"{names} were read as {len(first.paths)} channels of one scan, '{quoted(first.id)}'{more}"


def _dicom_beside(folder: Path) -> bool:
    """Whether a folder with scans of other formats also contains DICOM objects or zips."""
    from zoomseg.io.dicom.read.archive import files_in

    try:
        others = (file for file in files_in(folder) if scan_suffix(file) is None)
        first = next(others, None)
        if first is None:
            return False
        from zoomseg.io.dicom.read.series_discovery import any_dicom

        return any_dicom(itertools.chain([first], others))
    except ScanError:  # an unreadable subfolder does not prevent the scans from being read
        return False


def _dicom_scans(path: Path, on_note: Callable[[str], None], described: bool) -> list[ScanInput]:
    from zoomseg.io.dicom.read.series_discovery import find_series
    from zoomseg.io.dicom.read.series_names import case_names

    found = find_series(path, described=described)
    names = case_names(path, found)
    for note in found.notes:
        on_note(note)
    series: tuple[Stack | Refused, ...] = (*found.stacks, *found.refused)
    return [ScanInput(name, (path,), one) for name, one in zip(names, series, strict=True)]


def _group_channels(files: Sequence[Path], apart: Container[str]) -> list[ScanInput]:
    groups: dict[str, dict[int, Path]] = {}
    alone: dict[str, Path] = {}
    for file in files:
        case, channel = split_channel(scan_name(file))
        if channel is None or scan_name(file) in apart:
            _add_case(alone, scan_name(file), file)
        else:
            same = groups.setdefault(case, {}).setdefault(channel, file)
            if same is not file:
                raise ScanError(f"{quoted(file.parent)}: {same.name} and {file.name} are the same channel")
    found: dict[str, tuple[Path, ...]] = {case: (file,) for case, file in alone.items()}
    for case, channels in groups.items():
        if 0 not in channels:
            for file in channels.values():
                _add_case(alone, scan_name(file), file)
                found[scan_name(file)] = (file,)
            continue
        _add_case(alone, case, channels[0])
        missing = next(n for n in count() if n not in channels)
        if missing < len(channels):
            raise ScanError(f"{files[0].parent}: case {quoted(case)} has no file for channel {missing:04d}")
        found[case] = tuple(channels[c] for c in sorted(channels))
    return [ScanInput(case, found[case]) for case in sorted(found)]


def require_suffix(path: Path) -> str:
    """The suffix of a scan file.

    Raises:
        ScanError: it has no supported one.
    """
    suffix = scan_suffix(path)
    if suffix is None:
        raise ScanError(f"{path}: not a supported scan file; supported are {_SUPPORTED}")
    return suffix


def the_scan(path: Path, on_note: Callable[[str], None] = _silent) -> ScanInput:
    """The one scan in a file or folder; ``on_note`` as in ``find_scans``.

    Raises:
        ScanError: there is none, or several.
    """
    found = find_scans(path, on_note)
    if len(found) > 1:
        raise ScanError(f"{path}: holds {len(found)} scans, among them {found[0].id}; give one")
    return found[0]
