"""Evaluations read from the files that ``evaluate`` wrote, and merged."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zoomseg.core.errors import GeometryError, ScanError
from zoomseg.datasets.layouts import Dataset
from zoomseg.evaluation.attribution import LOSSES, Attribution
from zoomseg.evaluation.case_matching import Pairs, find_pairs
from zoomseg.evaluation.evaluate import SCORES, write_all
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.provenance import read_origin
from zoomseg.evaluation.result import CaseResult, Evaluation, UnscoredCase
from zoomseg.evaluation.tolerances import FLARE22, FLARE22_TOLERANCES, Tolerances
from zoomseg.io.files import parse_json, read_file, writable_directory
from zoomseg.io.tables import read_rows


def read_scores(folder: Path, cases: int | None = None) -> Evaluation | None:
    """The evaluation in ``folder``; None if there is none (of this many cases), or it is damaged."""
    try:
        summary = parse_json(read_file(folder / "summary.json"))
        if cases is not None and summary["cases"] != cases:
            return None
        scores: dict[str, list[OrganScore]] = {}
        attributions: dict[str, dict[str, Attribution]] = {}
        for line in read_rows(folder / "metrics.csv"):
            case, organ = line["case"], line["organ"]
            values = {key: _number(line[key]) for key in SCORES}
            scores.setdefault(case, []).append(OrganScore(organ, **values))
            lost = {key: _number(line.get(key)) for key in ("region_recall", *LOSSES)}
            if not math.isnan(lost["lost_elsewhere"]):
                attributions.setdefault(case, {})[organ] = Attribution(**lost)
        results = tuple(
            CaseResult(case, tuple(rows), attributions.get(case, {})) for case, rows in scores.items()
        )
        failed = tuple(UnscoredCase(str(case), str(why)) for case, why in summary.get("failed", {}).items())
        rules = _tolerances(summary["tolerance_mm"], summary.get("rule"))
        return Evaluation(tuple(summary["organs"]), rules, results, failed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error, GeometryError):
        return None


def _tolerances(mm: object, rule: object) -> Tolerances:
    if rule == FLARE22:
        return FLARE22_TOLERANCES
    if isinstance(mm, dict):
        return Tolerances.by_organ(str(rule), {str(organ): float(own) for organ, own in mm.items()})
    return Tolerances.same(float(str(mm)))


def pool(parts: Sequence[Evaluation]) -> Evaluation:
    """Merge evaluations of different cases."""
    cases = sorted((case for part in parts for case in part.cases), key=lambda case: case.id)
    failures = tuple(failure for part in parts for failure in part.failures)
    return replace(parts[0], cases=tuple(cases), failures=failures)


def gather(folders: Sequence[Path], dataset: Dataset, out: Path) -> Evaluation:
    """Merge the evaluations in ``folders``, each with its ``predictions``, and write them to ``out``. They
    are of different cases of a data set.

    Raises:
        ScanError: one of them is missing or damaged.
        OutputError: ``out`` cannot be written.
    """
    parts: list[Evaluation] = []
    found: list[Pairs] = []
    for folder in folders:
        part = read_scores(folder)
        if part is None:
            raise ScanError(f"{folder}: no scores, or damaged ones; remove the folder and evaluate again")
        parts.append(part)
        ids = [case.id for case in part.cases] + [failure.case for failure in part.failures]
        found.append(find_pairs(folder / "predictions", dataset.subset(ids), None, None))
    pairs = replace(found[0], pairs=tuple(pair for some in found for pair in some.pairs))
    evaluation = pool(parts)
    origins = [read_origin(folder / "predictions") for folder in folders]
    first = origins[0].about.items()
    shared = {key: value for key, value in first if all(o.about.get(key) == value for o in origins)}
    about = {"predictions": f"{len(folders)} folds", "reference": str(dataset.root), **shared}
    write_all(evaluation, pairs, writable_directory(out), about, recipe=origins[0].recipe)
    return evaluation


def _number(text: str | None) -> float:
    return float(text) if text else math.nan
