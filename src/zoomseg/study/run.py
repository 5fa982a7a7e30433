"""A paper's ablation on a data set: train what its rows need, predict and score the held-out cases, tabulate.

```
OUT/study.json                               the request
OUT/runs/<training>/fold-<n>/                a model with its training, as `zoomseg train` writes it
OUT/rows/<row>/fold-<n>/predictions/, metrics.csv, summary.json, report.html
OUT/table.csv, table.md, report.html         rewritten as rows are finished
OUT/rows/<row>/test/, OUT/test/table.csv ... the same for the test cases, if there are any; by the models of
                                             fold 0 (of fold <n>: OUT/rows/<row>/test-fold-<n>/)
```

Finished parts on disk are not repeated, so that a study may be stopped at any moment.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from zoomseg.core.errors import OutputError, ScanError, ZoomSegError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.core.labels import BACKGROUND, LabelSchema
from zoomseg.datasets.layouts import Dataset
from zoomseg.evaluation.evaluate import evaluate
from zoomseg.evaluation.flare_efficiency import write_efficiency
from zoomseg.evaluation.result import Evaluation
from zoomseg.evaluation.saved import pool, read_scores
from zoomseg.evaluation.tolerances import FLARE22
from zoomseg.inference import atlas_priors
from zoomseg.inference.batch import Failed, Segmented, segment_batch
from zoomseg.inference.predictor import Predictor
from zoomseg.io.bundle import Bundle
from zoomseg.io.files import writable_directory, write_json_atomic
from zoomseg.io.scans import ScanInput
from zoomseg.recipe import graph
from zoomseg.study import efficiency, other_methods
from zoomseg.study.ablations import Ablation, TableRow
from zoomseg.study.multi_atlas import segment_by_atlas
from zoomseg.study.recipe_edits import Edit
from zoomseg.study.report_page import StudyReport
from zoomseg.study.steps import paper_steps, steps_note, training_steps
from zoomseg.study.table import RowResult, on_common_organs, write_report, write_table
from zoomseg.study.trainings import Trainings
from zoomseg.training import self_training

T = TypeVar("T")


@dataclass(frozen=True)
class StudyOutcome:
    """A finished study: its rows, and the cases and rows that failed, one line each."""

    rows: tuple[RowResult, ...]
    failed: tuple[str, ...]


def run_ablation(study: Ablation, trainings: Trainings) -> StudyOutcome:
    """Process every row. A case that fails is reported, and the row is scored on the others; a row that fails
    is reported and omitted, from the table of the test cases alone if only they fail.

    Raises:
        InterruptedTrainingError: stopped; the next call continues.
        OutputError: ``trainings.out`` cannot be written.
        ZoomSegError: all rows failed; the reason of the first failure.
    """
    done: list[RowResult] = []
    tested: list[RowResult] = []
    failed: list[str] = []
    left_out: list[tuple[TableRow, ZoomSegError]] = []
    untested: list[tuple[TableRow, ZoomSegError]] = []
    for number, row in enumerate(study.rows, start=1):
        trainings.observer.say(f"row {number} of {len(study.rows)}: {row.name}")
        scores = _attempted(partial(_held_out, row, trainings, failed))
        if isinstance(scores, ZoomSegError):
            trainings.observer.say(f"row '{row.name}' is left out: {scores}")
            left_out.append((row, scores))
            continue
        steps = training_steps(trainings, row.training)
        full = paper_steps(trainings, row.training)
        done.append(RowResult(row, scores, steps, paper_steps=full))
        _tabulate(study, trainings, done, left_out)
        on_unseen = _attempted(partial(_on_unseen, row, trainings, failed))
        if isinstance(on_unseen, ZoomSegError):
            trainings.observer.say(f"row '{row.name}' is left out for the test cases: {on_unseen}")
            untested.append((row, on_unseen))
        elif on_unseen is not None:
            tested.append(RowResult(row, on_unseen, steps, unseen=True, paper_steps=full))
            _tabulate(study, trainings, tested, [*left_out, *untested])
    if not done:
        raise left_out[0][1]
    rows = _report(study, trainings, done, left_out)
    _report(study, trainings, tested, [*left_out, *untested])
    failed += [f"row '{row.name}': {error}" for row, error in left_out]
    failed += [f"row '{row.name}', test cases: {error}" for row, error in untested]
    return StudyOutcome(tuple(rows), tuple(failed))


def _attempted(work: Callable[[], T]) -> T | ZoomSegError:
    """The result, or the reason why there is none: hours of other rows must not be lost with it."""
    try:
        return work()
    except (InterruptedTrainingError, OutputError):
        raise
    except ZoomSegError as error:
        return error


def _report(
    study: Ablation,
    trainings: Trainings,
    done: Sequence[RowResult],
    left_out: Sequence[tuple[TableRow, ZoomSegError]],
) -> list[RowResult]:
    """Write the table of either kind of cases again, with its plots."""
    if not done:
        return []
    page, rows = _tabulate(study, trainings, done, left_out)
    write_report(_table_folder(trainings, rows), page, rows)
    return rows


def _tabulate(
    study: Ablation,
    trainings: Trainings,
    done: Sequence[RowResult],
    left_out: Sequence[tuple[TableRow, ZoomSegError]],
) -> tuple[StudyReport, list[RowResult]]:
    rows = on_common_organs(done, trainings.small)
    about = [*notes(trainings, _unscored(done, rows)), *_steps_notes(rows, len(trainings.folds))]
    if done and done[0].unseen and trainings.unseen is not None:
        about.insert(1, _told_of_unseen(trainings, trainings.unseen))
    about += [f"Row '{row.name}' is left out: {error}" for row, error in left_out]
    unseen = bool(rows) and rows[0].unseen
    folders = {row.name: _folders(row.row, trainings, unseen) for row in rows}
    found = (
        other_methods.sheet(study, rows, folders, trainings.dataset.schema),
        efficiency.sheet(folders),
    )
    sheets = [sheet for sheet in found if sheet is not None]
    folder = _table_folder(trainings, rows)
    return write_table(folder, study, rows, trainings.dataset.schema, about, sheets), rows


def _table_folder(trainings: Trainings, rows: Sequence[RowResult]) -> Path:
    return writable_directory(trainings.out / "test") if rows and rows[0].unseen else trainings.out


def _told_of_unseen(trainings: Trainings, unseen: Dataset) -> str:
    fold = f", by the models of fold {trainings.folds[0]}" if trainings.count > 1 else ""
    use = "used neither for training nor for validation"
    return f"Scored here: {len(unseen.cases)} cases of '{unseen.name}', {use}{fold}."


def _steps_notes(rows: Sequence[RowResult], folds: int) -> list[str]:
    """One note for every training whose steps are known."""
    shared: dict[str, list[RowResult]] = {}
    for result in rows:
        if result.row.training is not None and result.steps:
            shared.setdefault(result.row.training.id, []).append(result)
    return [steps_note(id, [r.name for r in of], of[0].steps, folds) for id, of in shared.items()]


def notes(trainings: Trainings, unscored: Sequence[str] = ()) -> list[str]:
    """How the study was made."""
    s = trainings.settings
    length = "the recipe's own number of iterations" if s.seconds is None else f"{s.seconds:g} s"
    several = len(trainings.folds) > 1
    part = (
        f"all {trainings.count} folds, pooled"
        if several
        else f"fold {trainings.folds[0]} of {trainings.count}"
    )
    smaller = [
        *([f"grids {s.coarser:g} times coarser than the paper's"] if s.coarser != 1 else []),
        *([f"networks with {s.narrower:g} times fewer channels"] if s.narrower != 1 else []),
    ]
    return [
        f"Each training: {length}, on {trainings.device.name}, seed {s.seed}. Rows that share a training "
        "share its time.",
        f"Data set '{trainings.dataset.name}', {part}.",
        *(["Atlas priors were made before the trainings' time began."] if trainings.recipe.atlas else []),
        *([f"Recipe '{s.recipe}' instead of the paper's."] if s.recipe is not None else []),
        *_own_recipes(trainings),
        *([f"Atlases: {s.atlases}."] if s.atlases is not None else []),
        *([f"Tabulated: {', '.join(trainings.small)}."] if trainings.small else []),
        *([f"Made smaller: {'; '.join(smaller)}."] if smaller else []),
        *([f"Not scored, as not every row predicts them: {', '.join(unscored)}."] if unscored else []),
        *([f"Fine-tuned from {s.init}."] if s.init is not None else []),
        *([_told_of_unlabelled(s.unlabelled)] if s.unlabelled is not None else []),
    ]


def _told_of_unlabelled(folder: Path) -> str:
    return (
        f"Unlabelled scans: {folder}. The models that label them, {self_training.FOLDS} at most, are trained "
        "first, each as long as the others."
    )


def _own_recipes(trainings: Trainings) -> list[str]:
    rows = trainings.study.rows if isinstance(trainings.study, Ablation) else ()
    used = {row.training.id: row.training.recipe for row in rows if row.training is not None}
    return [f"Training '{id}' starts from recipe '{own}'." for id, own in used.items() if own is not None]


def _unscored(before: Sequence[RowResult], after: Sequence[RowResult]) -> list[str]:
    kept = set(after[0].evaluation.organs)
    return list(dict.fromkeys(o for r in before for o in r.evaluation.organs if o not in kept))


# --- one row on one fold --------------------------------------------------------------------------


def _folder(row: TableRow, part: str, trainings: Trainings) -> Path:
    return trainings.out / "rows" / slug(row.name) / part


def _folders(row: TableRow, trainings: Trainings, unseen: bool) -> list[Path]:
    folds = [f"fold-{fold}" for fold in trainings.folds]
    parts = [_test_part(trainings)] if unseen else folds
    return [_folder(row, part, trainings) for part in parts]


def _test_part(trainings: Trainings) -> str:
    """Every fold's models have a folder of their own for the test cases: scores of two must not be mixed."""
    first = trainings.folds[0]
    return "test" if first == 0 else f"test-fold-{first}"


