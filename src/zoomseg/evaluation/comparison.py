"""Comparison of evaluations of the same cases: paired differences, tests and intervals.

All are compared with the first, each over the common cases. By organ, and for each case's mean over organs:
the mean difference, its 95 % bootstrap interval, and the p of a Wilcoxon signed-rank test, which for the
organs is corrected after Holm. Writes ``compare.csv``, ``compare.json`` and ``compare.html``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

from zoomseg.core.errors import DatasetError
from zoomseg.evaluation.case_matching import unmatched
from zoomseg.evaluation.figures import Interval, differences_by_organ
from zoomseg.evaluation.result import METRICS, Evaluation, without_name
from zoomseg.evaluation.saved import read_scores
from zoomseg.inference.html_page import p_value, page, signed
from zoomseg.io.files import writable_directory, write_json_atomic, write_text_atomic
from zoomseg.io.tables import csv_text, number_cell

MIN_PAIRS = 6
"""With fewer pairs no two-sided signed-rank test can reach p < 0.05."""

MIN_CASES = 2
RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0
SIGNIFICANT = 0.05
MEAN = "mean"

TITLES = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm"}
_GROWING = ("dice", "nsd")
"""Metrics for which higher is better."""

_DECIMALS = 9
"""Decimals of differences, so that 0.3 - 0.2 and 0.2 - 0.1 are ties, as in the files."""

_SAME_ML = 1e-3
"""Relative; volumes of one reference differ by less than this between two evaluations."""

Values = dict[str, tuple[float, float]]
"""By case: the first evaluation's value and the other's."""


@dataclass(frozen=True)
class Difference:
    """One organ, or the cases' means over organs; NaN for undefined values."""

    organ: str
    cases: int
    first: float
    other: float
    difference: float
    """Mean over cases of the other's value minus the first's."""
    low: float
    high: float
    """Ends of its 95 % interval."""
    better: int
    """Number of cases in which the other is better."""
    worse: int
    p: float
    p_holm: float
    """Corrected over the organs; NaN for the mean, which is a single test."""

    @property
    def significant(self) -> bool:
        """After the correction, if there is one."""
        return (self.p if math.isnan(self.p_holm) else self.p_holm) < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """Comparison of another evaluation with the first; ``cases`` are the common ones."""

    first: str
    other: str
    metric: str
    cases: tuple[str, ...]
    mean: Difference
    organs: tuple[Difference, ...]
    notes: tuple[str, ...]
    """What was omitted, one line each."""

    @property
    def finding(self) -> str:
        """One sentence."""
        mean, digits = self.mean, digits_of(self.metric)
        tested = "too few cases to test" if math.isnan(mean.p) else f"p {equals(mean.p)}"
        return (
            f"{self.other} minus {self.first}: {TITLES[self.metric]} {signed(mean.difference, digits)} "
            f"(95 % interval {signed(mean.low, digits)} to {signed(mean.high, digits)}; {tested}) "
            f"over {mean.cases} cases' means of organs; better in {mean.better}, worse in {mean.worse}."
        )


# --- statistics -----------------------------------------------------------------------------------


def paired(first: Evaluation, other: Evaluation, metric: str = "dice") -> dict[str, Values]:
    """By organ of both evaluations, the values of cases in which both have a finite one; under ``MEAN`` each
    case's mean over these organs."""
    a, b = (_finite(evaluation, metric) for evaluation in (first, other))
    by_organ = {
        organ: {case: (a[organ][case], b[organ][case]) for case in a[organ] if case in b[organ]}
        for organ in first.organs
        if organ in other.organs
    }
    by_case: dict[str, list[tuple[float, float]]] = {}
    for values in by_organ.values():
        for case, pair in values.items():
            by_case.setdefault(case, []).append(pair)
    means = {
        case: (_mean([x for x, _ in pairs]), _mean([y for _, y in pairs])) for case, pairs in by_case.items()
    }
    return {MEAN: means, **by_organ}


def _finite(evaluation: Evaluation, metric: str) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {organ: {} for organ in evaluation.organs}
    for case in evaluation.cases:
        for score in case.scores:
            value: float = getattr(score, metric)
            if score.organ in out and math.isfinite(value):
                out[score.organ][case.id] = value
    return out


