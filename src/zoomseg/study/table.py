"""A study's table: Dice and NSD by organ beside the paper's, paired tests, and the order of rows."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zoomseg.core.labels import LabelSchema
from zoomseg.evaluation.comparison import MEAN, MIN_PAIRS, differences, equals, paired, signed_rank
from zoomseg.evaluation.figures import dice_by_organ
from zoomseg.evaluation.result import CaseResult, Evaluation, mean
from zoomseg.inference.html_page import number, p_value
from zoomseg.io.files import write_text_atomic
from zoomseg.io.tables import csv_text, number_cell
from zoomseg.study.ablations import Ablation, Published, TableRow, find_organ
from zoomseg.study.report_page import Plot, Sheet, StudyReport, html, markdown
from zoomseg.study.steps import Steps

MIN_CASES = 5
"""Minimum number of cases for a verdict on the paper's order."""
MIN_SHARE_OF_STEPS = 0.1
"""Minimum share of the paper's steps for a verdict."""
SHOWN_DIGITS = 3
"""Decimals of Dice and NSD, as in the papers."""

COLUMNS = (
    "row",
    "organ",
    "cases",
    "dice",
    "dice_sd",
    "dice_median",
    "dice_min",
    "dice_max",
    "nsd",
    "nsd_sd",
    "paper_organ",
    "paper_dice",
    "paper_nsd",
    "paper_dice_sd",
    "paper_dice_median",
    "paper_dice_min",
    "paper_dice_max",
    "paper_nsd_sd",
    "p_row_above",
    "p_baseline",
    "steps",
)


@dataclass(frozen=True)
class RowResult:
    """The scores of one row, with the cases of all its folds, and the steps of its training. ``unseen`` cases
    are of another set than the training and held-out ones."""

    row: TableRow
    evaluation: Evaluation
    steps: Steps = field(default_factory=dict)
    unseen: bool = False
    paper_steps: int | None = None
    """Of the shipped recipe, all stages together; None if there is no training, or no recipe."""

    @property
    def published(self) -> Published | None:
        """The paper's results for such cases."""
        return self.row.published_unseen if self.unseen else self.row.published

    @property
    def name(self) -> str:
        return self.row.name


@dataclass(frozen=True)
class Line:
    """One organ of one row, or the mean over organs; NaN or None for undefined values. ``steps`` are all of
    the row's training, including stages that the row does not use. Spread is over cases: their Dice of the
    organ, or their means."""

    row: str
    organ: str
    cases: int
    dice: float
    dice_sd: float
    dice_median: float
    dice_min: float
    dice_max: float
    nsd: float
    nsd_sd: float
    paper_organ: str
    paper_dice: float
    paper_nsd: float
    paper_dice_sd: float
    paper_dice_median: float
    paper_dice_min: float
    paper_dice_max: float
    paper_nsd_sd: float
    p_row_above: float
    p_baseline: float
    steps: int | None


def on_common_organs(results: Sequence[RowResult], only: Sequence[str] = ()) -> list[RowResult]:
    """Rows are compared over the organs that all of them predict, in the data set's order; of these over
    those of ``only``, if there are any."""
    common = set.intersection(*(set(r.evaluation.organs) for r in results)) if results else set()
    if only:
        common &= set(only)
    return [replace(r, evaluation=_restricted(r.evaluation, common)) for r in results]


def _restricted(evaluation: Evaluation, organs: set[str]) -> Evaluation:
    cases = tuple(
        CaseResult(case.id, tuple(s for s in case.scores if s.organ in organs)) for case in evaluation.cases
    )
    return replace(evaluation, organs=tuple(o for o in evaluation.organs if o in organs), cases=cases)


def paired_p(a: Evaluation, b: Evaluation, organ: str) -> float:
    """Two-sided Wilcoxon signed-rank p of the Dice of one organ, or of each case's mean, over the common
    cases; NaN for fewer than 6 of them. 1 if all are equal."""
    return signed_rank(differences(paired(a, b)[organ]))


def _by_case(evaluation: Evaluation, organ: str) -> dict[str, float]:
    values = {
        case.id: case.mean_dice if organ == MEAN else case.dice_by_organ.get(organ, math.nan)
        for case in evaluation.cases
    }
    return {case: value for case, value in values.items() if not math.isnan(value)}


