"""What a batch of predictions leaves beside the label maps: ``summary.csv``, ``review.csv``, ``run.json``,
``report.html``, and names and colours of their values for viewers.

The first three are rewritten after every case: a batch that is stopped keeps the account of what it did. They
go on listing the label maps of earlier runs, and of others at the same time.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from zoomseg.core.errors import OutputError
from zoomseg.core.labels import BACKGROUND
from zoomseg.inference import batch, earlier_results, probability_maps, result_page
from zoomseg.inference.batch import (
    LABELS_ALONE,
    ExtraOutputs,
    Failed,
    OnScanProgress,
    Outcome,
    Segmented,
    result_path,
)
from zoomseg.inference.confidence import organ_rows_of
from zoomseg.inference.earlier_results import EarlierResults
from zoomseg.inference.efficiency import measures, summarise
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.summary import OrganRow, write_review, write_summary
from zoomseg.io.dicom.write.results import require_series
from zoomseg.io.files import writable_directory, write_json_atomic
from zoomseg.io.locks import waiting_for
from zoomseg.io.scans import ScanInput
from zoomseg.io.seg_nrrd import write_colour_tables
from zoomseg.pipeline.probability_map import require_probabilities
from zoomseg.recipe.spec import Recipe

TRAINED = ("data_set", "date", "seconds", "device", "seed", "zoomseg")
"""What a run tells of its model's provenance; not the names of the cases."""

OnOrgans = Callable[[Sequence[OrganRow]], None]
"""Gets the rows of a scan."""


def segment_to_folder(
    scans: Iterable[ScanInput],
    out: Path,
    predictor: Predictor,
    organs: tuple[str, ...] | None = None,
    on_result: Callable[[Outcome], None] | None = None,
    on_progress: OnScanProgress = batch.ignore_progress,
    ahead: bool = True,
    beside: ExtraOutputs = LABELS_ALONE,
    on_organs: OnOrgans | None = None,
    notes: Sequence[str] = (),
) -> tuple[Failed, ...]:
    """Segment scans into ``out`` with ``summary.csv``, ``review.csv``, ``run.json`` and ``report.html``,
    which also list what earlier runs left there; the failed ones are returned.

    Args:
        on_result: told of every scan that is done with, in order, in the thread that writes.
        on_organs: before that, in the same thread.
        on_progress, ahead, beside: as in ``inference.batch.segment``.
        notes: on the folders that the scans were found in, for ``run.json``.

    Raises:
        OutputError: ``out`` cannot be written, or a result would overwrite a scan or another result.
        LabelError: an organ that the model does not know.
        RecipeError: probability maps of a recipe whose stages vote.
        ScanError: DICOM objects of a scan that did not come as such.
    """
    scans = tuple(scans)
    require_series(scans, beside.dicom)
    schema = predictor.bundle.schema
    if beside.probabilities:
        require_probabilities(predictor.bundle.recipe)
        beside = replace(beside, probabilities=schema.select(beside.probabilities))
    chosen = schema.names if organs is None else schema.select(organs)
    writable_directory(out)
    _spare_files(scans, out, predictor.bundle.recipe, beside)
    write_colour_tables(out, schema, chosen)
    rows: list[OrganRow] = []
    run = _header(predictor, chosen, notes)
    failed: list[Failed] = []
    costs: list[dict[str, float]] = []
    given = {scan.id: scan for scan in scans}
    account = _Account(out)
    began = time.perf_counter()

    def settle(outcome: Outcome) -> None:
        if isinstance(outcome, Segmented):
            done = outcome
            summed = batch.tried(done.case, done.path, lambda: _summed_up(done, out, predictor, chosen))
            found, outcome = ([], summed) if isinstance(summed, Failed) else summed
        match outcome:
            case Segmented():
                rows.extend(found)
                if on_organs is not None:
                    on_organs(found)
                run["cases"][outcome.case] = {
                    "scan": _from(out, given[outcome.case].paths),
                    **_account(outcome, beside),
                }
                costs.append(measures(outcome))
            case Failed():
                failed.append(outcome)
                run["cases"][outcome.case] = {"status": "failed", "error": outcome.reason}
        run["seconds"] = round(time.perf_counter() - began, 3)
        run["efficiency"] = summarise(costs)
        account.write(run, rows)
        if on_result is not None:
            on_result(outcome)

    try:
        batch.segment(scans, out, predictor, settle, chosen, on_progress, ahead, beside)
    finally:
        if run["cases"]:
            result_page.write(out)
    return tuple(failed)


def _drawn(out: Path, done: Segmented, organs: tuple[str, ...]) -> list[str]:
    """Draw a case for the page; a note where that was not possible, as its results are there all the same."""
    found = batch.tried(
        done.case,
        done.path,
        lambda: result_page.draw(out, done.case, done.image, done.result.labels, organs),
    )
    return [f"no pictures: {found.reason}"] if isinstance(found, Failed) else []


