"""The journal of results: one line for every processed scan, in ``OUT/journal/<process>.jsonl``.

Each process appends to a separate file, so that any number of them, on any machines, share a folder of
results without locks. The first line describes the process's run; a line that a killed process left
incomplete is ignored. From these lines a later run determines which results are complete (``whole``), and the
results of all processes are gathered (``inference.gather``). The scans of a command are listed in
``OUT/journal/<SHA-256>.json`` (``request``).
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from zoomseg.core.errors import ScanError
from zoomseg.inference import efficiency
from zoomseg.inference.batch import ExtraOutputs, result_path
from zoomseg.inference.summary import OrganRow
from zoomseg.io import digests
from zoomseg.io.files import parse_json, read_file, stays_inside, write_json_atomic, writing
from zoomseg.io.scans import ScanInput
from zoomseg.recipe.spec import Recipe

FOLDER = "journal"

STARTED_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

OF_A_RUN = ("zoomseg", "recipe", "models", "trained", "device", "precision", "backend", "started", "labels")
"""Keys of ``run.json`` that are stored with an earlier case if they differ from the last run's."""

MAX_LINE_BYTES = 16 * 1024**2
"""Of one scan or one run; lines written by ZoomSeg have thousands of bytes."""


def is_case_entry(found: object) -> bool:
    """Whether what a case's entry of ``run.json`` says, little or much, has the types that are written."""
    if not isinstance(found, dict):
        return False
    seconds, run = found.get("seconds", {}), found.get("run", {})
    timed = isinstance(seconds, dict) and isinstance(seconds.get("total", 0.0), int | float)
    return timed and isinstance(run, dict) and _are_texts(found.get("notes", []))


def _are_texts(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(one, str) for one in found)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Run(_Line):
    """The first line: the run of a process."""

    format: Literal[1] = 1
    model_sha256: str
    """Of the models of the ensemble."""
    recipe_sha256: str
    scans: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The scans of the command, for all of its processes together (see ``request``)."""
    run: dict[str, Any]
    """The keys of ``run.json`` that do not concern single cases."""
    any_scan: bool = False
    """Whether scans that are plainly unlike those of the training were segmented, too."""

    @field_validator("run")
    @classmethod
    def _has_every_part(cls, run: dict[str, Any]) -> dict[str, Any]:
        time.strptime(str(run.get("started")), STARTED_FORMAT)
        if not (isinstance(run.get("labels"), dict) and _are_texts(run.get("notes"))):
            raise ValueError("says nothing of labels or notes")
        if not set(OF_A_RUN) <= set(run):
            raise ValueError("does not say what ran")
        return run

    def same_results(self, other: Run) -> bool:
        """Whether both give the same result for a scan: models, recipe, labels and ZoomSeg are equal."""
        mine, theirs = (
            (run.model_sha256, run.recipe_sha256, run.run["labels"], run.run["zoomseg"])
            for run in (self, other)
        )
        return mine == theirs

    def accepts(self, other: Run) -> bool:
        """Whether this run would give the results of another one, and would refuse none of its scans."""
        return self.same_results(other) and (self.any_scan or not other.any_scan)


class Entry(_Line):
    """A processed scan."""

    case: str
    finished: float
    """Seconds since 1970 (UTC)."""
    account: dict[str, Any]
    """As in ``run.json``."""
    rows: tuple[OrganRow, ...] = ()
    """As in ``summary.csv``."""
    scan_sha256: str = ""
    files: dict[str, str | None] = {}
    """Every requested file, relative to the folder of results, and its SHA-256; None: there was nothing to
    write."""

    @field_validator("case")
    @classmethod
    def _names_a_file(cls, case: str) -> str:
        if not case or case.startswith(".") or PurePosixPath(case).name != case:
            raise ValueError("no name of a case")
        return case

    @field_validator("account")
    @classmethod
    def _is_one(cls, account: dict[str, Any]) -> dict[str, Any]:
        try:
            if account["status"] == "done":
                efficiency.measures_of_entry(account)
            elif not isinstance(account["error"], str):
                raise TypeError
        except (KeyError, TypeError) as error:
            raise ValueError("no account of a scan") from error
        if not is_case_entry(account):
            raise ValueError("no account of a scan")
        return account

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str | None]) -> dict[str, str | None]:
        if not all(map(stays_inside, files)):
            raise ValueError("a file outside of the folder of results")
        return files

    @property
    def done(self) -> bool:
        """Whether the scan has results."""
        return bool(self.account["status"] == "done")


@dataclass(frozen=True, eq=False)
class Recorded:
    """An entry and its run."""

    entry: Entry
    run: Run
    before: Recorded | None = None
    """Of a failed scan, its last results, if an earlier run had some."""


# --- writing --------------------------------------------------------------------------------------


def request(out: Path, cases: Iterable[str]) -> str:
    """Record the ids of a command's scans, in ``OUT/journal/<SHA-256>.json``; returns their digest.

    Raises:
        OutputError: they cannot be written.
    """
    ids = sorted(cases)
    sha256 = digests.of_json(ids)
    path = _request_path(out, sha256)
    if not path.is_file():  # each process of a command records the same
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, ids)
    return sha256


def _request_path(out: Path, sha256: str) -> Path:
    return out / FOLDER / f"{sha256}.json"


def describe(model_sha256: str, recipe: Recipe, header: Mapping[str, Any], scans: str, any_scan: bool) -> Run:
    """A run; ``header`` contains the keys of ``run.json`` that do not concern single cases, and ``scans`` is
    what ``request`` returned."""
    recipe_sha256 = digests.of_json(recipe.model_dump(mode="json"))
    return Run(
        model_sha256=model_sha256,
        recipe_sha256=recipe_sha256,
        scans=scans,
        run=dict(header),
        any_scan=any_scan,
    )


class Journal:
    """The journal of one process, which appends to its own file; the file exists from the first entry on."""

    def __init__(self, out: Path, run: Run) -> None:
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{_host()}-{os.getpid()}"
        self._path = out / FOLDER / f"{name}-{secrets.token_hex(4)}.jsonl"
        self._run = run
        self._file: IO[bytes] | None = None

    def append(self, entry: Entry) -> None:
        """Append a line; it is on disk when this returns.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self._path):
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("xb")
                self._file.write(_line(self._run))
            self._file.write(_line(entry))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _host() -> str:
    """This machine's name, restricted to characters valid in file names."""
    return "".join(c for c in socket.gethostname() if c.isascii() and (c.isalnum() or c == "-"))[:40]


