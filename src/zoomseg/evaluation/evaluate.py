"""Score a folder of predictions against references: ``metrics.csv``, ``summary.json``, ``report.html``."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from zoomseg.anatomy.organ_names import organ_words
from zoomseg.core.errors import DatasetError, ScanError, ZoomSegError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import bounding_box
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import Dataset
from zoomseg.evaluation.attribution import LOSSES, NOTHING, attribute_case, read_region
from zoomseg.evaluation.case_matching import Pair, Pairs, find_pairs, unmatched
from zoomseg.evaluation.figures import OrganView, overlay, without_figures
from zoomseg.evaluation.flare_efficiency import EFFICIENCY, write_efficiency
from zoomseg.evaluation.html_report import CasePictures, Picture, render
from zoomseg.evaluation.metrics import OrganScore, farthest_point, score
from zoomseg.evaluation.provenance import read_measures, read_origin
from zoomseg.evaluation.result import CaseResult, Evaluation, UnscoredCase
from zoomseg.evaluation.tolerances import FLARE22, FLARE22_ORGANS, Tolerances
from zoomseg.inference import stage_outputs
from zoomseg.inference.organ_pictures import centre_of_all, display_window, overview
from zoomseg.io.files import why, writable_directory, write_json_atomic, write_text_atomic, writing
from zoomseg.io.scans import header_notes_by_case, read_grid
from zoomseg.io.tables import csv_text, number_cell

SCORES = ("dice", "nsd", "hd95_mm", "assd_mm", "volume_ml", "reference_ml")
COLUMNS = ("case", "organ", *SCORES, "region_recall", *LOSSES)

THREADS = 2
"""Number of cases scored at once in this process: the expensive parts release Python's lock, and each thread
holds one case. More threads wait for each other; processes are then faster."""

PICTURED_CASES = 6
"""Number of the worst cases whose worst organ is drawn."""
PICTURED_DISTANCES = 4
"""Number of organs that are drawn for the distance of their surfaces."""
SHOWN_CASES = 24
"""Number of cases for which all organs are shown."""

FLARE_SCORES = "DSC_NSD.csv"
FLARE22_DIGITS = 4
"""The challenge's script rounds to these."""

OnCaseScored = Callable[[str, int, int], None]
"""Called with (case id, cases done, total cases) after each case."""


def evaluate(
    predictions: Path,
    reference: Path | Dataset,
    out: Path,
    tolerance_mm: float | Tolerances = 1.0,
    schema: LabelSchema | None = None,
    *,
    images: Path | Dataset | None = None,
    training_log: Path | None = None,
    provenance: Mapping[str, object] | None = None,
    on_progress: OnCaseScored | None = None,
    workers: int | None = None,
    unsegmented: Sequence[UnscoredCase] = (),
) -> Evaluation:
    """Score every case that has a prediction and a reference, and write the results to ``out``.

    Args:
        predictions: a folder of ``<case>.nii.gz``; if it also has the outputs of the stages
            (``inference.stage_outputs``), lost Dice is attributed.
        reference: a folder of label files, or a data set (its folder, or all or a subset of it as an object);
            labels not annotated in a case are not scored in it.
        tolerance_mm: maximum distance of agreeing surfaces in the NSD; or a table with a value per organ,
            where organs not in the table have no NSD.
        schema: of the references, if there is no ``dataset.json`` or ``labels.json`` beside them.
        images: a folder or data set of scans on which contours are drawn; by default the reference's own, or
            those that the predictions' ``run.json`` names.
        training_log: the ``metrics.csv`` of the training to be shown in the report.
        provenance: further information on the origin of the predictions for the report.
        workers: processes that score, each one case at a time; None: ``THREADS`` of this one.
        unsegmented: further cases, without a prediction, to be listed with those that could not be scored.

    Raises:
        DatasetError: nothing to score: no such folders, no files, or none that match.
        ScanError: not a single case could be scored.
        OutputError: ``out`` cannot be written to.
    """
    rules = tolerance_mm if isinstance(tolerance_mm, Tolerances) else Tolerances.same(tolerance_mm)
    predictions, out = Path(predictions), Path(out)
    reference = reference if isinstance(reference, Dataset) else Path(reference)
    pairs = find_pairs(predictions, reference, schema, images)
    missing = _without_tolerance(rules, pairs.organs)
    writable_directory(out)
    cases, failures = _score_all(pairs, rules, on_progress, workers)
    if not cases:
        raise ScanError(f"none of {len(failures)} cases could be scored; {failures[0].reason}")
    kept = (*_without_stages(pairs), *_damaged_stages(cases))
    found = (*missing, *_header_notes(pairs), *_copies(cases), *kept, *without_figures())
    warnings = (*pairs.warnings, *found)
    evaluation = Evaluation(pairs.organs, rules, tuple(cases), (*failures, *unsegmented), warnings)
    source = reference.root if isinstance(reference, Dataset) else reference
    origin = read_origin(predictions)
    sources = {"predictions": str(predictions), "reference": str(source)}
    about = {**sources, **origin.about, **(provenance or {})}
    write_all(evaluation, pairs, out, about, training_log, origin.recipe)
    if rules.name == FLARE22:
        write_efficiency(out, read_measures(predictions), (case.id for case in cases))
    return evaluation