def _nsd_by_case(evaluation: Evaluation, organ: str) -> list[float]:
    """Of one organ, or each case's mean; NaN if neither map has it."""
    return [mean(s.nsd for s in case.scores if organ in (MEAN, s.organ)) for case in evaluation.cases]


def spread(values: Iterable[float]) -> tuple[float, float, float, float]:
    """Sample standard deviation, median, minimum and maximum of the finite values; NaN for too few."""
    found = [v for v in values if math.isfinite(v)]
    deviation = statistics.stdev(found) if len(found) > 1 else math.nan
    if not found:
        return math.nan, math.nan, math.nan, math.nan
    return deviation, statistics.median(found), min(found), max(found)


def organ_spread(result: RowResult, organ: str) -> float:
    """Standard deviation of an organ's Dice over a row's cases; NaN for fewer than two."""
    return spread(_by_case(result.evaluation, organ).values())[0]


def lines(study: Ablation, results: Sequence[RowResult], schema: LabelSchema) -> list[Line]:
    """The whole table, one row's organs after the other, each row's mean first."""
    baseline = next((r for r in results if r.name == study.baseline), None)
    out: list[Line] = []
    for above, result in zip([None, *results], results, strict=False):
        summary = {s.organ: s for s in result.evaluation.summary}
        names = _paper_names(result.published, schema)
        for organ in (MEAN, *result.evaluation.organs):
            p_above, p_baseline = (
                math.nan if other is None else paired_p(other.evaluation, result.evaluation, organ)
                for other in (above, None if baseline is result else baseline)
            )
            cases, own_dice, own_nsd = (
                (len(result.evaluation.cases), result.evaluation.mean["dice"], result.evaluation.mean["nsd"])
                if organ == MEAN
                else (summary[organ].cases, summary[organ].dice, summary[organ].nsd)
            )
            spread_dice = spread(_by_case(result.evaluation, organ).values())
            nsd_sd = spread(_nsd_by_case(result.evaluation, organ))[0]
            scores = (cases, own_dice, *spread_dice, own_nsd, nsd_sd)
            paper = "" if organ == MEAN else names.get(organ, "")
            dice, paper_nsd = _published(result.published, organ, paper)
            steps = sum(result.steps.values()) or None
            known = (*scores, paper, dice, paper_nsd, *_published_spread(result.published, paper))
            out.append(Line(result.name, organ, *known, p_above, p_baseline, steps))
    return out


def _paper_names(published: Published | None, schema: LabelSchema) -> dict[str, str]:
    """Data set's label -> paper's organ."""
    organs = () if published is None else tuple(published.dice)
    found = {find_organ(organ, schema): organ for organ in organs}
    return {own: organ for own, organ in found.items() if own is not None}


def _published(published: Published | None, organ: str, paper: str) -> tuple[float, float]:
    """The paper's Dice and NSD, NaN if it has none."""
    if published is None:
        return math.nan, math.nan
    if organ == MEAN:
        dice, nsd = published.mean, published.mean_nsd
        return math.nan if dice is None else dice, math.nan if nsd is None else nsd
    return published.dice.get(paper, math.nan), published.nsd.get(paper, math.nan)


def _published_spread(published: Published | None, paper: str) -> tuple[float, float, float, float, float]:
    """Spread of the paper's Dice over cases: SD, median, minimum, maximum; and SD of its NSD. NaN if it has
    none, as for the mean over organs."""
    p = published or Published({})
    sd, median, least, most, nsd_sd = (
        values.get(paper, math.nan) for values in (p.dice_sd, p.dice_median, p.dice_min, p.dice_max, p.nsd_sd)
    )
    return sd, median, least, most, nsd_sd


# --- is the paper's order found again? ------------------------------------------------------------


def findings(results: Sequence[RowResult], schema: LabelSchema) -> list[str]:
    """One sentence per pair of neighbouring rows that the paper published."""
    pairs = itertools.pairwise(results)
    return [_finding(a, b, schema) for a, b in pairs if a.published and b.published]


def _finding(a: RowResult, b: RowResult, schema: LabelSchema) -> str:
    paper, own = _compared(a, b, schema)
    p = paired_p(a.evaluation, b.evaluation, MEAN)
    significance = " (too few cases to test)" if math.isnan(p) else f" (p {equals(p)} over all organs)"
    return (
        f"{a.name} → {b.name}: Dice {_change(paper)} in the paper, {_change(own)} here{significance}; "
        f"the paper's order: {verdict(a, b, schema)}."
    )