def _held_out(row: TableRow, trainings: Trainings, failed: list[str]) -> Evaluation:
    """Score the held-out cases of all trained folds."""

    def scored(fold: int) -> Evaluation:
        cases = trainings.dataset.subset(trainings.split(fold).validation)
        return _scored(row, fold, trainings, cases, f"fold-{fold}", failed)

    return pool([scored(fold) for fold in trainings.folds])


def _on_unseen(row: TableRow, trainings: Trainings, failed: list[str]) -> Evaluation | None:
    """Score test cases with the models of the first trained fold."""
    if trainings.unseen is None:
        return None
    return _scored(row, trainings.folds[0], trainings, trainings.unseen, _test_part(trainings), failed)


def _scored(
    row: TableRow, fold: int, trainings: Trainings, reference: Dataset, part: str, failed: list[str]
) -> Evaluation:
    """The row's scores of the cases in ``reference``, in its folder ``part``."""
    folder = _folder(row, part, trainings)
    of = part.replace("-", " ")
    where = f"{row.name}, {of}"
    found = read_scores(folder, len(reference.cases))
    if found is not None and found.tolerances == row.tolerances:
        return found
    predictions = folder / "predictions"
    problems = _predict(row, fold, trainings, reference, predictions)
    failed += [f"{where}: {problem}" for problem in problems]
    if len(problems) == len(reference.cases):
        raise ScanError(f"row '{row.name}', {of}: no case could be predicted; {problems[0]}")
    trainings.observer.say(f"scoring {len(reference.cases) - len(problems)} cases")
    scores = evaluate(
        predictions, reference, folder, row.tolerances, provenance={"row": row.name, "fold": fold}
    )
    failed += [f"{where}: {failure.case}: {failure.reason}" for failure in scores.failures]
    if row.tolerances.name == FLARE22:
        write_efficiency(folder, efficiency.read(folder), (case.id for case in scores.cases))
    # From the file, with its digits, so that a resumed study has exactly the same table.
    return read_scores(folder, len(scores.cases)) or scores


