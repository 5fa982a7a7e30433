"""The result of an evaluation: scores by case, and summaries by organ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from zoomseg.evaluation.attribution import LOSSES, NOTHING, Attribution
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.tolerances import Tolerances

METRICS = ("dice", "nsd", "hd95_mm", "assd_mm")


@dataclass(frozen=True)
class CaseResult:
    """The scores of a case, one per annotated organ. ``attributions`` are by organ, if the stages were kept;
    ``unattributed`` is why there are none nevertheless."""

    id: str
    scores: tuple[OrganScore, ...]
    attributions: Mapping[str, Attribution] = field(default_factory=dict)
    unattributed: str = ""

    @property
    def mean_dice(self) -> float:
        """Mean over the scored organs; NaN if there is none."""
        return mean(score.dice for score in self.scores)

    @property
    def dice_by_organ(self) -> dict[str, float]:
        return {score.organ: score.dice for score in self.scores}

    @property
    def worst(self) -> OrganScore | None:
        """The organ with the lowest Dice (of several, the largest); None if none was scored."""
        scored = [s for s in self.scores if not math.isnan(s.dice)]
        return min(scored, key=lambda s: (s.dice, -s.reference_ml - s.volume_ml), default=None)


@dataclass(frozen=True)
class UnscoredCase:
    """A case that could not be scored, and the reason."""

    case: str
    reason: str


@dataclass(frozen=True)
class OrganSummary:
    """An organ over all cases. ``cases`` is the number of cases in which it was scored. Distances are means
    over the cases in which both maps contain it, region recalls and losses over those whose stages were kept.
    Undefined values are NaN."""

    organ: str
    dice: float
    nsd: float
    hd95_mm: float
    assd_mm: float
    dice_sd: float
    nsd_sd: float
    volume_error_ml: float
    """Mean of predicted minus reference volume."""
    volume_error_percent: float
    """Mean of that difference relative to the reference, over cases whose reference has the organ."""
    cases: int
    missed: int
    """Cases in which only the reference has the organ."""
    spurious: int
    """Cases in which only the prediction has the organ."""
    region_recall: float
    region_recall_worst: float
    """Lowest recall of all cases."""
    lost_coarse: float
    lost_region: float
    lost_boundary: float
    lost_elsewhere: float


@dataclass(frozen=True)
class Evaluation:
    """The result of ``evaluate``; ``organs`` are in schema order."""

    organs: tuple[str, ...]
    tolerances: Tolerances
    cases: tuple[CaseResult, ...]
    failures: tuple[UnscoredCase, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def summary(self) -> tuple[OrganSummary, ...]:
        return tuple(summarise(o, self.scores_of(o), self.attributions_of(o)) for o in self.organs)

    @property
    def mean(self) -> dict[str, float]:
        """Mean of each metric over the means of the organs."""
        rows = self.summary
        return {metric: mean(getattr(row, metric) for row in rows) for metric in METRICS}

    def scores_of(self, organ: str) -> list[OrganScore]:
        """Scores of an organ in all cases in which it was scored, in order of the cases."""
        found = (s for case in self.cases for s in case.scores if s.organ == organ)
        return [s for s in found if not math.isnan(s.dice)]

    def attributions_of(self, organ: str) -> list[Attribution]:
        """Attributions of an organ in all cases with kept stages in which either map contains it."""
        found = (case.attributions.get(organ, NOTHING) for case in self.cases)
        return [a for a in found if not math.isnan(a.lost_elsewhere)]

    def _tolerance_mm(self) -> float | dict[str, float] | None:
        """One value for all, or by organ for those that have one."""
        rules = self.tolerances
        if not rules.organs:
            return rules.others.tolerance_mm
        found = {organ: rules.of(organ).tolerance_mm for organ in self.organs}
        return {organ: mm for organ, mm in found.items() if mm is not None}

    @property
    def attributed(self) -> bool:
        """Whether the stages of any case were kept."""
        return any(case.attributions for case in self.cases)

    @property
    def with_regions(self) -> bool:
        """Whether any organ was predicted in a region: otherwise no region lost anything."""
        found = (own.region_recall for case in self.cases for own in case.attributions.values())
        return any(math.isfinite(recall) for recall in found)

    def as_json(self) -> dict[str, object]:
        """``summary.json``; undefined values are null."""
        organs = {row.organ: without_name(asdict(row)) for row in self.summary}
        return {
            "mean": {metric: _or_null(value) for metric, value in self.mean.items()},
            "organs": organs,
            "tolerance_mm": self._tolerance_mm(),
            "rule": self.tolerances.name,
            "cases": len(self.cases),
            "failed": {failure.case: failure.reason for failure in self.failures},
        }


def summarise(organ: str, scores: list[OrganScore], attributions: Sequence[Attribution] = ()) -> OrganSummary:
    """Means and counts of one organ's scores, none of which has a NaN Dice."""
    means: dict[str, float] = {metric: mean(getattr(s, metric) for s in scores) for metric in METRICS}
    recalls = [a.region_recall for a in attributions]
    relative = [100 * (s.volume_ml / s.reference_ml - 1) for s in scores if s.reference_ml > 0]
    return OrganSummary(
        organ,
        **means,
        dice_sd=_deviation([s.dice for s in scores]),
        nsd_sd=_deviation([s.nsd for s in scores]),
        volume_error_ml=mean(s.volume_ml - s.reference_ml for s in scores),
        volume_error_percent=mean(relative),
        cases=len(scores),
        missed=sum(s.missed for s in scores),
        spurious=sum(s.spurious for s in scores),
        region_recall=mean(recalls),
        region_recall_worst=min((r for r in recalls if math.isfinite(r)), default=math.nan),
        **{loss: mean(getattr(a, loss) for a in attributions) for loss in LOSSES},
    )


def mean(values: Iterable[float]) -> float:
    """Mean of the finite values; NaN if there is none."""
    finite = [v for v in values if math.isfinite(v)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _deviation(values: list[float]) -> float:
    """Sample standard deviation; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def without_name(row: Mapping[str, object]) -> dict[str, object]:
    """An organ's row as JSON values, by its name elsewhere; undefined values are null."""
    return {key: _or_null(v) if isinstance(v, float) else v for key, v in row.items() if key != "organ"}