def _line(content: _Line) -> bytes:
    return (content.model_dump_json() + "\n").encode()


def digests_of_results(
    out: Path, scan: ScanInput, recipe: Recipe, extra: ExtraOutputs
) -> dict[str, str | None]:
    """``Entry.files`` of a scan whose results have been written.

    Raises:
        OSError: one cannot be read.
    """
    paths = requested_files(out, scan, recipe, extra)
    return {path.relative_to(out).as_posix(): _digest(path) for path in paths}


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    return digests.of_files([path]) if path.is_file() else None


def requested_files(out: Path, scan: ScanInput, recipe: Recipe, extra: ExtraOutputs) -> list[Path]:
    """Every file that may be written for a scan; the label map is last, in the order of writing."""
    return [*extra.paths(out, scan, recipe), result_path(out, scan)]


# --- reading --------------------------------------------------------------------------------------


def read(out: Path) -> dict[str, Recorded]:
    """By case, the last entry of all journals in a folder of results. Files not written by ZoomSeg and
    incomplete lines are ignored."""
    last: dict[str, Recorded] = {}
    done: dict[str, Recorded] = {}
    for path in sorted((out / FOLDER).glob("*.jsonl")):
        for recorded in _recorded(path):
            case = recorded.entry.case
            for found in (last, done) if recorded.entry.done else (last,):
                if case not in found or found[case].entry.finished <= recorded.entry.finished:
                    found[case] = recorded
    return {
        case: one if one.entry.done else replace(one, before=done.get(case)) for case, one in last.items()
    }


def finished(out: Path) -> dict[str, Recorded]:
    """By case, the last entry with results of all journals in a folder of results."""
    found = {case: one if one.entry.done else one.before for case, one in read(out).items()}
    return {case: one for case, one in found.items() if one is not None}


def requested(out: Path, sha256: str) -> frozenset[str]:
    """The ids that ``request`` recorded; none if their file is gone or was changed."""
    try:
        ids = parse_json(read_file(_request_path(out, sha256)))
    except (OSError, ValueError):
        return frozenset()
    if not (isinstance(ids, list) and all(isinstance(case, str) for case in ids)):
        return frozenset()
    return frozenset(ids) if digests.of_json(ids) == sha256 else frozenset()


def known(out: Path) -> frozenset[str]:
    """The ids of all scans that commands were to segment into a folder; of those that were killed, too."""
    lists = (requested(out, path.stem) for path in (out / FOLDER).glob("*.json"))
    return frozenset(read(out)).union(*lists)


def _recorded(path: Path) -> Iterator[Recorded]:
    try:
        if not path.is_file():  # a pipe would block forever
            return
        with path.open("rb") as file:
            run = _parsed(Run, file.readline(MAX_LINE_BYTES))
            while run is not None and (line := file.readline(MAX_LINE_BYTES)):
                entry = _parsed(Entry, line)
                if entry is not None:
                    yield Recorded(entry, run)
    except OSError:
        return


L = TypeVar("L", bound=_Line)


def _parsed(kind: type[L], line: bytes) -> L | None:
    """A line as an object; None if it is not valid."""
    if not line.endswith(b"\n"):
        return None
    try:
        return kind.model_validate(parse_json(line))
    except (ValueError, ValidationError):
        return None


def complete_results(
    out: Path,
    scans: Sequence[ScanInput],
    run: Run,
    recipe: Recipe,
    extra: ExtraOutputs,
) -> dict[str, Recorded]:
    """By case, the entries of ``scans`` that need not be computed again: they were computed from the same
    scan by the same models and version, and all files requested now are unchanged in ``out``. Scans and
    results are read to check this."""
    known = read(out)
    candidates = [
        (scan, recorded)
        for scan in scans
        if (recorded := known.get(scan.id)) is not None and recorded.entry.done and run.accepts(recorded.run)
    ]
    return {
        scan.id: recorded
        for scan, recorded in candidates
        if _is_complete(out, scan, recorded.entry, requested_files(out, scan, recipe, extra))
    }


def _is_complete(out: Path, scan: ScanInput, entry: Entry, asked: Iterable[Path]) -> bool:
    try:
        for path in asked:
            name = path.relative_to(out).as_posix()
            if name not in entry.files:
                return False
            if _digest(path) != entry.files[name]:
                return False
        return digests.of_scan(scan) == entry.scan_sha256
    except (OSError, ScanError):
        return False