def verdict(a: RowResult, b: RowResult, schema: LabelSchema) -> str:
    """Whether the paper's order of two rows is reproduced, or the reason why this is not judged."""
    reason = _no_verdict(a, b, schema)
    if reason is not None:
        return f"no verdict, {reason}"
    paper, own = _compared(a, b, schema)
    if _sign(own) == _sign(paper):
        return "reproduced"
    return "not reproduced" if _sign(own) else "undecided, equal"


def _no_verdict(a: RowResult, b: RowResult, schema: LabelSchema) -> str | None:
    if not a.published or not b.published:
        return "not in the paper's table"
    if not _shared(a, schema):
        return "no organ of the paper's is here"
    fewest = min(len(r.evaluation.cases) for r in (a, b))
    if fewest < MIN_CASES:
        return f"{fewest} case{'s' if fewest > 1 else ''}"
    for result in (a, b):
        steps = sum(result.steps.values())
        if result.paper_steps is not None and steps < MIN_SHARE_OF_STEPS * result.paper_steps:
            return f"{steps} of the paper's {result.paper_steps} steps"
    return None


def _shared(result: RowResult, schema: LabelSchema) -> dict[str, str]:
    """The row's organs that the paper has, too -> their names in the paper."""
    names = _paper_names(result.published, schema)
    return {own: paper for own, paper in names.items() if own in result.evaluation.organs}


def _compared(a: RowResult, b: RowResult, schema: LabelSchema) -> tuple[list[float], list[float]]:
    """Means of both rows in the paper and here, over the organs that both have; if there are none, the
    paper's own means and those over all organs here."""
    organs, paper = _compared_organs(a, b, schema)
    return paper, [mean(s.dice for s in r.evaluation.summary if s.organ in organs) for r in (a, b)]


def _compared_organs(a: RowResult, b: RowResult, schema: LabelSchema) -> tuple[set[str], list[float]]:
    """The organs, and the paper's means over these."""
    shared = _shared(a, schema)
    tables = [r.published for r in (a, b) if r.published is not None]
    both = set.intersection(*(set(t.dice) for t in tables))
    shared = {own: paper for own, paper in shared.items() if paper in both}
    if shared:
        return set(shared), [mean(t.dice[paper] for paper in shared.values()) for t in tables]
    return set(a.evaluation.organs), [math.nan if t.mean is None else t.mean for t in tables]


def _sign(values: Sequence[float]) -> int:
    """Sign of the change, in the displayed digits: a verdict must not depend on invisible ones."""
    first, second = (round(value, SHOWN_DIGITS) for value in values)
    return (second > first) - (second < first)


def _change(values: Sequence[float]) -> str:
    word = {1: "rises", -1: "falls", 0: "stays"}[_sign(values)]
    return f"{word} from {number(values[0], SHOWN_DIGITS)} to {number(values[1], SHOWN_DIGITS)}"


# --- files ----------------------------------------------------------------------------------------


def write_table(
    out: Path,
    study: Ablation,
    results: Sequence[RowResult],
    schema: LabelSchema,
    notes: Iterable[str],
    sheets: Sequence[Sheet] = (),
) -> StudyReport:
    """Write ``table.csv`` and ``table.md``; the page has no plots, which take seconds to draw."""
    table = lines(study, results, schema)
    write_text_atomic(out / "table.csv", as_csv(table))
    page = StudyReport(
        f"{study.name}: the paper's study on your data",
        findings(results, schema),
        [*_notes(study, results, table), *notes],
        [
            _order(
                _sheet("Dice, the paper's in brackets", "dice", results, table, with_p=True), results, schema
            ),
            _spread_sheet(results, table),
            _sheet("NSD, the paper's in brackets", "nsd", results, table, with_p=False),
            *sheets,
        ],
    )
    write_text_atomic(out / "table.md", markdown(page))
    return page


def write_report(out: Path, page: StudyReport, results: Sequence[RowResult]) -> None:
    """Write ``report.html``: the page with box plots, one per organ, one box per row."""
    organs = results[0].evaluation.organs if results else ()
    plots = [
        Plot(f"{organ}: Dice by row, every case a dot", dice_by_organ(_boxes(results, organ)))
        for organ in (MEAN, *organs)
    ]
    write_text_atomic(out / "report.html", html(replace(page, plots=plots)))


