"""The files of a batch other than label maps: ``summary.csv``, ``review.csv``, ``run.json``, ``report.html``,
and names and colours of the label values for viewers.

The first three are rewritten after a case, but for at most a twentieth of the time, and at the end: a batch
that is stopped leaves complete summaries; for one that is killed, the journal contains the rest. They also
list the label maps of earlier runs, and of simultaneous ones.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zoomseg.anatomy.plausibility import position_notes
from zoomseg.core.errors import OutputError
from zoomseg.core.labels import BACKGROUND, LabelSchema
from zoomseg.inference import batch, earlier_results, journal, probability_maps, result_page
from zoomseg.inference.batch import (
    NO_EXTRA_OUTPUTS,
    ExtraOutputs,
    Failed,
    OnScanProgress,
    ScanOutcome,
    Segmented,
    result_path,
)
from zoomseg.inference.confidence import organ_rows_of
from zoomseg.inference.earlier_results import EarlierResults
from zoomseg.inference.efficiency import measures, summarise
from zoomseg.inference.journal import STARTED_FORMAT, Entry, Journal, Recorded
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.summary import OrganRow, write_review, write_summary
from zoomseg.io import digests
from zoomseg.io.bundle import Bundle
from zoomseg.io.dicom.write.results import require_series
from zoomseg.io.files import (
    RUN_JSON,
    SUMMARY,
    folded,
    printable,
    writable_directory,
    write_json_atomic,
    writing,
)
from zoomseg.io.locks import waiting_for
from zoomseg.io.scans import ScanInput
from zoomseg.io.seg_nrrd import write_colour_tables
from zoomseg.pipeline.probability_map import require_probabilities
from zoomseg.recipe.spec import Recipe

TRAINED = ("data_set", "date", "seconds", "device", "seed", "zoomseg")
"""Keys of the model's provenance that a run records; without the names of the cases."""

WRITING_SHARE = 0.05
"""Share of the time for rewriting the files that list all cases, which takes longer the more there are."""

OnOrgans = Callable[[Sequence[OrganRow]], None]
"""Receives the rows of a scan."""


@dataclass(frozen=True)
class Part:
    """One of ``of_parts`` disjoint parts of a list of scans, counted from 1. It contains every
    ``of_parts``-th scan, so that parts take about the same time if neighbours are similar."""

    number: int
    of_parts: int

    def of(self, scans: Sequence[ScanInput]) -> Sequence[ScanInput]:
        return scans[self.number - 1 :: self.of_parts]


ALL = Part(1, 1)


def segment_to_folder(
    scans: Iterable[ScanInput],
    out: Path,
    predictor: Predictor,
    organs: tuple[str, ...] | None = None,
    on_result: Callable[[ScanOutcome], None] | None = None,
    on_progress: OnScanProgress = batch.ignore_progress,
    ahead: bool = True,
    extra: ExtraOutputs = NO_EXTRA_OUTPUTS,
    on_organs: OnOrgans | None = None,
    notes: Sequence[str] = (),
    resume: bool = False,
    part: Part = ALL,
    on_skipped: Callable[[Sequence[str]], None] | None = None,
) -> tuple[Failed, ...]:
    """Segment scans into ``out`` with ``summary.csv``, ``review.csv``, ``run.json`` and ``report.html``,
    which also list results of earlier runs there; returns the failed ones.

    Args:
        on_result: called for every processed scan, in order, in the thread that writes.
        on_organs: called before that, in the same thread.
        on_progress, ahead, extra: as in ``inference.batch.segment_batch``.
        notes: on the folders in which the scans were found, for ``run.json``.
        resume: whether scans with complete results in ``out`` (see ``inference.journal``) are skipped.
        part: the part of the scans to be processed; if it is not all of them, the summaries and ``run.json``
            are left to ``inference.gather``.
        on_skipped: receives the ids of the scans that are skipped, before any other is started.

    Raises:
        OutputError: ``out`` cannot be written, or a result would overwrite a scan, another result, or a file
            that no run wrote.
        LabelError: an organ that the model does not have.
        RecipeError: probability maps of a recipe whose stages vote.
        ScanError: DICOM objects for a scan that is not from DICOM.
    """
    scans = tuple(scans)
    wanted = RequestedOutputs.of(predictor.bundle, organs, extra)
    wanted.prepare(scans, out)
    asked = journal.request(out, [scan.id for scan in scans])
    recorder = Recorder(out, predictor, wanted, asked, notes)
    mine = part.of(scans)
    whole = recorder.complete_results(mine) if resume else {}
    if on_skipped is not None:
        on_skipped(tuple(whole))
    rows: list[OrganRow] = []
    run = recorder.header
    failed: list[Failed] = []
    costs: list[dict[str, float]] = []
    account = _Account(out, whole) if part == ALL else None
    began = time.perf_counter()

    def rewrite() -> None:
        if account is not None:
            run["seconds"] = round(time.perf_counter() - began, 3)
            run["efficiency"] = summarise(costs)
            account.write(run, rows)

    if whole:
        rewrite()

    def record(outcome: ScanOutcome) -> None:
        outcome, entry = recorder.record(outcome)
        run["cases"][outcome.case] = entry.account
        match outcome:
            case Segmented():
                rows.extend(entry.rows)
                if on_organs is not None:
                    on_organs(entry.rows)
                costs.append(measures(outcome))
            case Failed():
                failed.append(outcome)
        if account is not None and account.is_due:
            rewrite()
        if on_result is not None:
            on_result(outcome)

    left = [scan for scan in mine if scan.id not in whole]
    try:
        with closing(recorder):
            batch.segment_batch(left, out, predictor, record, wanted.organs, on_progress, ahead, wanted.extra)
    finally:
        if account is not None and (run["cases"] or whole):
            if account.listed < len(run["cases"]):
                rewrite()
            result_page.write(out)
    return tuple(failed)