def _from(out: Path, paths: Iterable[Path]) -> list[str]:
    """Paths as seen from the folder of results, so that both can be moved together; absolute ones where there
    is no way from there."""
    found = []
    for path in paths:
        try:
            found.append(Path(os.path.relpath(path, out)).as_posix())
        except ValueError:  # another drive
            found.append(str(path.resolve()))
    return found


class _Account:
    """Of a run, and of what others left or leave in its folder meanwhile: read again only where another than
    this run has written since, as it grows with every case."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._earlier = EarlierResults()
        self._written: tuple[int, int, int] | None = None

    def write(self, run: dict[str, Any], rows: Sequence[OrganRow]) -> None:
        out, file = self._out, self._out / "run.json"
        with waiting_for(out):
            if self._written is None or _version(file) != self._written:
                self._earlier = earlier_results.read(out, run)
            self._earlier = earlier = self._earlier.besides(run["cases"], out)
            write_summary(out / "summary.csv", [*earlier.rows, *rows])
            write_review(out / "review.csv", [*earlier.rows, *rows])
            write_json_atomic(file, {**run, "cases": {**earlier.cases, **run["cases"]}})
            self._written = _version(file)


def _version(path: Path) -> tuple[int, int, int] | None:
    """Another one after every atomic write; None of no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _spare_files(scans: Iterable[ScanInput], out: Path, recipe: Recipe, beside: ExtraOutputs) -> None:
    """No result may replace a scan or another result."""
    scans = tuple(scans)
    read = {_identity(path) for scan in scans for path in _files(scan)} - {None}
    written: dict[Path, str] = {}
    for scan in scans:
        for result in (result_path(out, scan), *beside.paths(out, scan, recipe)):
            if _identity(result) in read:
                raise OutputError(f"{result}: is the scan itself; choose another folder for the results")
            if result in written:
                both = f"'{written[result]}' and '{scan.id}'"
                raise OutputError(f"{result}: would be a result of both {both}; rename one of the scans")
            written[result] = scan.id


def _files(scan: ScanInput) -> Iterator[Path]:
    """What a scan is read from; of DICOM in a folder, every slice's file, too."""
    yield from scan.paths
    if scan.dicom is not None:
        yield from scan.dicom.paths


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file is known by under any name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _header(predictor: Predictor, organs: tuple[str, ...], notes: Sequence[str]) -> dict[str, Any]:
    """``labels`` names only the organs asked for, so that an evaluation scores no other."""
    schema = predictor.bundle.schema
    return {
        "zoomseg": importlib.metadata.version("zoomseg"),
        "recipe": predictor.bundle.recipe.name,
        "recipe_in_full": predictor.bundle.recipe.model_dump(mode="json"),
        "models": [str(folder) for folder in predictor.folders],
        "trained": {
            key: predictor.bundle.provenance[key] for key in TRAINED if key in predictor.bundle.provenance
        },
        "device": predictor.device.name,
        "precision": predictor.device.precision,
        "backend": predictor.backend,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": 0.0,
        "efficiency": {},
        "labels": {BACKGROUND: 0} | {name: schema.values[schema.names.index(name)] for name in organs},
        "notes": list(notes),
        "cases": {},
    }


def _summed_up(
    done: Segmented, out: Path, predictor: Predictor, organs: tuple[str, ...]
) -> tuple[list[OrganRow], Segmented]:
    """The rows of a case, and the case with the seconds that they and its pictures took."""
    began = time.perf_counter()
    model = predictor.bundle
    rows = organ_rows_of(done.case, done.result, done.image, model.calibration, organs, model.domain)
    summed = time.perf_counter()
    missing = _drawn(out, done, organs)
    took = {"summary": summed - began, "report": time.perf_counter() - summed}
    steps = {step: seconds for step, seconds in done.seconds.items() if step != "total"}
    seconds = steps | took | {"total": done.seconds["total"] + sum(took.values())}
    result = replace(done.result, notes=(*done.result.notes, *missing))
    return rows, replace(done, result=result, seconds=seconds)


def _account(done: Segmented, beside: ExtraOutputs) -> dict[str, Any]:
    maps = {o: probability_maps.path(Path(), done.case, o).as_posix() for o in beside.probabilities}
    return {
        "status": "done",
        "notes": list(done.result.notes),
        "seconds": {step: round(value, 3) for step, value in done.seconds.items()},
        "stages": [asdict(record) for record in done.result.records],
        "probabilities": maps,
        "flops": sum(record.flops for record in done.result.records),
        **{measure: value for measure, value in measures(done).items() if measure != "seconds"},
    }
