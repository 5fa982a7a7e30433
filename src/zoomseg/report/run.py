"""What a batch of predictions leaves beside the label maps: ``summary.csv`` and ``run.json``.

Both are rewritten after every case, so that a batch that is stopped keeps the account of what it did.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoomseg.core.errors import OutputError
from zoomseg.core.labels import BACKGROUND
from zoomseg.engine.batch import Done, Failed, result_path, segment
from zoomseg.engine.predict import Predictor
from zoomseg.io.files import writable_directory, write_json_atomic
from zoomseg.io.scans import ScanInput
from zoomseg.report.summary import OrganRow, organ_rows, write_summary


def segment_to_folder(
    scans: Iterable[ScanInput],
    out: Path,
    predictor: Predictor,
    organs: tuple[str, ...] | None = None,
    progress: Callable[[Done | Failed], None] | None = None,
) -> tuple[Failed, ...]:
    """Segment scans into ``out`` with ``summary.csv`` and ``run.json``; the failed ones are returned.

    Raises:
        OutputError: ``out`` cannot be written, or a result would overwrite its scan.
        LabelError: an organ that the model does not know.
    """
    scans = tuple(scans)
    schema = predictor.bundle.schema
    chosen = schema.names if organs is None else schema.select(organs)
    writable_directory(out)
    _spare_scans(scans, out)
    rows: list[OrganRow] = []
    run = _header(predictor, chosen)
    failed: list[Failed] = []
    for outcome in segment(scans, out, predictor, chosen):
        match outcome:
            case Done():
                result = outcome.result
                rows += organ_rows(outcome.case, result.labels, outcome.image, result.confidence, chosen)
                run["cases"][outcome.case] = _account(outcome)
            case Failed():
                failed.append(outcome)
                run["cases"][outcome.case] = {"status": "failed", "error": outcome.reason}
        write_summary(out / "summary.csv", rows)
        write_json_atomic(out / "run.json", run)
        if progress is not None:
            progress(outcome)
    return tuple(failed)


def _spare_scans(scans: Iterable[ScanInput], out: Path) -> None:
    for scan in scans:
        result = result_path(out, scan)
        if any(result.exists() and path.samefile(result) for path in scan.paths if path.exists()):
            raise OutputError(f"{result}: is the scan itself; choose another folder for the results")


def _header(predictor: Predictor, organs: tuple[str, ...]) -> dict[str, Any]:
    """``labels`` names only the organs asked for, so that an evaluation scores no other."""
    schema = predictor.bundle.schema
    return {
        "zoomseg": importlib.metadata.version("zoomseg"),
        "recipe": predictor.bundle.recipe.name,
        "device": predictor.device.name,
        "precision": str(predictor.device.precision or "float32").removeprefix("torch."),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "labels": {BACKGROUND: 0} | {name: schema.values[schema.names.index(name)] for name in organs},
        "cases": {},
    }


def _account(done: Done) -> dict[str, Any]:
    return {
        "status": "done",
        "seconds": {step: round(value, 3) for step, value in done.seconds.items()},
        "stages": [asdict(record) for record in done.result.records],
        **{measure: round(value, 1) for measure, value in asdict(done.usage).items()},
    }
