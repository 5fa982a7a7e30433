"""Numbers of the table: pooled means, paired tests, the paper's numbers, and the verdict on the order."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from scipy import stats

from zoomseg.core.labels import LabelSchema
from zoomseg.evaluation.comparison import MEAN
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation
from zoomseg.evaluation.tolerances import Tolerances
from zoomseg.study.ablations import Ablation, Published, TableRow
from zoomseg.study.table import (
    RowResult,
    as_csv,
    findings,
    lines,
    on_common_organs,
    paired_p,
    verdict,
    write_report,
    write_table,
)

SCHEMA = LabelSchema.consecutive(["liver", "aorta", "left kidney"])
LOW = [0.2, 0.3, 0.25, 0.35, 0.4, 0.1]
HIGH = [0.5, 0.55, 0.75, 0.45, 0.8, 0.2]


def scored(**dice: list[float]) -> Evaluation:
    """Cases with these Dice by organ; NSD is half of Dice."""
    count = len(next(iter(dice.values())))
    cases = tuple(
        CaseResult(
            f"case_{n}",
            tuple(OrganScore(o, values[n], values[n] / 2, 1.0, 1.0, 1.0, 1.0) for o, values in dice.items()),
        )
        for n in range(count)
    )
    return Evaluation(tuple(dice), Tolerances.same(1.0), cases)


def row(name: str, liver: float | None, artery: float = 0.5, mean: float | None = None) -> TableRow:
    published = (
        None if liver is None else Published({"liver": liver, "artery": artery}, mean, {"liver": 0.25})
    )
    return TableRow(name, None, published=published)


def study(*rows: TableRow) -> Ablation:
    return Ablation("test", None, "Table 9", rows, baseline=rows[0].name)


def results(*pairs: tuple[TableRow, Evaluation]) -> list[RowResult]:
    return [RowResult(row, evaluation) for row, evaluation in pairs]


def test_the_test_is_scipys_signed_rank_over_shared_cases() -> None:
    a, b = scored(liver=LOW), scored(liver=HIGH)
    expected = stats.wilcoxon(LOW, HIGH).pvalue
    assert expected == pytest.approx(0.03125)
    assert paired_p(a, b, "liver") == pytest.approx(expected)
    assert paired_p(a, b, MEAN) == pytest.approx(expected)
    fewer = Evaluation(b.organs, Tolerances.same(1.0), b.cases[1:])
    assert math.isnan(paired_p(a, fewer, "liver"))
    assert paired_p(a, a, "liver") == 1.0


def test_cases_without_the_organ_do_not_pair() -> None:
    a, b = scored(liver=[*LOW, math.nan]), scored(liver=[*HIGH, 0.9])
    assert paired_p(a, b, "liver") == pytest.approx(0.03125)


def test_lines_have_own_and_published_values() -> None:
    first, second = row("one", 0.9, 0.6, mean=0.75), row("two", None)
    table = lines(
        study(first, second),
        results((first, scored(liver=LOW, aorta=HIGH)), (second, scored(liver=HIGH, aorta=HIGH))),
        SCHEMA,
    )
    by = {(line.row, line.organ): line for line in table}
    assert list(by) == [(r, o) for r in ("one", "two") for o in (MEAN, "liver", "aorta")]
    liver, aorta, mean = by["one", "liver"], by["one", "aorta"], by["one", MEAN]
    assert liver.dice == pytest.approx(sum(LOW) / 6)
    assert liver.nsd == pytest.approx(sum(LOW) / 12)
    assert mean.dice == pytest.approx((sum(LOW) + sum(HIGH)) / 12)
    assert (liver.paper_organ, liver.paper_dice, liver.paper_nsd) == ("liver", 0.9, 0.25)
    assert (aorta.paper_organ, aorta.paper_dice) == ("artery", 0.6)
    assert math.isnan(aorta.paper_nsd)
    assert mean.paper_dice == 0.75
    assert math.isnan(liver.p_row_above)
    assert math.isnan(liver.p_baseline)
    assert by["two", "liver"].p_row_above == by["two", "liver"].p_baseline == pytest.approx(0.03125)
    assert by["two", "aorta"].p_row_above == 1.0
    assert math.isnan(by["two", "liver"].paper_dice)


def test_csv_leaves_empty_what_does_not_exist() -> None:
    first = row("one", None)
    text = as_csv(lines(study(first), results((first, scored(liver=[0.5, 0.7]))), SCHEMA))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [r["organ"] for r in rows] == ["mean", "liver"]
    assert rows[1]["dice"] == "0.6"
    assert rows[1]["dice_sd"] == "0.141421"
    assert (rows[1]["cases"], rows[1]["paper_dice"], rows[1]["p_baseline"]) == ("2", "", "")
    assert rows[1]["steps"] == ""


def test_the_papers_spread_stands_beside_ours(tmp_path: Path) -> None:
    """For the organ; not for the mean, for which the papers give something else."""
    published = Published(
        {"liver": 0.9}, 0.9, dice_sd={"liver": 0.05}, dice_min={"liver": 0.4}, nsd_sd={"liver": 0.125}
    )
    first = TableRow("one", None, published=published)
    write_table(tmp_path, study(first), results((first, scored(liver=[0.5, 0.7]))), SCHEMA, [])
    mean, liver = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    names = ("dice_sd", "dice_median", "dice_min", "dice_max", "nsd_sd")
    assert [liver[f"paper_{name}"] for name in names] == ["0.05", "", "0.4", "", "0.125"]
    assert [mean[f"paper_{name}"] for name in names] == [""] * 5
    sheet = (tmp_path / "table.md").read_text().partition("## Dice and NSD over cases")[2]
    assert "| one: mean Dice | 0.600 (0.900) | 0.600 (0.900) |" in sheet
    assert "| one: SD | 0.141 | 0.141 (0.050) |" in sheet
    assert "| one: median | 0.600 | 0.600 |" in sheet
    assert "| one: minimum | 0.500 | 0.500 (0.400) |" in sheet
    assert "| one: SD of the NSD | 0.071 | 0.071 (0.125) |" in sheet


def test_every_line_of_a_row_has_the_steps_of_its_training() -> None:
    first = row("one", None)
    result = RowResult(first, scored(liver=[0.5, 0.7]), {"coarse": 1_200_000, "fine": 34_567})
    rows = csv.DictReader(io.StringIO(as_csv(lines(study(first), [result], SCHEMA))))
    assert [r["steps"] for r in rows] == ["1234567", "1234567"]


def test_rows_are_compared_over_the_organs_that_all_predict() -> None:
    one, two = row("one", None), row("two", None)
    found = on_common_organs(
        results((one, scored(liver=LOW, aorta=HIGH)), (two, scored(aorta=LOW, **{"left kidney": LOW})))
    )
    assert [r.evaluation.organs for r in found] == [("aorta",), ("aorta",)]
    assert found[0].evaluation.mean["dice"] == pytest.approx(sum(HIGH) / 6)
    assert [len(case.scores) for case in found[0].evaluation.cases] == [1] * 6


@pytest.mark.parametrize(
    ("papers", "own", "verdict"),
    [
        ((0.6, 0.8), (LOW, HIGH), "reproduced"),
        ((0.8, 0.6), (LOW, HIGH), "not reproduced"),
        ((0.8, 0.6), (HIGH, LOW), "reproduced"),
        ((0.6, 0.8), (LOW, LOW), "undecided, equal"),
        ((0.6, 0.8), ([0.1] * 6, [0.1004] * 6), "undecided, equal"),
        ((0.6, 0.8), ([0.1] * 6, [0.1006] * 6), "reproduced"),
    ],
)
def test_the_papers_order(
    papers: tuple[float, float], own: tuple[list[float], list[float]], verdict: str
) -> None:
    one, two = row("one", papers[0]), row("two", papers[1])
    (text,) = findings(results((one, scored(liver=own[0])), (two, scored(liver=own[1]))), SCHEMA)
    assert text.endswith(f"the paper's order: {verdict}.")


def test_an_order_is_judged_over_shared_organs_only() -> None:
    """The liver falls in both although the kidney, which the paper lacks, lifts the own mean."""
    one, two = row("one", 0.8, mean=0.1), row("two", 0.6, mean=0.9)
    kidney = {"left kidney": [0.0] * 6}, {"left kidney": [1.0] * 6}
    (text,) = findings(
        results((one, scored(liver=HIGH, **kidney[0])), (two, scored(liver=LOW, **kidney[1]))), SCHEMA
    )
    assert "Dice falls from 0.800 to 0.600 in the paper, falls from 0.542 to 0.267 here" in text
    assert "0.267 here (p = 0.031 over all organs);" in text
    (text,) = findings(results((one, scored(**kidney[0])), (two, scored(**kidney[1]))), SCHEMA)
    assert "Dice rises from 0.100 to 0.900 in the paper, rises from 0.000 to 1.000 here" in text
    assert text.endswith("the paper's order: no verdict, no organ of the paper's is here.")


def test_with_few_cases_there_is_no_test_and_then_no_verdict() -> None:
    one, two = row("one", 0.6), row("two", 0.8)
    (text,) = findings(results((one, scored(liver=LOW[:5])), (two, scored(liver=HIGH[:5]))), SCHEMA)
    assert "here (too few cases to test); the paper's order: reproduced." in text
    (text,) = findings(results((one, scored(liver=LOW[:4])), (two, scored(liver=HIGH[:4]))), SCHEMA)
    assert text.endswith("the paper's order: no verdict, 4 cases.")


@pytest.mark.parametrize(
    ("steps", "said"), [(99, "no verdict, 99 of the paper's 1000 steps"), (100, "reproduced")]
)
def test_with_few_steps_there_is_no_verdict(steps: int, said: str) -> None:
    one, two = row("one", 0.6), row("two", 0.8)
    made = [
        RowResult(one, scored(liver=LOW)),  # the paper's, too, has no training
        RowResult(two, scored(liver=HIGH), {"coarse": steps - 9, "fine": 9}, paper_steps=1000),
    ]
    assert verdict(made[0], made[1], SCHEMA) == said


def test_rows_on_an_unseen_set_stand_beside_what_the_paper_has_of_one() -> None:
    rows = [
        TableRow(name, None, published=Published({"liver": 0.5}), published_unseen=unseen)
        for name, unseen in (("one", Published({"liver": 0.9})), ("two", None))
    ]
    made = [RowResult(r, scored(liver=LOW), unseen=True) for r in rows]
    one, two = (line for line in lines(study(*rows), made, SCHEMA) if line.organ == "liver")
    assert one.paper_dice == 0.9
    assert math.isnan(two.paper_dice)
    assert verdict(made[0], made[1], SCHEMA) == "no verdict, not in the paper's table"
    assert [r.published for r in results((rows[1], scored(liver=LOW)))] == [Published({"liver": 0.5})]


def test_the_spread_is_over_cases() -> None:
    first = row("one", None)
    values = {"liver": [0.2, 0.8, 0.6], "aorta": [0.4, 0.6, math.nan]}
    mean_, liver, aorta = lines(study(first), results((first, scored(**values))), SCHEMA)
    assert (liver.dice_median, liver.dice_min, liver.dice_max) == (0.6, 0.2, 0.8)
    assert liver.dice_sd == pytest.approx(0.305505)
    assert liver.nsd_sd == pytest.approx(0.305505 / 2)
    assert (aorta.dice_median, aorta.dice_min, aorta.dice_max) == (0.5, 0.4, 0.6)
    # The cases' means: 0.3, 0.7 and 0.6, as the third has no aorta.
    assert (mean_.dice_median, mean_.dice_min, mean_.dice_max) == pytest.approx((0.6, 0.3, 0.7))
    assert mean_.dice_sd == pytest.approx(0.2081666)
    assert mean_.nsd_sd == pytest.approx(0.2081666 / 2)


def test_rows_that_the_paper_lacks_have_no_order() -> None:
    one, two = row("one", None), row("two", 0.6)
    assert findings(results((one, scored(liver=LOW)), (two, scored(liver=HIGH))), SCHEMA) == []


def test_files(tmp_path: Path) -> None:
    one, two = row("one", 0.6, 0.4, mean=0.55), row("two", 0.8)
    made = results((one, scored(liver=LOW, aorta=LOW)), (two, scored(liver=HIGH, aorta=LOW)))
    page = write_table(tmp_path, study(one, two), made, SCHEMA, ["made in a test"])
    write_report(tmp_path, page, made)
    text = (tmp_path / "table.md").read_text()
    assert (
        "| row | cases | mean | liver | aorta | p, row above | p, baseline | paper's order, row above |"
        in text
    )
    assert "| one | 6 | 0.267 (0.550) | 0.267 (0.600) | 0.267 (0.400) | – | – |  |" in text  # noqa: RUF001
    assert "| two | 6 | 0.404 | 0.542 (0.800) | 0.267 (0.500) | 0.031 | 0.031 | reproduced |" in text
    assert "| two: maximum | 0.600 | 0.800 | 0.400 |" in text
    assert "| one: SD | 0.108 | 0.108 | 0.108 |" in text
    assert "artery of the paper beside aorta" in text
    assert "Table 9" in text
    assert "made in a test" in text
    report = (tmp_path / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 7