@dataclass(frozen=True)
class RequestedOutputs:
    """The requested outputs of every scan; names of organs are the model's own."""

    organs: tuple[str, ...]
    extra: ExtraOutputs
    schema: LabelSchema
    recipe: Recipe

    @classmethod
    def of(cls, model: Bundle, organs: tuple[str, ...] | None, extra: ExtraOutputs) -> RequestedOutputs:
        """
        Raises:
            LabelError: an organ that the model does not know.
            RecipeError: probability maps of a recipe whose stages vote.
        """
        schema, recipe = model.schema, model.recipe
        if extra.probabilities:
            require_probabilities(recipe)
            extra = replace(extra, probabilities=schema.select(extra.probabilities))
        return cls(schema.names if organs is None else schema.select(organs), extra, schema, recipe)

    def prepare(self, scans: Sequence[ScanInput], out: Path) -> None:
        """Create the folder, with names and colours of the label values for viewers.

        Raises:
            OutputError: it cannot be written to, or a result would overwrite a scan, another result, or a
                file that no run wrote.
            ScanError: DICOM objects for a scan that is not from DICOM.
        """
        require_series(scans, self.extra.dicom)
        writable_directory(out)
        _spare_files(scans, out, self.recipe, self.extra)
        write_colour_tables(out, self.schema, self.organs)