def write_all(
    evaluation: Evaluation,
    pairs: Pairs,
    out: Path,
    provenance: Mapping[str, object],
    training_log: Path | None = None,
    recipe: str = "",
) -> None:
    """Write an evaluation of ``pairs`` as ``metrics.csv``, ``summary.json`` and ``report.html``, and one by
    the rule of FLARE 2022 also as the challenge's ``DSC_NSD.csv``; ``recipe`` is that of the predictions, as
    YAML. The challenge's files of an earlier evaluation are removed.

    Raises:
        OutputError: ``out`` cannot be written to.
    """
    for earlier in (out / FLARE_SCORES, out / EFFICIENCY):
        with writing(earlier):
            earlier.unlink(missing_ok=True)
    write_metrics(out / "metrics.csv", evaluation)
    write_json_atomic(out / "summary.json", evaluation.as_json())
    if evaluation.tolerances.name == FLARE22:
        write_flare(out / FLARE_SCORES, evaluation)
    page = render(evaluation, _pictures(evaluation, pairs), training_log, provenance, recipe)
    write_text_atomic(out / "report.html", page)


def _score_all(
    pairs: Pairs, rules: Tolerances, on_progress: OnCaseScored | None, workers: int | None
) -> tuple[list[CaseResult], list[UnscoredCase]]:
    done: dict[str, CaseResult | UnscoredCase] = {}
    alone = replace(pairs, pairs=())  # everything that another process needs in addition to a pair
    with _pool(workers) as pool:
        waiting = {pool.submit(_score_case, alone, pair, rules): pair for pair in pairs.pairs}
        try:
            for future in as_completed(waiting):
                case = waiting[future].id
                done[case] = future.result()
                if on_progress is not None:
                    on_progress(case, len(done), len(waiting))
        except BrokenProcessPool as error:
            raise ZoomSegError(
                "a process that scores was killed, by the system if memory ran out; give fewer --workers"
            ) from error
        except BaseException:  # after an interruption, cases not yet started are not awaited
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    in_order = [done[pair.id] for pair in pairs.pairs]
    return (
        [result for result in in_order if isinstance(result, CaseResult)],
        [result for result in in_order if isinstance(result, UnscoredCase)],
    )


def _pool(workers: int | None) -> Executor:
    if workers is None:
        return ThreadPoolExecutor(THREADS)
    # Spawned, not forked: this process may have threads.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _leave_signals)