def differences(values: Values) -> list[float]:
    """The other's value minus the first's, by case."""
    return [round(other - first, _DECIMALS) for first, other in values.values()]


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; NaN for fewer than 6 differences.

    Zeros are dropped before ranking, as Wilcoxon did, ties get their mean rank. All zero gives 1. scipy's
    default method is exact where it can be, else the normal approximation. It never sees the zeros, with
    which it would approximate: of five changes, p would be below the 0.0625 that is the least possible.
    """
    if len(differences) < MIN_PAIRS:
        return math.nan
    changes = [difference for difference in differences if difference != 0]
    return float(stats.wilcoxon(changes).pvalue) if changes else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) in the given order; NaN are not tests, and unchanged."""
    tested = sorted((value, at) for at, value in enumerate(p) if not math.isnan(value))
    out, highest = [math.nan] * len(p), 0.0
    for rank, (value, at) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * value))
        out[at] = highest
    return out


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean: bootstrap over cases, bias-corrected and accelerated (Efron 1987), 10,000
    resamples from a fixed seed. NaN for fewer than 2 differences; for equal ones, their value."""
    values = np.asarray(differences, dtype=np.float64)
    if values.size < MIN_CASES:
        return math.nan, math.nan
    if values.min() == values.max():
        return float(values[0]), float(values[0])
    drawn = np.random.default_rng(SEED).integers(values.size, size=(RESAMPLES, values.size))
    means, centre = values[drawn].mean(axis=1), values.mean()
    below = (np.count_nonzero(means < centre) + np.count_nonzero(means <= centre)) / (2 * RESAMPLES)
    away = values - centre
    # For a mean, the jackknife's deviations are those of the values divided by n - 1, which cancels.
    acceleration = np.sum(away**3) / (6 * np.sum(away**2) ** 1.5)
    shifted = ndtri(below) + ndtri(np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    levels = ndtr(ndtri(below) + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def compare(first: Evaluation, other: Evaluation, names: tuple[str, str], metric: str = "dice") -> Comparison:
    """Compare two evaluations over their common cases and organs.

    Raises:
        DatasetError: fewer than 2 common cases, no common organ, or one scored by different rules.
    """
    cases = [[case.id for case in evaluation.cases] for evaluation in (first, other)]
    common = tuple(case for case in cases[0] if case in set(cases[1]))
    if len(common) < MIN_CASES:
        raise DatasetError(
            f"{names[0]} has {len(cases[0])} cases and {names[1]} has {len(cases[1])}, {len(common)} of them "
            f"in both; at least {MIN_CASES} are needed: evaluate both on the same cases"
        )
    _check_rules(first, other, names, metric)
    values = paired(first, other, metric)
    means = values.pop(MEAN)
    if not values:
        raise DatasetError(f"{names[0]} and {names[1]} have no organ in common; were the labels renamed?")
    rows = [_difference(organ, found, metric) for organ, found in values.items()]
    corrected = holm([row.p for row in rows])
    organs = tuple(replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True))
    notes = (
        *_only_one_has(first, other, names),
        *_left_out(first, other, values, common, metric),
        *_references(first, other),
    )
    return Comparison(*names, metric, common, _difference(MEAN, means, metric), organs, notes)


def _check_rules(first: Evaluation, other: Evaluation, names: tuple[str, str], metric: str) -> None:
    """Raise an error if a common organ is scored by different rules. Only the NSD depends on tolerances."""
    for organ in first.organs:
        if organ not in other.organs:
            continue
        rules = [evaluation.tolerances.of(organ) for evaluation in (first, other)]
        if metric != "nsd":
            rules = [replace(rule, tolerance_mm=None) for rule in rules]
        if rules[0] != rules[1]:
            raise DatasetError(
                f"{names[0]} is scored at {first.tolerances.name}, {names[1]} at {other.tolerances.name}, "
                f"which differ for '{organ}'; evaluate both with the same tolerance"
            )


def _difference(organ: str, values: Values, metric: str) -> Difference:
    changes = differences(values)
    low, high = interval(changes)
    gains = [change if metric in _GROWING else -change for change in changes]
    return Difference(
        organ,
        len(values),
        first=_mean([a for a, _ in values.values()]),
        other=_mean([b for _, b in values.values()]),
        difference=_mean(changes),
        low=low,
        high=high,
        better=sum(gain > 0 for gain in gains),
        worse=sum(gain < 0 for gain in gains),
        p=signed_rank(changes),
        p_holm=math.nan,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


# --- what is omitted ------------------------------------------------------------------------------


def _only_one_has(first: Evaluation, other: Evaluation, names: tuple[str, str]) -> Iterator[str]:
    for one, another, name in ((first, other, names[0]), (other, first, names[1])):
        cases, missing = ({case.id for case in evaluation.cases} for evaluation in (one, another))
        yield from unmatched(f"cases that only {name} has", cases - missing)
        yield from unmatched(f"organs that only {name} has", set(one.organs) - set(another.organs))


def _left_out(
    first: Evaluation, other: Evaluation, values: dict[str, Values], cases: tuple[str, ...], metric: str
) -> Iterator[str]:
    """Common cases in which an organ has a value in at most one evaluation. Dice and NSD have none if neither
    map has the organ; distances are infinite if only one has it."""
    columns = [_column(evaluation, metric) for evaluation in (first, other)]
    for organ, found in values.items():
        either = {
            case for case in cases if any(not math.isnan(t.get((case, organ), math.nan)) for t in columns)
        }
        what = f"{organ}: cases left out, as {TITLES[metric]} is not a number on both sides"
        yield from unmatched(what, either - set(found))


def _references(first: Evaluation, other: Evaluation) -> Iterator[str]:
    """A warning if they were not scored against the same references."""
    a, b = (_column(evaluation, "reference_ml") for evaluation in (first, other))
    differ = {key[0] for key in a.keys() & b.keys() if not math.isclose(a[key], b[key], rel_tol=_SAME_ML)}
    yield from unmatched("references are not the same, by their organs' volumes, in", differ)


def _column(evaluation: Evaluation, name: str) -> dict[tuple[str, str], float]:
    """Values by case and organ."""
    return {(case.id, s.organ): getattr(s, name) for case in evaluation.cases for s in case.scores}


# --- files ----------------------------------------------------------------------------------------


def compare_folders(folders: Sequence[Path], out: Path, metric: str = "dice") -> tuple[Comparison, ...]:
    """Compare the output folders of ``zoomseg evaluate`` with the first of them.

    Raises:
        DatasetError: fewer than two folders, an unknown metric, no or damaged scores in one, or nothing in
            common (``compare``).
        OutputError: ``out`` cannot be written to.
    """
    if len(folders) < 2:
        raise DatasetError(
            f"a comparison needs at least two evaluations, got {len(folders)}; give folders that zoomseg "
            "evaluate wrote"
        )
    if metric not in METRICS:
        raise DatasetError(f"unknown metric '{metric}'; allowed: {', '.join(METRICS)}")
    evaluations = [_read(folder) for folder in folders]
    names = short_names(folders)
    found = tuple(
        compare(evaluations[0], other, (names[0], name), metric)
        for other, name in zip(evaluations[1:], names[1:], strict=True)
    )
    writable_directory(out)
    write_text_atomic(out / "compare.csv", as_csv(found))
    sides = {name: str(folder) for name, folder in zip(names, folders, strict=True)}
    write_json_atomic(out / "compare.json", as_json(found, sides))
    write_text_atomic(out / "compare.html", html(found, sides))
    return found


def _read(folder: Path) -> Evaluation:
    found = read_scores(folder)
    if found is None:
        raise DatasetError(
            f"{folder}: no metrics.csv and summary.json, or damaged ones; give a folder that "
            "zoomseg evaluate wrote"
        )
    return found


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest distinguishing ends of the paths; repeated folders are numbered."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [name if name not in names[:at] else f"{name} ({at + 1})" for at, name in enumerate(names)]


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """One line per comparison and organ, the mean first; undefined values are empty."""
    columns = ("first_folder", "other_folder", "metric", *(f.name for f in fields(Difference)))
    rows = []
    for comparison in comparisons:
        for row in (comparison.mean, *comparison.organs):
            values = [number_cell(v) if isinstance(v, float) else v for v in asdict(row).values()]
            rows.append([comparison.first, comparison.other, comparison.metric, *values])
    return csv_text(columns, rows)


def as_json(comparisons: Sequence[Comparison], sides: Mapping[str, str]) -> dict[str, object]:
    """``compare.json``; undefined values are null. ``sides``: folders by their names here."""
    return {
        "metric": comparisons[0].metric,
        "folders": dict(sides),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "comparisons": [
            {
                "first": comparison.first,
                "other": comparison.other,
                "cases": list(comparison.cases),
                "mean": without_name(asdict(comparison.mean)),
                "organs": {row.organ: without_name(asdict(row)) for row in comparison.organs},
                "notes": list(comparison.notes),
            }
            for comparison in comparisons
        ],
    }


def html(comparisons: Sequence[Comparison], sides: Mapping[str, str]) -> str:
    """``compare.html``: one self-contained file. All names and paths are escaped."""
    metric = comparisons[0].metric
    return page(
        "zoomseg.evaluation",
        "compare.html",
        sides,
        comparisons=comparisons,
        title=TITLES[metric],
        growing=metric in _GROWING,
        digits=digits_of(metric),
        plot=_plot(comparisons, metric),
        resamples=RESAMPLES,
        least=MIN_PAIRS,
    )


def _plot(comparisons: Sequence[Comparison], metric: str) -> bytes:
    """Organs of any comparison, the mean first."""
    organs = dict.fromkeys(row.organ for c in comparisons for row in c.organs)
    lines: dict[str, dict[str, Interval]] = {}
    for comparison in comparisons:
        rows = [("mean of organs", comparison.mean), *((row.organ, row) for row in comparison.organs)]
        lines[comparison.other] = {
            name: Interval(row.difference, row.low, row.high, row.significant) for name, row in rows
        }
    what = f"{TITLES[metric]}: difference to {comparisons[0].first}"
    return differences_by_organ(("mean of organs", *organs), lines, what)


def digits_of(metric: str) -> int:
    """Decimals shown for a metric's differences."""
    return 4 if metric in _GROWING else 2


def equals(p: float) -> str:
    """As ``p_value``, after the letter p."""
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"
