"""Validation of a trained model on the held-out cases: prediction, scores, and calibration of its
confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoomseg.backends.device import Device
from zoomseg.core.errors import ScanError
from zoomseg.datasets.layouts import Dataset
from zoomseg.evaluation.calibration import calibrate, scored
from zoomseg.evaluation.evaluate import evaluate
from zoomseg.evaluation.result import Evaluation, UnscoredCase
from zoomseg.inference.batch import ExtraOutputs, Failed, ScanOutcome, Segmented
from zoomseg.inference.outputs import segment_to_folder
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.summary import OrganRow
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle
from zoomseg.io.scans import ScanInput
from zoomseg.training import record

FOLDER = "validation"
"""In the model's folder."""


@dataclass(frozen=True)
class Validation:
    """Scores of the held-out cases, and the cases that could not be segmented."""

    scores: Evaluation
    failed: tuple[Failed, ...]


def validate_held_out(dataset: Dataset, out: Path, model: Bundle, device: Device) -> Validation | None:
    """``validate`` the trained model in ``out`` on the cases that its training held out; None if there are
    none."""
    held_out = model.provenance["validation_cases"]
    if not isinstance(held_out, list) or not held_out:
        return None
    return validate(dataset, out, [str(case) for case in held_out], device)


def validate(dataset: Dataset, out: Path, held_out: Sequence[str], device: Device) -> Validation:
    """Predict and score the cases ``held_out`` with the model in ``out``, into ``out/validation``, and
    calibrate the model's confidence on them; the calibration is written to the model.

    Raises:
        ScanError: none of them could be segmented, or scored.
        OutputError: nothing can be written there, or another process trains there.
    """
    with record.locked_folder(out):
        return _validate(dataset, out, held_out, device)


def _validate(dataset: Dataset, out: Path, held_out: Sequence[str], device: Device) -> Validation:
    cases, folder, model = dataset.subset(held_out), out / FOLDER, bundle.load(out)
    predictor = Predictor(replace(model, calibration=None), device, any_scan=True)
    rows: list[OrganRow] = []
    expected_dice: dict[tuple[str, str], float] = {}

    def keep(outcome: ScanOutcome) -> None:
        if isinstance(outcome, Segmented):  # before it is lowered for an unlike scan
            expected_dice.update(
                {(outcome.case, name): dice for name, dice in outcome.result.confidence.items()}
            )

    failed = segment_to_folder(
        [ScanInput(case.id, case.images) for case in cases.cases],
        folder / "predictions",
        predictor,
        on_result=keep,
        extra=ExtraOutputs(stages=True),
        on_organs=rows.extend,
    )
    if len(failed) == len(cases.cases):
        reason = f"none of {len(failed)} held-out cases could be segmented; {failed[0].reason}"
        raise ScanError(reason)
    log, without = out / "training" / "metrics.csv", {failure.case for failure in failed}
    # Without those that failed now, of which there may be earlier predictions.
    segmented = dataset.subset(case for case in held_out if case not in without)
    scores = evaluate(
        folder / "predictions",
        segmented,
        folder,
        training_log=log,
        unsegmented=[UnscoredCase(failure.case, failure.reason) for failure in failed],
    )
    found = {(row.case, row.organ) for row in rows if row.confidence is not None}
    known = scored({key: dice for key, dice in expected_dice.items() if key in found}, scores)
    bundle.save(replace(model, calibration=calibrate(known)), out)
    return Validation(scores, failed)