def _leave_signals() -> None:
    """Ignore signals: a terminal interrupts all processes of a command, and the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stages_of(pair: Pair) -> Path | None:
    """The folder with the outputs of the stages, if they were kept."""
    folder = pair.prediction.parent / stage_outputs.FOLDER
    return folder if stage_outputs.json_path(folder, pair.id).is_file() else None


def _without_stages(pairs: Pairs) -> list[str]:
    """A warning if outputs of the stages were kept for some cases only."""
    without = {pair.id for pair in pairs.pairs if _stages_of(pair) is None}
    some = len(without) < len(pairs.pairs)
    return unmatched("errors not attributed, as stages were not kept", without if some else set())


def _damaged_stages(cases: Sequence[CaseResult]) -> list[str]:
    """A warning if the kept outputs of some cases' stages cannot be used."""
    reasons = {f"{case.id} ({case.unattributed})" for case in cases if case.unattributed}
    return unmatched("errors not attributed, as outputs of stages cannot be used", reasons)


def _without_tolerance(rules: Tolerances, organs: Sequence[str]) -> list[str]:
    """A warning about organs without an NSD.

    Raises:
        DatasetError: none has one.
    """
    missing = rules.without(organs)
    if len(missing) == len(organs):
        raise DatasetError(f"{rules.name} has no tolerance of any organ here: {', '.join(organs)}")
    return unmatched(f"no NSD, as {rules.name} has no tolerance of them", set(missing))


def _header_notes(pairs: Pairs) -> list[str]:
    """Notes on ambiguous headers of predictions and references, and the rule that was applied."""
    return header_notes_by_case({pair.id: (pair.prediction, pair.reference) for pair in pairs.pairs})


def _copies(cases: Sequence[CaseResult]) -> list[str]:
    """A warning if every prediction equals its reference in all voxels, which neither a network nor a second
    reader achieves."""
    equal = {case.id for case in cases if _is_copy(case)}
    what = "all predictions are their references, voxel by voxel, as copies would be"
    return unmatched(what, equal if len(equal) == len(cases) else set())


def _is_copy(case: CaseResult) -> bool:
    defined = [score.dice for score in case.scores if not math.isnan(score.dice)]
    return bool(defined) and min(defined) == 1


def _score_case(pairs: Pairs, pair: Pair, rules: Tolerances) -> CaseResult | UnscoredCase:
    try:
        prediction, reference = pairs.load(pair)
        scores = score(
            prediction.data,
            reference.data,
            reference.grid,
            pairs.reference_schema,
            rules,
            pair.organs,
        )
        return _attributed(CaseResult(pair.id, scores), pair, prediction, reference)
    except ZoomSegError as error:
        return UnscoredCase(pair.id, str(error))
    except Exception as error:  # the next cases may still be scored
        return UnscoredCase(pair.id, f"{pair.prediction}: {why(error)}")


def _attributed(result: CaseResult, pair: Pair, prediction: LabelMap, reference: LabelMap) -> CaseResult:
    """The result of a case with its attributions, if the outputs of the stages were kept and can be read."""
    stages = _stages_of(pair)
    if stages is None:
        return result
    named = {organ: pair.own_name(organ) for organ in pair.organs}
    try:
        found = attribute_case(stages, pair.id, prediction, reference, named)
    except ZoomSegError as error:  # the scores are not affected
        return replace(result, unattributed=str(error))
    return replace(result, attributions=found)


def _pictured(evaluation: Evaluation) -> list[tuple[CaseResult, list[OrganScore]]]:
    """The worst cases by mean Dice, worst first, with the organs to be drawn: for the first ones their worst,
    and in any case those with the largest distances of surfaces."""
    scored = sorted((c for c in evaluation.cases if c.worst is not None), key=lambda case: case.mean_dice)
    chosen: dict[str, list[OrganScore]] = {
        case.id: [case.worst] for case in scored[:PICTURED_CASES] if case.worst is not None
    }
    finite = [(c.id, s) for c in scored for s in c.scores if math.isfinite(s.hd95_mm)]
    for case, organ in sorted(finite, key=lambda item: -item[1].hd95_mm)[:PICTURED_DISTANCES]:
        own = chosen.setdefault(case, [])
        own += [organ] if organ not in own else []
    return [(c, chosen.get(c.id, [])) for n, c in enumerate(scored) if n < SHOWN_CASES or c.id in chosen]


def _pictures(evaluation: Evaluation, pairs: Pairs) -> list[CasePictures]:
    by_id = {pair.id: pair for pair in pairs.pairs}
    return [_case_pictures(case, organs, pairs, by_id[case.id]) for case, organs in _pictured(evaluation)]


