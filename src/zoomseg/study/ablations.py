"""The papers' studies as data: trainings, ways of predicting, and published results.

A study starts from a shipped recipe. A *training* changes it before it is trained; a *row* of the table names
a training and changes the trained recipe once more before prediction, so that one training can serve several
rows. Published numbers are copied from the tables cited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from zoomseg.anatomy.organ_names import label_of
from zoomseg.core.labels import LabelSchema
from zoomseg.evaluation.tolerances import FLARE22_TOLERANCES, Tolerances
from zoomseg.study.recipe_edits import (
    Edit,
    chain,
    on_stages,
    only,
    overlap,
    times_atlas,
    trained_apart,
    unchanged,
    unweighted,
    without_atlas,
    without_auto_context,
)


@dataclass(frozen=True)
class Published:
    """The paper's results for one row, 0 to 1, by the paper's organ names; ``mean`` if it has one. Spread is
    over cases; for the mean, the papers give means of the organs' spread, which are omitted."""

    dice: Mapping[str, float]
    mean: float | None = None
    nsd: Mapping[str, float] = field(default_factory=dict)
    mean_nsd: float | None = None
    dice_sd: Mapping[str, float] = field(default_factory=dict)
    dice_median: Mapping[str, float] = field(default_factory=dict)
    dice_min: Mapping[str, float] = field(default_factory=dict)
    dice_max: Mapping[str, float] = field(default_factory=dict)
    nsd_sd: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyTraining:
    """One training per fold, in the folder ``id``. ``fine_tuned`` starts from the model given with --init,
    ``recipe`` from that shipped recipe or file instead of the study's."""

    id: str
    change: Edit = unchanged
    fine_tuned: bool = False
    unlabelled: bool = False
    """Whether the scans given with --unlabelled are also used for training, labelled by models trained
    first."""
    own_labels: bool = False
    """Whether these scans are used for training with their own labels in the data set. The row is omitted
    unless they are labelled cases of the data set that are in none of the lists of --split."""
    recipe: str | None = None


AT_1_MM = Tolerances.same(1.0)


@dataclass(frozen=True)
class TableRow:
    """One row of the table. ``training`` None: no network, only the atlas prior. ``published`` is of cases
    held out from the paper's training data, ``published_unseen`` of others."""

    name: str
    training: StudyTraining | None
    predict: Edit = unchanged
    published: Published | None = None
    published_unseen: Published | None = None
    tolerances: Tolerances = AT_1_MM
    """The tolerances of the paper's table or, if it has no NSD, 1 mm."""


@dataclass(frozen=True)
class OtherMethod:
    """A method with which a paper compares its own: mean and SD of the Dice, 0 to 1, by organ."""

    name: str
    subjects: int
    approach: str
    validation: str
    dice: Mapping[str, tuple[float, float]]
    hours: float | None
    """Per scan."""


@dataclass(frozen=True)
class Ablation:
    """A table of a paper. ``recipe`` is a shipped recipe's name or a file; None: that of the model given with
    --init. p-values compare each row with the one above it, and with ``baseline``."""

    name: str
    recipe: str | None
    source: str
    rows: tuple[TableRow, ...]
    baseline: str
    folds: int = 5
    pooled: bool = False
    """Whether all folds are trained unless one is requested, and their cases pooled."""
    note: str = ""
    """Information needed to compare with the paper's numbers."""
    source_unseen: str = ""
    """Source of the rows' ``published_unseen``."""
    others: tuple[OtherMethod, ...] = ()
    """Shown beside the rows' results on an unseen set."""
    source_others: str = ""

    @property
    def needs_unlabelled(self) -> bool:
        return any(row.training is not None and row.training.unlabelled for row in self.rows)

    @property
    def changes_nothing(self) -> bool:
        """Whether all rows train and predict with the unchanged recipe, so that it may have any stages."""
        trained = (row.training.change for row in self.rows if row.training is not None)
        return all(edit is unchanged for edit in (*trained, *(row.predict for row in self.rows)))


@dataclass(frozen=True)
class RegionCurve:
    """Growth of a candidate region: sensitivity and false-positive rate over the dilation radius."""

    name: str
    recipe: str
    source: str
    training: StudyTraining
    stage: str
    radii_vox: tuple[int, ...]
    folds: int = 5
    pooled: bool = False