class Recorder:
    """Records the results of a process's scans in the journal of ``out``."""

    def __init__(
        self,
        out: Path,
        predictor: Predictor,
        wanted: RequestedOutputs,
        scans: str,
        notes: Sequence[str] = (),
        command_keys: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            scans: the scans of the command, as ``journal.request`` returned them.
            command_keys: keys of ``run.json`` given by the command instead of this process.
        """
        self._out, self._predictor, self._wanted = out, predictor, wanted
        self.header = _header(predictor, wanted.organs, notes) | dict(command_keys)
        """``run.json`` without cases."""
        model = predictor.sha256, predictor.bundle.recipe
        self.run = journal.describe(*model, self.header, scans, predictor.any_scan)
        self._journal = Journal(out, self.run)

    def complete_results(self, scans: Sequence[ScanInput]) -> dict[str, Recorded]:
        """As ``inference.journal.complete_results``."""
        wanted = self._wanted
        return journal.complete_results(self._out, scans, self.run, wanted.recipe, wanted.extra)

    def record(self, outcome: ScanOutcome) -> tuple[ScanOutcome, Entry]:
        """Summarise a scan whose results are written, and record it; an error in its summary is a failure of
        that scan.

        Raises:
            OutputError: the journal cannot be written.
        """
        if isinstance(outcome, Segmented):
            done = outcome
            summed = batch.tried(done.case, done.path, lambda: self._summed_up(done))
            if not isinstance(summed, Failed):
                self._remove_outdated(summed[1])
                self._journal.append(summed[1])
                return summed
            with writing(done.path):  # a failed case has no label map of this run
                done.path.unlink(missing_ok=True)
            outcome = summed
        assert isinstance(outcome, Failed)
        entry = failure(outcome)
        self._journal.append(entry)
        return outcome, entry

    def close(self) -> None:
        self._journal.close()

    @functools.cached_property
    def _earlier_files(self) -> dict[str, Mapping[str, str | None]]:
        """``Entry.files`` of the last results of every case, as they were before the first was recorded."""
        return {case: one.entry.files for case, one in journal.finished(self._out).items()}

    def _remove_outdated(self, entry: Entry) -> None:
        """Remove files that an earlier run wrote beside its label map and that were not asked for now, unless
        they were changed since: they do not belong to the new label map."""
        for name, sha256 in self._earlier_files.get(entry.case, {}).items():
            path = self._out / name
            if name not in entry.files and _has_digest(path, sha256):
                with writing(path):
                    path.unlink(missing_ok=True)

    def _summed_up(self, done: Segmented) -> tuple[Segmented, Entry]:
        """The case, with the seconds that the summary took, and its entry."""
        began = time.perf_counter()
        out, wanted, model = self._out, self._wanted, self._predictor.bundle
        rows = organ_rows_of(
            done.case, done.result, done.image, model.calibration, wanted.organs, model.domain
        )
        placed = position_notes({row.organ: row.flags for row in rows})
        files = journal.digests_of_results(out, done.scan, wanted.recipe, wanted.extra)
        summed = time.perf_counter()
        missing = _picture_notes(out, done, wanted.organs)
        took = {"summary": summed - began, "report": time.perf_counter() - summed}
        steps = {step: seconds for step, seconds in done.seconds.items() if step != "total"}
        seconds = steps | took | {"total": done.seconds["total"] + sum(took.values())}
        result = replace(done.result, notes=(*done.result.notes, *placed, *missing))
        done = replace(done, result=result, seconds=seconds)
        return done, Entry(
            case=done.case,
            finished=time.time(),
            account={"scan": relative_paths(out, done.scan.paths), **_account(done, wanted.extra)},
            rows=tuple(rows),
            scan_sha256=done.scan_sha256,
            files=files,
        )


def _has_digest(path: Path, sha256: str | None) -> bool:
    try:
        return digests.of_files([path]) == sha256
    except OSError:
        return False


def failure(failed: Failed) -> Entry:
    """Record a scan that could not be segmented."""
    account = {"status": "failed", "error": failed.reason}
    return Entry(case=failed.case, finished=time.time(), account=account)


def _picture_notes(out: Path, done: Segmented, organs: tuple[str, ...]) -> list[str]:
    """Draw a case for the page; returns a note if that was not possible, as its results exist all the
    same."""
    found = batch.tried(
        done.case,
        done.path,
        lambda: result_page.draw(out, done.case, done.image, done.result.labels, organs),
    )
    return [f"no pictures: {found.reason}"] if isinstance(found, Failed) else []


def relative_paths(out: Path, paths: Iterable[Path]) -> list[str]:
    """Paths relative to the folder of results, so that both can be moved together; absolute if there is no
    relative one. In a name that is not UTF-8, which JSON cannot represent, the invalid bytes are escaped."""
    found = []
    for path in paths:
        try:
            found.append(printable(Path(os.path.relpath(path, out)).as_posix()))
        except ValueError:  # another drive
            found.append(printable(str(path.resolve())))
    return found


class _Account:
    """The summaries of a run and of others in its folder: the latter are read again only if they were changed
    since, as they grow with every case."""

    def __init__(self, out: Path, whole: Mapping[str, Recorded]) -> None:
        """
        Args:
            whole: results of earlier runs, which may not be in any summary yet.
        """
        self._out = out
        self._whole = whole
        self._earlier = EarlierResults()
        self._written: tuple[int, int, int] | None = None
        self._due = 0.0
        self.listed = 0
        """Number of cases of the run when the summaries were last written."""

    @property
    def is_due(self) -> bool:
        """Whether writing them again stays within ``WRITING_SHARE`` of the time."""
        return time.monotonic() >= self._due

    def write(self, run: dict[str, Any], rows: Sequence[OrganRow]) -> None:
        out, file, began = self._out, self._out / RUN_JSON, time.monotonic()
        with waiting_for(out):
            if self._written is None or _version(file) != self._written:
                found = earlier_results.read(out, run)
                self._earlier = earlier_results.of_journal(self._whole.values(), run).over(found)
            self._earlier = earlier = self._earlier.besides(run["cases"], out)
            write_account(out, run, earlier, rows)
            self._written = _version(file)
        self.listed = len(run["cases"])
        self._due = time.monotonic() + (time.monotonic() - began) / WRITING_SHARE


def write_account(
    out: Path, run: Mapping[str, Any], earlier: EarlierResults, rows: Sequence[OrganRow]
) -> None:
    """Write ``summary.csv``, ``review.csv`` and ``run.json`` of a run and of others in its folder.

    Raises:
        OutputError: one cannot be written.
    """
    write_summary(out / SUMMARY, [*earlier.rows, *rows])
    write_review(out / "review.csv", [*earlier.rows, *rows])
    write_json_atomic(out / RUN_JSON, {**run, "cases": earlier.with_cases(run["cases"])})


def _version(path: Path) -> tuple[int, int, int] | None:
    """Changes with every atomic write; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _spare_files(scans: Iterable[ScanInput], out: Path, recipe: Recipe, extra: ExtraOutputs) -> None:
    """Raise an error if a result would overwrite a scan, another result, or a file of somebody else."""
    scans = tuple(scans)
    read = {_identity(path) for scan in scans for path in _files(scan)} - {None}
    written: dict[str, str] = {}
    there: dict[str, Path] = {}
    for scan in scans:
        for result in (result_path(out, scan), *extra.paths(out, scan, recipe)):
            if _identity(result) in read:
                raise OutputError(f"{result}: is the scan itself; choose another folder for the results")
            name = folded(str(result.relative_to(out)))
            if name in written:
                both = f"'{written[name]}' and '{scan.id}'"
                raise OutputError(f"{result}: would be a result of both {both}; rename one of the scans")
            written[name] = scan.id
            if os.path.lexists(result):
                there.setdefault(scan.id, result)
    known = earlier_results.known_cases(out) if there else frozenset()
    for case, result in there.items():
        if case not in known:
            what = "was not written by `zoomseg predict`, and would be replaced"
            raise OutputError(f"{result}: {what}; move it, or choose another folder for the results")


def _files(scan: ScanInput) -> Iterator[Path]:
    """The files of a scan; for DICOM in a folder, including every slice's file."""
    yield from scan.paths
    if scan.dicom is not None:
        yield from scan.dicom.paths


def _identity(path: Path) -> tuple[int, int] | None:
    """A file's identity, independent of its name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _header(predictor: Predictor, organs: tuple[str, ...], notes: Sequence[str]) -> dict[str, Any]:
    device = predictor.device
    where = {"device": device.name, "precision": device.precision, "backend": predictor.backend}
    return header(predictor.bundle, predictor.folders, where, organs, notes)


def header(
    model: Bundle,
    folders: Iterable[str | Path],
    where: Mapping[str, str],
    organs: tuple[str, ...],
    notes: Sequence[str],
) -> dict[str, Any]:
    """``run.json`` without cases. ``labels`` names only the requested organs, so that an evaluation scores no
    others.

    Args:
        folders: of the models.
        where: ``device``, ``precision`` and ``backend``.
    """
    schema = model.schema
    return {
        "zoomseg": importlib.metadata.version("zoomseg"),
        "recipe": model.recipe.name,
        "recipe_in_full": model.recipe.model_dump(mode="json"),
        "models": [str(folder) for folder in folders],
        "trained": {key: model.provenance[key] for key in TRAINED if key in model.provenance},
        **{key: where[key] for key in ("device", "precision", "backend")},
        "started": time.strftime(STARTED_FORMAT, time.gmtime()),
        "seconds": 0.0,
        "efficiency": {},
        "labels": {BACKGROUND: 0} | {name: schema.values[schema.names.index(name)] for name in organs},
        "notes": list(notes),
        "cases": {},
    }


def _account(done: Segmented, extra: ExtraOutputs) -> dict[str, Any]:
    maps = probability_maps.paths(Path(), done.case, extra.probabilities)
    return {
        "status": "done",
        "notes": list(done.result.notes),
        "seconds": {step: round(value, 3) for step, value in done.seconds.items()},
        "stages": [asdict(record) for record in done.result.records],
        "probabilities": {organ: path.as_posix() for organ, path in maps.items()},
        "flops": sum(record.flops for record in done.result.records),
        **{measure: value for measure, value in measures(done).items() if measure != "seconds"},
    }
