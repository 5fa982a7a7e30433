"""Association between confidence and Dice on held-out cases, unchanged and artificially degraded.

    uv run python benchmarks/confidence.py DATASET MODEL -o OUT [--more IMAGE LABELS NAMES.json]

DATASET is the one that MODEL was trained on; its held-out cases are predicted. `--more` adds a scan from
another source, with its labels and a JSON file with their values by name. Writes OUT/rows.csv, one row per
case, change and organ (existing rows are not predicted again), and OUT/table.md. The calibration for a case
is estimated from the other cases, unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from robustness import CHANGES, MIN_VOXELS, Scan, arguments, opened
from scipy.stats import spearmanr

from zoomseg.core.case import Case
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.evaluation.calibration import Scored, calibrate
from zoomseg.inference.confidence import dice_intervals, estimated_dice
from zoomseg.inference.predictor import Predictor
from zoomseg.io.scans import read_image, read_label_values

AS_IT_IS = "as it is"
BAD, REVIEWED = 0.5, 0.1
"""A Dice below the first should be reviewed; the second is the share of organs that is reviewed."""
WORSE = ("noise of 40 HU", "slices of 10 mm", "without contrast", "middle third only")


def rows_of(name: str, change: str, scan: Scan, predictor: Predictor) -> list[dict[str, object]]:
    """One row per organ in the reference or the prediction. In a changed scan, organs of which fewer than
    ``MIN_VOXELS`` are left (at the edge of a cut) are omitted."""
    image, labels = scan
    result = predictor.predict(Case(name, image), keep=False)
    widened = len(result.records[-1].widened)
    rows: list[dict[str, object]] = []
    for organ in labels.schema.names:
        reference = labels.data == labels.schema.class_of(organ)
        answer = result.labels.data == result.schema.class_of(organ)
        sizes = int(reference.sum()), int(answer.sum())
        if sum(sizes) == 0 or (change != AS_IT_IS and sizes[0] < MIN_VOXELS):
            continue
        dice = 2 * int((reference & answer).sum()) / sum(sizes)
        signs = result.uncertainty.get(organ)
        own: dict[str, object] = {}
        if signs is not None:
            own = {
                "expected": signs.own.expected_dice,
                "cut": signs.cut,
            }
        rows.append({"case": name, "change": change, "organ": organ, "dice": dice, "widened": widened, **own})
    return rows


def more(image: Path, labels: Path, names: Path, schema: LabelSchema) -> Scan:
    """A scan from another source, with those of its labels that the model predicts."""
    scan, (values, grid) = read_image(image), read_label_values(labels)
    known: dict[str, int] = json.loads(names.read_text(encoding="utf-8"))
    theirs = LabelSchema(tuple(known), tuple(known.values()))
    found = {organ: theirs.find(organ) for organ in schema.names}
    drawn = {organ: known[name] for organ, name in found.items() if name is not None}
    drawn = {organ: value for organ, value in drawn.items() if (values == value).any()}
    classes = np.zeros(values.shape, dtype=np.uint8)
    for c, value in enumerate(drawn.values(), start=1):
        classes[values == value] = c
    return scan, LabelMap(classes, grid, LabelSchema.consecutive(drawn))


def estimates(rows: pd.DataFrame) -> pd.DataFrame:
    """The confidence of every row and the 90 % interval of its Dice, estimated from the unchanged other cases
    of the data set."""
    plain = rows[(rows.change == AS_IT_IS) & ~rows.elsewhere]
    out = pd.DataFrame(np.nan, index=rows.index, columns=["confidence", "low", "high"])
    for case in rows.case.unique():
        others = plain[plain.case != case]
        known = [Scored(r.case, r.organ, r.expected, r.dice) for r in others.itertuples()]
        learned = calibrate(known)
        for r in rows[rows.case == case].itertuples():
            estimated = estimated_dice({r.organ: r.expected}, learned)
            out.loc[r.Index, "confidence"] = estimated[r.organ]
            out.loc[r.Index, ["low", "high"]] = dice_intervals(estimated, learned).get(r.organ, (np.nan,) * 2)
    return out


def covered(rows: pd.DataFrame) -> float:
    """The share of organs whose Dice lies in its 90 % interval."""
    return float(((rows.low <= rows.dice) & (rows.dice <= rows.high)).mean())


def found(rows: pd.DataFrame) -> str:
    """How many of the organs with a Dice below ``BAD`` are among the tenth with the lowest confidence."""
    bad = rows.dice < BAD
    first = rows.confidence.rank(method="first") <= max(1, round(REVIEWED * len(rows)))
    return f"{int((bad & first).sum())} of {int(bad.sum())} ({int(first.sum())} seen)"


def summary(name: str, rows: pd.DataFrame) -> str:
    """One line of the table."""
    low = rows.confidence <= rows.confidence.quantile(0.2)
    ranks = [spearmanr(rows[column], rows.dice)[0] for column in ("expected", "confidence")]
    errors = [(rows[column] - rows.dice).abs().mean() for column in ("expected", "confidence")]
    bias = [(rows[column] - rows.dice).mean() for column in ("expected", "confidence")]
    scans = rows.groupby(["case", "change"]).ngroups
    return (
        f"| {name} | {scans} | {len(rows)} | {ranks[0]:.2f} | {ranks[1]:.2f} "
        f"| {errors[0]:.3f} ({bias[0]:+.3f}) | {errors[1]:.3f} ({bias[1]:+.3f}) "
        f"| {rows.dice[low].mean():.3f} | {rows.dice[~low].mean():.3f} "
        f"| {covered(rows):.0%} | {found(rows)} |"
    )


def table(rows: pd.DataFrame) -> str:
    missed = rows[rows.expected.isna()]
    rows = rows[rows.expected.notna()].copy()
    rows = rows.join(estimates(rows))
    lines = [
        "| which | scans | organs | rank correlation, expected | estimated | error (bias), expected "
        "| estimated | Dice, lowest fifth | others | in the 90 % interval "
        f"| Dice < {BAD:g} in the lowest tenth |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours = rows[~rows.elsewhere]
    lines += [summary(f"kept back, {c}", ours[ours.change == c]) for c in (AS_IT_IS, *WORSE)]
    if rows.elsewhere.any():
        lines.append(summary("from elsewhere", rows[rows.elsewhere]))
    lines += [summary("all", rows), "", "| organ | scans | Dice | rank correlation |", "|---|---:|---:|---:|"]
    for organ, own in rows.groupby("organ", sort=False):
        rank = spearmanr(own.expected, own.dice)[0]
        lines.append(f"| {organ} | {len(own)} | {own.dice.mean():.3f} | {rank:.2f} |")
    scans = rows.groupby(["case", "change"]).widened.max()
    lines += ["", f"{len(missed)} organs were not found at all and have no confidence."]
    lines.append(f"The fine region was widened in {int((scans > 0).sum())} of {len(scans)} scans.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--more", type=Path, nargs=3, action="append", default=[])
    options = parser.parse_args()
    predictor, dataset = opened(options)
    file = options.out / "rows.csv"
    rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
    done = {(r["case"], r["change"]) for r in rows}

    def add(name: str, change: str, load: Callable[[], Scan], elsewhere: bool) -> None:
        if (name, change) in done:
            return
        rows.extend({**r, "elsewhere": elsewhere} for r in rows_of(name, change, load(), predictor))
        pd.DataFrame(rows).to_csv(file, index=False)

    def changed(case: Case, change: str) -> Callable[[], Scan]:
        assert case.labels is not None
        scan = (case.image, case.labels)
        return lambda: CHANGES[change](scan)

    for files in dataset.cases:
        case = dataset.load(files)
        for change in (AS_IT_IS, *WORSE):
            add(case.id, change, changed(case, change), False)
    for image, labels, names in options.more:
        load = partial(more, image, labels, names, predictor.bundle.schema)
        add(image.name.split(".")[0], AS_IT_IS, load, True)
    text = table(pd.DataFrame(rows))
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
