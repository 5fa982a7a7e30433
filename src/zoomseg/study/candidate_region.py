"""Sensitivity and false-positive rate of a candidate region as a function of the dilation radius (Roth et al.
2018, Comput Med Imaging Graph 66:90-99, Section 2.2 and Fig. 6)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Index3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.evaluation.figures import literal
from zoomseg.evaluation.result import mean
from zoomseg.inference.batch import Failed, tried
from zoomseg.inference.html_page import number
from zoomseg.inference.predictor import Predictor
from zoomseg.io.files import parse_json, read_file, writable_directory, write_json_atomic, write_text_atomic
from zoomseg.io.tables import csv_text, number_cell
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.grid import label_blocks
from zoomseg.pipeline.reference import stage_labels
from zoomseg.pipeline.roi import dilated_foreground
from zoomseg.recipe import graph
from zoomseg.study.ablations import RegionCurve
from zoomseg.study.report_page import Plot, Sheet, StudyReport, html, markdown
from zoomseg.study.run import notes
from zoomseg.study.steps import steps_note, training_steps
from zoomseg.study.trainings import Trainings

MEAN = "mean"
PUBLISHED_RADIUS = 3
PUBLISHED_SENSITIVITY = 0.99
PUBLISHED_FALSE_POSITIVES = 0.10
"""Section 2.2: at r = 3 "high recall (>99%) and low false-positive rates (~10%)"."""

COLUMNS = ("split", "organ", "radius_vox", "sensitivity", "false_positive_rate", "cases")

Coverage = Mapping[str, tuple[tuple[float, float], ...]]
"""Organ -> (sensitivity, false-positive rate) at each radius."""


@dataclass(frozen=True)
class Point:
    """One organ (or the mean of organs) at one radius: means over cases."""

    split: str
    organ: str
    radius_vox: int
    sensitivity: float
    false_positive_rate: float
    cases: int


def coverage(
    prediction: StagePrediction,
    reference: LabelMap,
    schema: LabelSchema,
    radii_vox: Sequence[int],
    organs: Sequence[str],
    blocks: Index3,
) -> Coverage:
    """For each organ of the reference: the share of its voxels inside the dilated foreground, and the share
    of all other voxels of the stage's grid inside it.

    Args:
        prediction: of the stage; its region is on the grid on which everything is counted.
        reference: on the same scan, canonical axes.
        blocks: of the reference, in each voxel of that grid, as in ``reference.stage_labels``.
    """
    grid = prediction.region.grid
    truth = stage_labels(reference, schema.names, grid, blocks)
    out: dict[str, list[tuple[float, float]]] = {}
    for radius in radii_vox:
        region = dilated_foreground(prediction, grid, radius)
        inside = None if region is None else region.mask_in(grid.box)
        for organ in organs:
            own = truth == schema.class_of(organ)
            if not own.any():
                continue
            hit, wrong = (0, 0) if inside is None else (int(inside[own].sum()), int(inside[~own].sum()))
            rest = max(1, own.size - int(own.sum()))
            out.setdefault(organ, []).append((hit / int(own.sum()), wrong / rest))
    return {organ: tuple(values) for organ, values in out.items()}


def run_curve(study: RegionCurve, trainings: Trainings) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """Train the stage, evaluate all training and held-out cases, write table, plot and report.

    Returns the points and the cases that failed, one line each.

    Raises:
        InterruptedTrainingError: stopped; the next call continues.
        ScanError: no case could be evaluated.
        OutputError: ``trainings.out`` cannot be written.
    """
    found: dict[str, list[Coverage]] = {"training": [], "validation": []}
    failed: list[str] = []
    images = {case.id: case.images[0] for case in trainings.dataset.cases}
    for fold in trainings.folds:
        split = trainings.split(fold)
        covered = _case_coverage(study, trainings, fold)
        for name, ids in (("training", split.train), ("validation", split.validation)):
            for done, case_id in enumerate(ids, start=1):
                trainings.observer.say(f"{name} case {done} of {len(ids)}, fold {fold}: {case_id}")
                outcome = tried(case_id, images[case_id], partial(covered, case_id))
                if isinstance(outcome, Failed):
                    failed.append(f"{case_id}, fold {fold}: {outcome.reason}")
                else:
                    found[name].append(outcome)
    points = tuple(p for name, cases in found.items() for p in summarise(name, cases, study.radii_vox))
    if not points:
        raise ScanError(f"the candidate region could not be computed in any case; {failed[0]}")
    steps = training_steps(trainings, study.training)
    budget = [steps_note(study.training.id, (), steps, len(trainings.folds))] if steps else []
    _write(trainings.out, study, points, [*notes(trainings), *budget])
    return points, tuple(failed)


def _case_coverage(study: RegionCurve, trainings: Trainings, fold: int) -> Callable[[str], Coverage]:
    """One case's coverage by its id, from disk if it is known."""
    folder = writable_directory(trainings.out / "coverage" / f"fold-{fold}")
    files = {case.id: case for case in trainings.dataset.cases}
    model = trainings.model(study.training, fold)
    predictor = Predictor(model, trainings.device, any_scan=True)
    blocks = label_blocks(graph.stage_of(model.recipe, study.stage).grid)

    def covered(case_id: str) -> Coverage:
        file = folder / f"{case_id}.json"
        known = _read(file, len(study.radii_vox))
        if known is not None:
            return known
        case = trainings.dataset.load(files[case_id])
        prediction = predictor.predict(Case(case.id, case.image)).stages.get(study.stage)
        scan = stage_input.prepare(case, model.recipe)
        if prediction is None or scan.labels is None:
            raise ScanError(f"stage '{study.stage}' had an empty region in case {case_id}")
        annotated = [n for n in prediction.labels if case.annotated is None or n in case.annotated]
        result = coverage(prediction, scan.labels, model.schema, study.radii_vox, annotated, blocks)
        write_json_atomic(file, {organ: [list(v) for v in values] for organ, values in result.items()})
        return result

    return covered


