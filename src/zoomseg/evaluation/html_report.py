"""``report.html``: one self-contained file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoomseg.core.errors import DatasetError
from zoomseg.evaluation.attribution import BOUNDARY_MM, LOSSES, OF_REGIONS
from zoomseg.evaluation.figures import (
    Curve,
    dice_by_organ,
    losses_by_organ,
    training_curves,
    without_figures,
)
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation
from zoomseg.inference.html_page import page

MAX_LOG_BYTES = 64 * 1024**2


PARTS = {
    "missed by the coarse stage": "#8f2d56",
    "cut by the region": "#d9822b",
    "at the boundary": "#8fbcd0",
    "elsewhere": "#1f6f8b",
}
"""Names of the losses, in the order of ``LOSSES``, and their colours."""


@dataclass(frozen=True)
class Picture:
    """An organ's contours; ``note`` describes particularities of the drawing."""

    organ: OrganScore
    png: bytes
    note: str = ""


@dataclass(frozen=True)
class CasePictures:
    """All organs of a case in the reference and in the prediction (JPEG), on the slices ``where``, and the
    contours of some."""

    case: CaseResult
    reference: bytes
    prediction: bytes
    where: str
    organs: tuple[Picture, ...] = ()
    note: str = ""


def render(
    evaluation: Evaluation,
    pictures: Sequence[CasePictures],
    training_log: Path | None = None,
    provenance: Mapping[str, object] | None = None,
    recipe: str = "",
) -> str:
    """The whole page. All file names, labels and ``provenance`` are escaped. ``recipe``: of the predictions,
    as YAML.

    Raises:
        DatasetError: the training log cannot be read.
    """
    dice = {organ: [s.dice for s in evaluation.scores_of(organ)] for organ in evaluation.organs}
    curves = read_curves(training_log) if training_log is not None else []
    drawn = not without_figures()
    return page(
        "zoomseg.evaluation",
        "report.html",
        provenance or {},
        evaluation=evaluation,
        mean=evaluation.mean,
        rows=evaluation.summary,
        dice_plot=dice_by_organ(dice) if drawn else None,
        loss_plot=_loss_plot(evaluation) if drawn and evaluation.attributed else None,
        with_regions=evaluation.with_regions,
        boundary_mm=BOUNDARY_MM,
        pictures=pictures,
        training_plot=training_curves(curves) if drawn and curves else None,
        recipe=recipe,
    )


def _loss_plot(evaluation: Evaluation) -> bytes:
    """For one-stage models, only the losses that they can have."""
    shown = {
        part: (loss, colour)
        for loss, (part, colour) in zip(LOSSES, PARTS.items(), strict=True)
        if evaluation.with_regions or loss not in OF_REGIONS
    }
    lost = {row.organ: [getattr(row, loss) for loss, _ in shown.values()] for row in evaluation.summary}
    return losses_by_organ(lost, {part: colour for part, (_, colour) in shown.items()})


def read_curves(training_log: Path) -> list[Curve]:
    """Curves of a training's ``metrics.csv``: one per stage and split, with the steps of a stage in several
    groups one after the other. Incomplete rows (of a training that was killed, or still runs) are ignored.

    Raises:
        DatasetError: not readable, or without the columns step, loss and dice.
    """
    try:
        if training_log.stat().st_size > MAX_LOG_BYTES:
            raise DatasetError(f"{training_log}: larger than {MAX_LOG_BYTES} bytes; not a training log")
        with training_log.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if not {"step", "loss", "dice"} <= set(table.fieldnames or ()):
                raise DatasetError(f"{training_log}: a training log has the columns step, loss and dice")
            points = _points(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{training_log}: the training log cannot be read ({error})") from error
    return [Curve(name, *(tuple(v) for v in zip(*rows, strict=True))) for name, rows in points.items()]


def _points(table: csv.DictReader[str]) -> dict[str, list[tuple[float, float, float]]]:
    """Step, loss and Dice of each curve; a stage's steps are counted on from its former groups."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    counts: dict[str | None, _StepCount] = {}
    for row in table:
        try:
            step, loss, dice = (float(row[column]) for column in ("step", "loss", "dice"))
        except (TypeError, ValueError):
            continue
        if math.isfinite(step):
            count = counts.get(row.get("stage"), _StepCount(row.get("group"))).reached(row.get("group"), step)
            counts[row.get("stage")] = count
            name = " · ".join(filter(None, (row.get("stage"), row.get("split")))) or "training"
            points.setdefault(name, []).append((count.before + step, loss, dice))
    return points


@dataclass(frozen=True)
class _StepCount:
    """Steps of a stage: those ``before`` its present ``group``, and the ``last`` one in it."""

    group: str | None
    before: float = 0.0
    last: float = 0.0

    def reached(self, group: str | None, step: float) -> _StepCount:
        if group == self.group:
            return replace(self, last=max(step, self.last))
        return _StepCount(group, self.before + self.last, max(step, 0.0))