# --- organs of the papers in a data set -----------------------------------------------------------

PROXIES: Mapping[str, tuple[str, ...]] = {
    "artery": ("aorta",),
    "vein": ("portal vein", "portal vein and splenic vein"),
}
"""A paper's organ -> the most similar organs of a data set, although not the same. The gastric surgery data
of Roth et al. label the arteries around the stomach, of which the aorta is the largest, and the portal vein
with its branches."""


def find_organ(paper: str, schema: LabelSchema) -> str | None:
    """The data set's label for a paper's organ, or None."""
    names = (paper, *PROXIES.get(paper, ()))
    return next((own for own in (label_of(name, schema) for name in names) if own is not None), None)


# --- published results ----------------------------------------------------------------------------


def _row(organs: tuple[str, ...], *dice: float, mean: float | None = None, unit: float = 1.0) -> Published:
    shares = {organ: round(value / unit, 6) for organ, value in zip(organs, dice, strict=True)}
    return Published(shares, None if mean is None else round(mean / unit, 6))


def _spread(
    published: Published,
    *,
    sd: tuple[float, ...],
    median: tuple[float, ...] = (),
    least: tuple[float, ...] = (),
    most: tuple[float, ...] = (),
) -> Published:
    """The published results with the spread over cases, in percent, in the order of its organs."""

    def shares(values: tuple[float, ...]) -> dict[str, float]:
        pairs = zip(published.dice, values, strict=True) if values else ()
        return {organ: round(value / 100, 6) for organ, value in pairs}

    return replace(
        published,
        dice_sd=shares(sd),
        dice_median=shares(median),
        dice_min=shares(least),
        dice_max=shares(most),
    )


CASCADE = "roth2018-cascade"
PYRAMID = "roth2018-pyramid"
VALINDRIA = "valindria2018-small-organs"
FLARE = "flare22-whole-volume"
VOTE = "zhou2016-2d-vote"

_CASCADE = StudyTraining("cascade")
_GASTRIC = ("artery", "vein", "liver", "spleen", "stomach", "gallbladder", "pancreas")
_TESTED = ("liver", "spleen", "pancreas")

CASCADE_ROWS = (
    TableRow(
        "stage 1, tiles side by side",
        _CASCADE,
        only("stage1"),
        _spread(
            _row(_GASTRIC, 59.0, 64.7, 89.6, 84.1, 80.0, 69.6, 54.8, mean=71.7, unit=100),
            sd=(7.8, 8.6, 1.7, 4.7, 18.3, 14.1, 11.0),
            median=(59.8, 67.3, 90.0, 85.2, 87.5, 73.2, 57.2),
            least=(41.0, 34.5, 84.4, 70.9, 8.4, 13.8, 23.5),
            most=(75.7, 76.0, 92.6, 91.4, 94.8, 86.8, 72.0),
        ),
        _spread(
            _row(_TESTED, 93.6, 89.7, 68.5, unit=100),
            sd=(2.5, 8.2, 8.2),
            median=(94.2, 91.8, 70.3),
            least=(78.2, 20.6, 32.0),
            most=(96.8, 95.7, 82.3),
        ),
    ),
    TableRow(
        "stage 2, tiles side by side",
        _CASCADE,
        overlap("stage2", 0.0),
        _spread(
            _row(_GASTRIC, 79.6, 73.1, 93.2, 90.6, 84.3, 70.6, 63.1, mean=79.2, unit=100),
            sd=(6.5, 7.9, 1.5, 2.8, 17.3, 15.9, 10.7),
            median=(82.3, 74.6, 93.5, 91.2, 90.9, 77.3, 64.5),
            least=(62.9, 33.3, 88.9, 82.3, 10.9, 13.0, 32.4),
            most=(87.0, 83.2, 95.6, 95.1, 96.3, 89.4, 81.8),
        ),
        _spread(
            _row(_TESTED, 94.9, 91.4, 81.2, unit=100),
            sd=(2.1, 8.9, 10.2),
            median=(95.4, 94.2, 83.1),
            least=(80.4, 22.3, 1.9),
            most=(97.3, 97.4, 91.3),
        ),
    ),
    TableRow(
        "stage 2, tiles overlapping",
        _CASCADE,
        unchanged,
        published_unseen=_spread(
            _row(_TESTED, 95.4, 92.8, 82.2, unit=100),
            sd=(2.0, 8.0, 10.2),
            median=(96.0, 95.4, 84.5),
            least=(80.9, 21.7, 1.8),
            most=(97.7, 98.1, 92.2),
        ),
    ),
)