def with_changed_prediction(model: Bundle, change: Edit) -> Bundle:
    """A trained model with changed prediction: fewer stages, other tiles, another fusion."""
    recipe = change(model.recipe)
    kept = {stage.name for stage in recipe.stages}
    weights = {name: tensors for name, tensors in model.weights.items() if name in kept}
    return replace(model, recipe=recipe, weights=weights)


def _predict(row: TableRow, fold: int, trainings: Trainings, cases: Dataset, out: Path) -> list[str]:
    """Predict the cases without a prediction; returns those that failed, one line each."""
    missing = cases.subset(i for i in cases.ids if not (out / f"{i}.nii.gz").is_file())
    if not missing.cases:
        return []
    if row.training is None:
        schema = trainings.dataset.schema
        _name_labels(out, schema.names, schema)
        return segment_by_atlas(trainings, fold, missing, out)
    model = with_changed_prediction(trainings.model(row.training, fold), row.predict)
    predicted = graph.deciding_stages(model.recipe, model.schema)
    organs = tuple(organ for organ in model.schema.names if organ in predicted)
    _name_labels(out, organs, model.schema)
    scans = [ScanInput(case.id, case.images) for case in missing.cases]
    numbers = itertools.count(1)
    problems: list[str] = []

    def on_result(outcome: Segmented | Failed) -> None:
        trainings.observer.say(f"predicted {next(numbers)} of {len(scans)}: {outcome.case}")
        if isinstance(outcome, Failed):
            problems.append(f"{outcome.case}: {outcome.reason}")
        else:
            efficiency.record(out.parent, outcome)

    segment_batch(scans, out, _predictor(model, fold, trainings), on_result, organs)
    return problems


def _predictor(model: Bundle, fold: int, trainings: Trainings) -> Predictor:
    """Rows share the study's atlases, including those whose training used none."""
    prior_of = trainings.atlas_of_others(fold) if atlas_priors.uses_atlas(model.recipe) else None
    return Predictor(model, trainings.device, prior_of, any_scan=True)


def _name_labels(out: Path, organs: Sequence[str], schema: LabelSchema) -> None:
    """Write the meaning of the predictions' label values; only predicted organs are scored."""
    values = schema.value_of
    writable_directory(out)
    write_json_atomic(out / "labels.json", {"labels": {BACKGROUND: 0} | {o: values[o] for o in organs}})


def slug(name: str) -> str:
    """A row's name as a folder name."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