def _read(file: Path, radii: int) -> Coverage | None:
    try:
        data = parse_json(read_file(file))
        known = {o: tuple((float(a), float(b)) for a, b in values) for o, values in data.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return known if all(len(values) == radii for values in known.values()) else None


def summarise(split: str, cases: Sequence[Coverage], radii_vox: Sequence[int]) -> list[Point]:
    """Per organ the mean over cases with it, then the mean of the organs, at each radius."""
    points: list[Point] = []
    organs = list(dict.fromkeys(organ for case in cases for organ in case))
    for n, radius in enumerate(radii_vox):
        here = []
        for organ in organs:
            values = [case[organ][n] for case in cases if organ in case]
            sensitivity, false_positives = (mean(v[i] for v in values) for i in (0, 1))
            here.append(Point(split, organ, radius, sensitivity, false_positives, len(values)))
        if here:
            total = (mean(p.sensitivity for p in here), mean(p.false_positive_rate for p in here))
            points += [Point(split, MEAN, radius, *total, len(cases)), *here]
    return points


# --- files ----------------------------------------------------------------------------------------


def _write(out: Path, study: RegionCurve, points: Sequence[Point], made: Sequence[str]) -> None:
    write_text_atomic(out / "table.csv", _csv(points))
    splits = list(dict.fromkeys(p.split for p in points))
    page = StudyReport(
        f"{study.name}: candidate region over dilation radius",
        [_finding(split, points) for split in splits],
        [f"The paper's numbers: {study.source}, and Section 2.2.", *_DEFINITIONS, *made],
        [_sheet(split, points) for split in splits],
    )
    write_text_atomic(out / "table.md", markdown(page))
    plotted = Plot("Sensitivity and false-positive rate over r", plot(points))
    write_text_atomic(
        out / "report.html", html(StudyReport(page.title, page.findings, page.notes, page.sheets, [plotted]))
    )


_DEFINITIONS = (
    "Sensitivity of an organ: the share of its reference voxels that lie in the candidate region (all "
    "predicted foreground, dilated by a ball of r voxels). False-positive rate: of all voxels that are not "
    "of this organ, the share that lies in the region. Both on the stage's grid, over the whole scan.",
    "A case in which the stage finds nothing counts as sensitivity 0 and false-positive rate 0.",
)


def _finding(split: str, points: Sequence[Point]) -> str:
    at = [p for p in points if p.split == split and p.organ == MEAN and p.radius_vox == PUBLISHED_RADIUS]
    if not at:
        return f"{split} cases: no organ is annotated in any of them."
    sensitivity, wrong = at[0].sensitivity, at[0].false_positive_rate
    reached = sensitivity > PUBLISHED_SENSITIVITY and round(wrong, 2) <= PUBLISHED_FALSE_POSITIVES
    return (
        f"{split} cases at r = {PUBLISHED_RADIUS}: sensitivity {number(sensitivity, 3)} (paper: over "
        f"{PUBLISHED_SENSITIVITY}), false-positive rate {number(wrong, 3)} (paper: about "
        f"{PUBLISHED_FALSE_POSITIVES:.2f}); the paper's trade-off is {'' if reached else 'not '}reached."
    )


def _csv(points: Sequence[Point]) -> str:
    rows = []
    for p in points:
        scores = (number_cell(v) for v in (p.sensitivity, p.false_positive_rate))
        rows.append([p.split, p.organ, p.radius_vox, *scores, p.cases])
    return csv_text(COLUMNS, rows)


def _sheet(split: str, points: Sequence[Point]) -> Sheet:
    own = [p for p in points if p.split == split]
    organs = list(dict.fromkeys(p.organ for p in own))
    rows = []
    for radius in dict.fromkeys(p.radius_vox for p in own):
        at = {p.organ: p for p in own if p.radius_vox == radius}
        cells = (f"{number(at[o].sensitivity, 3)} / {number(at[o].false_positive_rate, 3)}" for o in organs)
        rows.append((f"{radius}", *cells))
    return Sheet(f"Sensitivity / false-positive rate, {split} cases", ("r (voxels)", *organs), tuple(rows))


def plot(points: Sequence[Point]) -> bytes:
    """PNG: columns training and validation, rows sensitivity and false-positive rate, one line per organ."""
    splits = list(dict.fromkeys(p.split for p in points))
    figure = Figure(figsize=(4.9 * len(splits), 7.2), facecolor="white", layout="constrained")
    panels = figure.subplots(2, len(splits), sharex=True, sharey="row", squeeze=False)
    for column, split in enumerate(splits):
        for row, value in enumerate(("sensitivity", "false_positive_rate")):
            _draw(panels[row][column], [p for p in points if p.split == split], value)
        panels[0][column].set_title(f"{split} cases")
        panels[1][column].set_xlabel("dilation radius r (voxels)")
    panels[0][0].set_ylabel("sensitivity")
    panels[1][0].set_ylabel("false-positive rate")
    panels[0][-1].legend(frameon=False, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def _draw(panel: Axes, points: Sequence[Point], value: str) -> None:
    for organ in dict.fromkeys(p.organ for p in points):
        own = [p for p in points if p.organ == organ]
        style = {"color": "black", "linewidth": 2.5} if organ == MEAN else {"linewidth": 1.2}
        radii, values = [p.radius_vox for p in own], [getattr(p, value) for p in own]
        panel.plot(radii, values, label=literal(organ), **style)
    panel.grid(color="#e8edf1")
    panel.set_axisbelow(True)