_TABLE_4 = (
    "right lung",
    "left lung",
    "heart",
    "aorta",
    "esophagus",
    "liver",
    "gallbladder",
    "stomach and duodenum",
    "stomach and duodenum, air",
    "stomach and duodenum, not air",
    "spleen",
    "right kidney",
    "left kidney",
    "inferior vena cava",
    "portal vein",
    "pancreas",
    "prostate",
    "bladder",
)

# Section 3.4 does not describe the tiles; in Section 4.1 they are non-overlapping "as in previous sections".
VOTE_ROWS = (
    TableRow(
        "2D, majority vote",
        StudyTraining("2d", recipe=VOTE),
        published=_spread(
            _row(
                _TABLE_4,
                *(94.6, 92.8, 91.2, 76.0, 24.6, 94.3, 47.5, 68.0, 64.0),
                *(8.5, 86.7, 92.2, 90.2, 63.6, 33.6, 55.4, 1.2, 78.8),
                mean=65.0,
                unit=100,
            ),
            sd=(
                *(2.8, 3.8, 4.0, 11.8, 16.7, 3.3, 39.9, 19.1, 32.2),
                *(15.6, 14.5, 2.1, 4.0, 19.1, 29.5, 19.3, 2.3, 13.9),
            ),
        ),
    ),
    TableRow(
        "3D, stage 1",
        _CASCADE,
        only("stage1"),
        _spread(
            _row(
                _TABLE_4,
                *(90.1, 87.8, 70.9, 50.7, 0.0, 90.2, 9.1, 58.2, 52.4),
                *(1.1, 81.2, 80.9, 82.8, 59.8, 30.0, 47.5, 0.0, 57.2),
                mean=52.8,
                unit=100,
            ),
            sd=(
                *(4.0, 5.3, 11.8, 5.4, 0.0, 3.5, 11.6, 15.2, 27.4),
                *(1.7, 12.1, 10.6, 8.3, 15.2, 21.3, 16.3, 0.0, 14.0),
            ),
        ),
    ),
    TableRow(
        "3D, stage 2",
        _CASCADE,
        overlap("stage2", 0.0),
        _spread(
            _row(
                _TABLE_4,
                *(91.9, 93.2, 86.2, 82.3, 51.9, 93.6, 58.4, 61.9, 48.8),
                *(20.7, 86.6, 90.8, 86.1, 70.6, 56.0, 71.0, 38.0, 71.6),
                mean=69.3,
                unit=100,
            ),
            sd=(
                *(3.6, 4.0, 5.6, 5.9, 5.3, 2.7, 33.2, 13.4, 26.6),
                *(20.0, 6.6, 6.7, 11.1, 17.5, 16.6, 13.9, 29.3, 20.8),
            ),
        ),
    ),
)


def _method(
    name: str,
    subjects: int,
    approach: str,
    validation: str,
    hours: float | None,
    **percent: tuple[float, float],
) -> OtherMethod:
    dice = {organ: (round(mean / 100, 6), round(sd / 100, 6)) for organ, (mean, sd) in percent.items()}
    return OtherMethod(name, subjects, approach, validation, dice, hours)


_PUBLIC = "the TCIA Pancreas-CT data set"