def _boxes(results: Sequence[RowResult], organ: str) -> dict[str, list[float]]:
    return {r.name: list(_by_case(r.evaluation, organ).values()) for r in results}


def as_csv(table: Iterable[Line]) -> str:
    """One line per row and organ; undefined values are empty."""
    rows = []
    for line in table:
        values = (getattr(line, column) for column in COLUMNS)
        rows.append([number_cell(v) if isinstance(v, float) else v for v in values])
    return csv_text(COLUMNS, rows)


def _sheet(
    title: str, metric: str, results: Sequence[RowResult], table: Sequence[Line], with_p: bool
) -> Sheet:
    by_row = {r.name: [line for line in table if line.row == r.name] for r in results}
    organs = [line.organ for line in next(iter(by_row.values()), [])]
    rows = [_cells(name, own, metric, with_p) for name, own in by_row.items()]
    tests = ("p, row above", "p, baseline") if with_p else ()
    return Sheet(title, ("row", "cases", *organs, *tests), tuple(rows))


def _order(sheet: Sheet, results: Sequence[RowResult], schema: LabelSchema) -> Sheet:
    """The sheet with an additional last column: whether each row compares to the one above as in the
    paper."""
    verdicts = ["", *(verdict(a, b, schema) for a, b in itertools.pairwise(results))]
    rows = tuple((*row, text) for row, text in zip(sheet.rows, verdicts, strict=True))
    return replace(sheet, head=(*sheet.head, "paper's order, row above"), rows=rows)


def _spread_sheet(results: Sequence[RowResult], table: Sequence[Line]) -> Sheet:
    """The layout of the papers: a line each for mean, SD, median, minimum and maximum."""
    rows = []
    for result in results:
        own = [line for line in table if line.row == result.name]
        for title, column in _SPREAD:
            rows.append((f"{result.name}: {title}", *(_beside(line, column) for line in own)))
    organs = [line.organ for line in table if results and line.row == results[0].name]
    return Sheet("Dice and NSD over cases, the paper's in brackets", ("row", *organs), tuple(rows))


_SPREAD = (
    ("mean Dice", "dice"),
    ("SD", "dice_sd"),
    ("median", "dice_median"),
    ("minimum", "dice_min"),
    ("maximum", "dice_max"),
    ("mean NSD", "nsd"),
    ("SD of the NSD", "nsd_sd"),
)


def _cells(name: str, own: Sequence[Line], metric: str, with_p: bool) -> tuple[str, ...]:
    scores = (_beside(line, metric) for line in own)
    tests = (p_value(own[0].p_row_above), p_value(own[0].p_baseline)) if with_p else ()
    return (name, str(own[0].cases), *scores, *tests)


def _beside(line: Line, column: str) -> str:
    """Our number, and the paper's in brackets if it has one."""
    own, paper = (number(getattr(line, name), SHOWN_DIGITS) for name in (column, f"paper_{column}"))
    return own if math.isnan(getattr(line, f"paper_{column}")) else f"{own} ({paper})"


def _notes(study: Ablation, results: Sequence[RowResult], table: Sequence[Line]) -> list[str]:
    renamed = {line.paper_organ: line.organ for line in table if line.paper_organ not in ("", line.organ)}
    tolerance = results[0].evaluation.tolerances.name if results else "1 mm"
    beside = "; ".join(f"{paper} of the paper beside {own}" for paper, own in renamed.items())
    return [
        f"The paper's numbers: {_source(study, results)}. {study.note}".strip(),
        *([f"Organs matched by meaning: {beside}."] if beside else []),
        "An order of rows is judged over the organs that the paper has, too; not where there is none, for "
        f"fewer than {MIN_CASES} cases, or for less than a tenth of the paper's steps.",
        f"p: two-sided Wilcoxon signed-rank test of the cases' mean Dice, paired by case, against the row "
        f"above and against '{study.baseline}'; none for fewer than {MIN_PAIRS} cases. By organ: in "
        "table.csv.",
        f"Means are over organs of the organs' means over cases; SD, median, minimum and maximum of the mean "
        "are of the cases' means; the papers' are means of the organs' and stand beside none. "
        f"NSD at {tolerance}.",
    ]


def _source(study: Ablation, results: Sequence[RowResult]) -> str:
    if not results or not results[0].unseen:
        return study.source
    return study.source_unseen or "none of an unseen set"