def _case_pictures(case: CaseResult, organs: Sequence[OrganScore], pairs: Pairs, pair: Pair) -> CasePictures:
    prediction, reference = pairs.load(pair)
    image, notes = None, []
    try:
        image = pairs.load_image(pair, reference)
    except ZoomSegError as error:
        notes.append(f"Shown without the scan: {error}")
    stored = read_grid(pair.reference)
    scene = _Scene(pairs, pair, prediction, reference, image, stored)
    at = centre_of_all((reference if reference.data.any() else prediction).data)
    drawn, found = (overview(image, labels, stored, at) for labels in (reference, prediction))
    contours = () if without_figures() else tuple(_contours(scene, organ) for organ in organs)
    return CasePictures(case, drawn.jpeg, found.jpeg, drawn.where, contours, " ".join(notes))


@dataclass(frozen=True, eq=False)
class _Scene:
    """The data of a case for drawing: canonical, with the grid on which the reference is stored."""

    pairs: Pairs
    pair: Pair
    prediction: LabelMap
    reference: LabelMap
    image: Volume | None
    stored: Grid


def _contours(scene: _Scene, organ: OrganScore) -> Picture:
    region, note, grid = None, "", scene.reference.grid
    try:
        if (stages := _stages_of(scene.pair)) is not None:
            region = read_region(stages, scene.pair.id, scene.pair.own_name(organ.organ), grid)
    except ZoomSegError as error:
        note = f"Shown without the region: {error}"
    c = scene.pairs.reference_schema.class_of(organ.organ)
    prediction, reference = scene.prediction.data == c, scene.reference.data == c
    farthest = None
    if math.isfinite(organ.hd95_mm):
        box = (bounding_box(prediction | reference) or grid.box).slices
        near = farthest_point(prediction[box], reference[box], grid.spacing_mm)
        i, j, k = (inside + part.start for inside, part in zip(near.voxel, box, strict=True))
        farthest = replace(near, voxel=(i, j, k))
    image = None if scene.image is None else scene.image.data[0]
    window = None if image is None else display_window(image)
    view = OrganView(prediction, reference, grid, scene.stored, image, window, region, farthest)
    return Picture(organ, overlay(view), note)


def write_metrics(path: Path, evaluation: Evaluation) -> None:
    """Write ``metrics.csv``. Scores of an organ that neither map has are empty, as are unknown attributions;
    distances to an organ that only one map has are ``inf``."""
    rows = []
    for case in evaluation.cases:
        for row in case.scores:
            attribution = case.attributions.get(row.organ, NOTHING)
            values = [getattr(row, column) for column in SCORES]
            values += [attribution.region_recall, *(getattr(attribution, loss) for loss in LOSSES)]
            rows.append([case.id, row.organ, *map(number_cell, values)])
    write_text_atomic(path, csv_text(COLUMNS, rows))


def write_flare(path: Path, evaluation: Evaluation) -> None:
    """Write the scores in the format of FLARE 2022's ``FLARE22_DSC_NSD_Eval.py``: a row per case, by file
    name, first the Dice and then the NSD of the challenge's organs, to four digits. Missing scores are
    empty."""
    known = {organ_words(organ): organ for organ in evaluation.organs}
    columns = {flare: known.get(organ_words(organ), "") for flare, (organ, _) in FLARE22_ORGANS.items()}
    heading = ["Name", *(f"{flare}_{metric}" for metric in ("DSC", "NSD") for flare in columns)]
    rows = []
    for case in evaluation.cases:
        scores = {score.organ: score for score in case.scores}
        found = [scores.get(organ) for organ in columns.values()]
        values = [math.nan if s is None else s.dice for s in found]
        values += [math.nan if s is None else s.nsd for s in found]
        cells = ("" if math.isnan(v) else str(round(v, FLARE22_DIGITS)) for v in values)
        rows.append([f"{case.id}.nii.gz", *cells])
    write_text_atomic(path, csv_text(heading, rows))