CASCADE_OTHERS = (
    _method(
        "Roth et al. 2018",
        150,
        "3D FCN",
        "test set",
        0.07,
        liver=(95.4, 2.0),
        spleen=(92.8, 8.0),
        pancreas=(82.2, 10.2),
    ),
    _method(
        "Tong et al. 2015",
        150,
        "global affine + machine learning",
        "leave one out",
        0.5,
        liver=(94.9, 1.9),
        spleen=(92.5, 6.5),
        pancreas=(71.1, 14.7),
    ),
    _method(
        "Wang et al. 2014",
        100,
        "global affine",
        "leave one out",
        14,
        liver=(94.5, 2.5),
        spleen=(92.5, 8.4),
        pancreas=(65.5, 18.6),
    ),
    _method(
        "Wolz et al. 2013",
        150,
        "local non-rigid",
        "leave one out",
        3,
        liver=(94.0, 2.8),
        spleen=(92.0, 9.2),
        pancreas=(69.6, 16.7),
    ),
    _method(
        "Oda et al. 2016", 147, "regression forest + graph cut", "leave one out", 3, pancreas=(75.1, 15.4)
    ),
    _method("Roth et al. 2018", 82, "3D FCN", f"4 folds of {_PUBLIC}", 0.07, pancreas=(76.8, 9.4)),
    _method("Roth et al. 2017", 82, "2D FCN", f"4 folds of {_PUBLIC}", 0.05, pancreas=(81.3, 6.3)),
    _method("Zhou et al. 2016b", 82, "2D FCN", f"4 folds of {_PUBLIC}", None, pancreas=(82.4, 5.7)),
)

_APART = StudyTraining("apart", trained_apart)
_ALONE = StudyTraining("level2-alone", chain(on_stages(without_auto_context, "level2"), only("level2")))

PYRAMID_ROWS = (
    TableRow(
        "level 1",
        _APART,
        only("level1"),
        _spread(
            _row(_GASTRIC, 75.4, 64.0, 95.4, 94.0, 93.7, 80.2, 79.8, mean=83.2, unit=100),
            sd=(3.9, 5.4, 1.0, 0.8, 7.6, 15.5, 8.5),
            least=(67.4, 41.3, 91.5, 92.6, 48.4, 27.3, 49.7),
            most=(82.3, 70.9, 96.4, 95.8, 96.5, 93.5, 90.6),
        ),
    ),
    TableRow(
        "level 2, auto-context",
        _APART,
        unchanged,
        _spread(
            _row(_GASTRIC, 82.5, 76.8, 96.7, 96.6, 95.9, 84.4, 83.4, mean=88.1, unit=100),
            sd=(4.1, 6.4, 1.0, 0.7, 8.0, 14.0, 8.4),
            least=(73.3, 46.3, 92.9, 94.4, 48.1, 28.0, 53.9),
            most=(90.0, 83.5, 97.9, 98.0, 98.7, 96.0, 93.4),
        ),
    ),
    TableRow(
        "end-to-end, auto-context",
        StudyTraining("end-to-end"),
        unchanged,
        _spread(
            _row(_GASTRIC, 83.0, 79.4, 96.9, 97.2, 96.2, 83.6, 86.7, mean=89.0, unit=100),
            sd=(4.4, 6.7, 1.0, 1.0, 5.9, 17.1, 7.4),
            least=(73.2, 50.2, 93.5, 94.9, 61.4, 29.7, 60.0),
            most=(91.0, 87.7, 98.3, 98.7, 98.7, 96.4, 95.2),
        ),
        _row(("liver", "spleen", "gallbladder", "pancreas"), 95.3, 93.6, 80.8, 75.7, mean=86.3, unit=100),
    ),
    TableRow(
        "level 2, no auto-context",
        _ALONE,
        unchanged,
        _spread(
            _row(_GASTRIC, 69.9, 72.8, 86.7, 90.9, 3.8, 73.4, 77.0, mean=67.8, unit=100),
            sd=(6.2, 7.0, 6.4, 5.3, 1.3, 22.5, 10.8),
            least=(59.5, 47.1, 69.9, 75.7, 0.7, 7.8, 36.1),
            most=(82.1, 82.9, 95.7, 97.0, 7.4, 95.9, 90.9),
        ),
    ),
)

_SMALL = (
    "adrenal gland",
    "gallbladder",
    "pancreas",
    "bladder",
    "right clavicle",
    "left clavicle",
    "rectum",
    "sacrum",
)
_PLAIN = StudyTraining("plain", chain(without_atlas, on_stages(without_auto_context), on_stages(unweighted)))
_WEIGHTED = StudyTraining("weighted", without_atlas)

VALINDRIA_ROWS = (
    TableRow(
        "multi-atlas alone",
        None,
        unchanged,
        _row(_SMALL, 0.044, 0.298, 0.377, 0.680, 0.135, 0.163, 0.429, 0.466, mean=0.324),
    ),
    TableRow(
        "FCN",
        _PLAIN,
        only("coarse"),
        _row(_SMALL, 0.006, 0.330, 0.373, 0.401, 0.055, 0.080, 0.346, 0.361, mean=0.244),
    ),
    TableRow(
        "W",
        _WEIGHTED,
        only("coarse"),
        _row(_SMALL, 0.097, 0.443, 0.465, 0.689, 0.462, 0.484, 0.526, 0.701, mean=0.483),
    ),
    TableRow(
        "W + CMA",
        _WEIGHTED,
        chain(only("coarse"), times_atlas("coarse", VALINDRIA)),
        _row(_SMALL, 0.203, 0.436, 0.519, 0.717, 0.381, 0.397, 0.549, 0.693, mean=0.487),
    ),
    TableRow(
        "2SN",
        _PLAIN,
        unchanged,
        _row(_SMALL, 0.046, 0.375, 0.455, 0.594, 0.274, 0.379, 0.393, 0.490, mean=0.376),
    ),
    TableRow(
        "W + AC + 2SN",
        _WEIGHTED,
        unchanged,
        _row(_SMALL, 0.133, 0.507, 0.612, 0.729, 0.519, 0.535, 0.591, 0.721, mean=0.543),
    ),
    TableRow(
        "W + AC + 2SN + CMA",
        StudyTraining("full"),
        unchanged,
        _row(_SMALL, 0.146, 0.532, 0.567, 0.754, 0.541, 0.547, 0.658, 0.735, mean=0.560),
    ),
)

_WHOLE = StudyTraining("whole-volume")

FLARE_ROWS = (
    TableRow("coarse only", _WHOLE, only("coarse"), tolerances=FLARE22_TOLERANCES),
    TableRow(
        "coarse to fine",
        _WHOLE,
        unchanged,
        Published(
            dice={
                "liver": 0.9695,
                "right kidney": 0.9203,
                "spleen": 0.9420,
                "pancreas": 0.8711,
                "aorta": 0.9426,
                "inferior vena cava": 0.9049,
                "right adrenal gland": 0.7703,
                "left adrenal gland": 0.8009,
                "gallbladder": 0.8070,
                "esophagus": 0.8482,
                "stomach": 0.9122,
                "duodenum": 0.8102,
                "left kidney": 0.8977,
            },
            mean=0.8767,
            nsd={
                "liver": 0.9832,
                "right kidney": 0.9448,
                "spleen": 0.9807,
                "pancreas": 0.9643,
                "aorta": 0.9813,
                "inferior vena cava": 0.9272,
                "right adrenal gland": 0.8807,
                "left adrenal gland": 0.8948,
                "gallbladder": 0.7943,
                "esophagus": 0.9315,
                "stomach": 0.9553,
                "duodenum": 0.9424,
                "left kidney": 0.9302,
            },
            mean_nsd=0.9316,
            dice_sd={
                "liver": 0.0211,
                "right kidney": 0.1899,
                "spleen": 0.0197,
                "pancreas": 0.0459,
                "aorta": 0.0248,
                "inferior vena cava": 0.0825,
                "right adrenal gland": 0.2240,
                "left adrenal gland": 0.2352,
                "gallbladder": 0.2417,
                "esophagus": 0.1205,
                "stomach": 0.1430,
                "duodenum": 0.1023,
                "left kidney": 0.1746,
            },
            nsd_sd={
                "liver": 0.0350,
                "right kidney": 0.1956,
                "spleen": 0.0421,
                "pancreas": 0.0442,
                "aorta": 0.0312,
                "inferior vena cava": 0.0885,
                "right adrenal gland": 0.2313,
                "left adrenal gland": 0.2315,
                "gallbladder": 0.2475,
                "esophagus": 0.1207,
                "stomach": 0.1245,
                "duodenum": 0.0611,
                "left kidney": 0.1799,
            },
        ),
        tolerances=FLARE22_TOLERANCES,
    ),
)

UNLABELLED_ROWS = (
    TableRow(
        "labelled scans alone",
        StudyTraining("labelled"),
        published=FLARE_ROWS[1].published,
        tolerances=FLARE22_TOLERANCES,
    ),
    TableRow(
        "labelled and unlabelled scans",
        StudyTraining("unlabelled", unlabelled=True),
        tolerances=FLARE22_TOLERANCES,
    ),
    TableRow(
        "all scans labelled", StudyTraining("all-labelled", own_labels=True), tolerances=FLARE22_TOLERANCES
    ),
)

_TORSO = (
    "right lung",
    "left lung",
    "liver",
    "gallbladder",
    "spleen",
    "right kidney",
    "left kidney",
    "pancreas",
)

FINETUNE_ROWS = (
    TableRow(
        "from scratch",
        StudyTraining("scratch"),
        published_unseen=_row(_TORSO, 96.2, 96.3, 94.0, 74.9, 91.0, 87.6, 84.1, 32.0, mean=82.0, unit=100),
    ),
    TableRow(
        "fine-tuned",
        StudyTraining("fine-tuned", fine_tuned=True),
        published_unseen=_row(_TORSO, 96.4, 96.6, 94.9, 76.3, 90.1, 90.5, 88.5, 33.0, mean=83.3, unit=100),
    ),
)

STUDIES: Mapping[str, Ablation | RegionCurve] = {
    study.name: study
    for study in (
        Ablation(
            CASCADE,
            CASCADE,
            "Roth et al. 2018, Comput Med Imaging Graph 66:90-99, Table 1 (50 validation scans)",
            CASCADE_ROWS,
            baseline=CASCADE_ROWS[0].name,
            source_unseen="the same, Table 2 (150 scans of another hospital)",
            others=CASCADE_OTHERS,
            source_others="Roth et al. 2018, Table 3",
        ),
        RegionCurve(
            "roth2018-candidate-region",
            CASCADE,
            "Roth et al. 2018, Comput Med Imaging Graph 66:90-99, Fig. 6",
            StudyTraining("stage1", only("stage1")),
            stage="stage1",
            radii_vox=tuple(range(7)),
        ),
        Ablation(
            "zhou2016",
            CASCADE,
            "Roth et al. 2018, Comput Med Imaging Graph 66:90-99, Table 4 (12 test scans, 228 for training)",
            VOTE_ROWS,
            baseline=VOTE_ROWS[0].name,
            note="The paper's p-values are of stage 2 against the 2D vote, as 'p, baseline' here.",
        ),
        Ablation(
            PYRAMID,
            PYRAMID,
            "Roth et al. 2018, MICCAI, LNCS 11073:417-425, Table 1 (37 scans)",
            PYRAMID_ROWS,
            baseline=PYRAMID_ROWS[0].name,
            source_unseen="the same, Table 2 (129 scans of another hospital)",
        ),
        Ablation(
            "valindria2018",
            VALINDRIA,
            "Valindria et al. 2018, MLMI, LNCS 11046:346-354, Table 1 (48 whole-body MR, two folds)",
            VALINDRIA_ROWS,
            baseline="FCN",
            folds=2,
            pooled=True,
            note="The paper's means are over its eight small organs.",
        ),
        Ablation(
            "flare22",
            FLARE,
            "Chen et al. 2022, MICCAI FLARE challenge, Table 4 (50 validation scans)",
            FLARE_ROWS,
            baseline=FLARE_ROWS[0].name,
            note="Scored by the challenge's rule, with a tolerance for each organ.",
        ),
        Ablation(
            "flare22-unlabelled",
            FLARE,
            "Chen et al. 2022, MICCAI FLARE challenge, Table 4 (50 labelled scans, 50 validation scans)",
            UNLABELLED_ROWS,
            baseline=UNLABELLED_ROWS[0].name,
            note="Scored by the challenge's rule, with a tolerance for each organ. Of the 2000 unlabelled "
            "scans the paper says that MoCo v2, SimSiam and pretraining by a pix2pix GAN had little effect "
            "(best mean Dice 0.8416); its tables are of the labelled scans alone. Self-training is not the "
            "paper's.",
        ),
        Ablation(
            "roth2018-finetune",
            None,
            "Roth et al. 2018, Comput Med Imaging Graph 66:90-99, Section 4; no table of held-out cases",
            FINETUNE_ROWS,
            baseline=FINETUNE_ROWS[0].name,
            source_unseen="the same, Table 5 (10 torso scans)",
        ),
    )
}
