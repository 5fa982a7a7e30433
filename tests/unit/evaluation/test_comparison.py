"""Paired comparison of evaluations: numbers by hand and by scipy, and omissions are named."""

from __future__ import annotations

import csv
import html
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from zoomseg.core.errors import DatasetError
from zoomseg.evaluation.comparison import (
    MEAN,
    RESAMPLES,
    SEED,
    Comparison,
    as_json,
    compare,
    compare_folders,
    differences,
    holm,
    interval,
    paired,
    short_names,
    signed_rank,
)
from zoomseg.evaluation.evaluate import write_metrics
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation
from zoomseg.evaluation.tolerances import FLARE22_TOLERANCES, Tolerances
from zoomseg.io.files import write_json_atomic

NAMES = ("old", "new")
LIVER = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96]
GAIN = [0.01, 0.02, 0.03, 0.0, -0.01, 0.04, 0.005]
BETTER = [round(a + b, 6) for a, b in zip(LIVER, GAIN, strict=True)]


def evaluation(tolerance_mm: float = 1.0, **dice: list[float]) -> Evaluation:
    """Cases case_0, case_1, ... with these Dice by organ; HD95 is 10 times the difference to 1, infinite for
    0."""
    cases = tuple(
        CaseResult(
            f"case_{n}",
            tuple(
                OrganScore(organ, d, d, 10 * (1 - d) if d else math.inf, 1.0, 9.0, 10.0)
                for organ, d in zip(dice, values, strict=True)
            ),
        )
        for n, values in enumerate(zip(*dice.values(), strict=True))
    )
    return Evaluation(tuple(dice), Tolerances.same(tolerance_mm), cases)


def save(folder: Path, scores: Evaluation) -> Path:
    folder.mkdir(parents=True)
    write_metrics(folder / "metrics.csv", scores)
    write_json_atomic(folder / "summary.json", scores.as_json())
    return folder


class TestStatistics:
    def test_signed_rank_by_hand_and_by_scipy(self) -> None:
        """All six rise: 2 of 2^6 assignments of signs are as extreme."""
        assert signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
        values = np.random.default_rng(3).normal(0.3, 1, 15).tolist()
        assert signed_rank(values) == pytest.approx(stats.wilcoxon(values).pvalue)

    def test_zeros_are_dropped_before_ranking(self) -> None:
        values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
        assert signed_rank([*values, 0.0, 0.0]) == pytest.approx(2 / 64)
        assert signed_rank([0.0] * 8) == 1.0

    @pytest.mark.parametrize("zeros", [1, 10, 60])
    def test_five_changes_are_never_significant_among_any_number_of_zeros(self, zeros: int) -> None:
        """The most extreme of 2^5 assignments of signs, and its mirror image."""
        assert signed_rank([0.01, 0.02, 0.03, 0.04, 0.05, *[0.0] * zeros]) == pytest.approx(2 / 32)

    def test_too_few_are_not_tested(self) -> None:
        assert math.isnan(signed_rank([0.1, 0.2, 0.3, 0.4, 0.5]))

    def test_holm_by_hand(self) -> None:
        """Sorted 0.01, 0.02, 0.03, 0.9 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.9; never less than before."""
        assert holm([0.9, 0.02, 0.01, 0.03]) == pytest.approx([0.9, 0.06, 0.04, 0.06])
        assert holm([0.02, 0.021]) == pytest.approx([0.04, 0.04])
        assert holm([0.6, 0.7]) == [1.0, 1.0]

    def test_holm_counts_tests_only(self) -> None:
        found = holm([0.01, math.nan, 0.04])
        assert found[::2] == pytest.approx([0.02, 0.04])
        assert math.isnan(found[1])

    def test_interval_is_scipys(self) -> None:
        values = np.random.default_rng(5).exponential(1.0, 25)
        expected = stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="BCa", random_state=np.random.default_rng(SEED)
        ).confidence_interval
        assert interval(values.tolist()) == pytest.approx((expected.low, expected.high), rel=1e-9)

    def test_interval_of_two_equal_and_of_too_few(self) -> None:
        assert interval([1.0, 3.0]) == (1.0, 3.0)
        assert interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
        assert all(math.isnan(end) for end in interval([0.25]))


class TestCompare:
    def test_numbers_of_an_organ_and_of_the_mean(self) -> None:
        old = evaluation(liver=LIVER, spleen=[0.8] * 7)
        new = evaluation(liver=BETTER, spleen=[0.8] * 7)
        found = compare(old, new, NAMES)
        liver, spleen = found.organs
        assert (liver.organ, liver.cases, liver.better, liver.worse) == ("liver", 7, 5, 1)
        assert liver.difference == pytest.approx(sum(GAIN) / 7)
        assert liver.p == pytest.approx(stats.wilcoxon([gain for gain in GAIN if gain]).pvalue)
        assert (liver.low, liver.high) == interval(GAIN)
        assert liver.p_holm == pytest.approx(min(1, 2 * liver.p))
        assert (spleen.difference, spleen.low, spleen.high, spleen.p) == (0, 0, 0, 1)
        assert found.mean.difference == pytest.approx(sum(GAIN) / 14)
        assert found.mean.first == pytest.approx((sum(LIVER) / 7 + 0.8) / 2)
        assert math.isnan(found.mean.p_holm)
        assert found.notes == ()

    def test_less_is_better_for_distances(self) -> None:
        found = compare(evaluation(liver=LIVER), evaluation(liver=BETTER), NAMES, "hd95_mm")
        assert (found.mean.better, found.mean.worse) == (5, 1)
        assert found.mean.difference == pytest.approx(-10 * sum(GAIN) / 7)

    def test_cases_and_organs_of_one_side_are_named_and_left_out(self) -> None:
        found = compare(evaluation(liver=LIVER, aorta=LIVER), evaluation(liver=BETTER[:6]), NAMES)
        assert found.cases == tuple(f"case_{n}" for n in range(6))
        assert [row.organ for row in found.organs] == ["liver"]
        assert found.mean.first == pytest.approx(sum(LIVER[:6]) / 6)
        assert found.notes == ("cases that only old has: case_6", "organs that only old has: aorta")

    def test_what_is_no_number_on_both_sides_is_named_and_left_out(self) -> None:
        old = evaluation(liver=[0.5, 0.5, 0.5, 0.5], aorta=[0.5, 0.0, math.nan, math.nan])
        new = evaluation(liver=[0.5, 0.5, 0.5, 0.5], aorta=[0.6, 0.7, 0.0, math.nan])
        dice = compare(old, new, NAMES)
        assert dice.notes == ("aorta: cases left out, as Dice is not a number on both sides: case_2",)
        assert dice.organs[1].cases == 2
        assert dice.organs[1].difference == pytest.approx(0.4)
        assert paired(old, new)[MEAN]["case_2"] == (0.5, 0.5), "over the same organs on both sides"
        distance = compare(old, new, NAMES, "hd95_mm")
        assert distance.organs[1].cases == 1
        assert distance.notes[0].endswith("HD95, mm is not a number on both sides: case_1, case_2")

    def test_other_references_are_told_of(self) -> None:
        other = evaluation(liver=LIVER)
        case = other.cases[2]
        scores = (OrganScore("liver", 0.9, 0.9, 1.0, 1.0, 9.0, 11.0),)
        changed = (*other.cases[:2], CaseResult(case.id, scores), *other.cases[3:])
        found = compare(evaluation(liver=LIVER), Evaluation(("liver",), Tolerances.same(1.0), changed), NAMES)
        assert found.notes == ("references are not the same, by their organs' volumes, in: case_2",)

    @pytest.mark.parametrize(
        ("other", "metric", "message"),
        [
            (
                evaluation(liver=LIVER[:1]),
                "dice",
                "old has 7 cases and new has 1, 1 of them in both; at least 2",
            ),
            (evaluation(aorta=LIVER), "dice", "old and new have no organ in common"),
            (evaluation(2.0, liver=LIVER), "nsd", "old is scored at 1 mm, new at 2 mm.* for 'liver'; eval"),
            (
                replace(evaluation(liver=LIVER), tolerances=FLARE22_TOLERANCES),
                "dice",
                "old is scored at 1 mm, new at flare22, which differ for 'liver'",
            ),
        ],
    )
    def test_what_cannot_be_compared(self, other: Evaluation, metric: str, message: str) -> None:
        with pytest.raises(DatasetError, match=message):
            compare(evaluation(liver=LIVER), other, NAMES, metric)

    def test_only_the_rules_of_common_organs_matter(self, tmp_path: Path) -> None:
        """Only organs of an evaluation have a tolerance in its file, and tables have different names."""
        both, one = evaluation(liver=LIVER, spleen=LIVER), evaluation(liver=BETTER)
        table = {"liver": 5.0, "spleen": 3.0}
        folders = [
            save(tmp_path / name, replace(scores, tolerances=Tolerances.by_organ(f"{name}.csv", table)))
            for name, scores in (("old", both), ("new", one))
        ]
        (found,) = compare_folders(folders, tmp_path / "out", "nsd")
        assert [(row.organ, row.cases) for row in found.organs] == [("liver", 7)]
        assert found.organs[0].difference == pytest.approx(sum(GAIN) / 7)

    def test_dice_does_not_depend_on_tolerances(self) -> None:
        found = compare(evaluation(1.0, liver=LIVER), evaluation(2.0, liver=BETTER), NAMES)
        assert found.mean.difference == pytest.approx(sum(GAIN) / 7)

    def test_equal_steps_tie(self) -> None:
        assert differences({"a": (0.1, 0.2), "b": (0.2, 0.3)}) == [0.1, 0.1]


class TestFiles:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Path, ...]:
        nasty = "<b>liver</b>"
        return tuple(
            save(tmp_path / name / "validation", evaluation(1.0, **{nasty: values}))
            for name, values in (("one", LIVER), ("two", BETTER), ("three", LIVER[:5]))
        )

    def test_all_are_compared_with_the_first(self, folders: tuple[Path, ...], tmp_path: Path) -> None:
        found = compare_folders(folders, tmp_path / "out")
        expected = [compare_two(folders, at) for at in (1, 2)]
        assert as_json(found, {}) == as_json(expected, {}), "equal also where a p is undefined"
        about = json.loads((tmp_path / "out" / "compare.json").read_text())
        assert about["folders"]["one/validation"] == str(folders[0])
        second = about["comparisons"][1]
        assert second["cases"] == [f"case_{n}" for n in range(5)]
        assert second["mean"]["p"] is None
        assert about["comparisons"][0]["organs"]["<b>liver</b>"]["difference"] == found[0].mean.difference
        with (tmp_path / "out" / "compare.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(r["other_folder"], r["organ"]) for r in rows] == [
            (f"{side}/validation", organ) for side in ("two", "three") for organ in (MEAN, "<b>liver</b>")
        ]
        assert float(rows[0]["difference"]) == pytest.approx(sum(GAIN) / 7, rel=1e-5)
        assert rows[2]["p"] == ""
        page = (tmp_path / "out" / "compare.html").read_text()
        assert "<b>liver" not in page
        assert "&lt;b&gt;liver" in page
        assert found[0].finding in html.unescape(page)
        assert page.count('src="data:image/png;base64,') == page.count("src=") == 1
        assert "href=" not in page

    def test_missing_or_damaged_scores(self, folders: tuple[Path, ...], tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"nowhere: no metrics\.csv and summary\.json"):
            compare_folders([folders[0], tmp_path / "nowhere"], tmp_path / "out")
        (folders[1] / "metrics.csv").write_text("case,organ\n" + "x" * 200_000)
        with pytest.raises(DatasetError, match="or damaged ones; give a folder that zoomseg evaluate wrote"):
            compare_folders(folders, tmp_path / "out")
        with pytest.raises(DatasetError, match="needs at least two evaluations, got 1; give folders"):
            compare_folders(folders[:1], tmp_path / "out")
        with pytest.raises(
            DatasetError, match=r"^unknown metric 'iou'; allowed: dice, nsd, hd95_mm, assd_mm$"
        ):
            compare_folders(folders, tmp_path / "out", "iou")
        assert not (tmp_path / "out").exists()


def compare_two(folders: tuple[Path, ...], at: int) -> Comparison:
    from zoomseg.evaluation.saved import read_scores

    first, other = read_scores(folders[0]), read_scores(folders[at])
    assert first is not None
    assert other is not None
    return compare(first, other, ("one/validation", f"{folders[at].parent.name}/validation"))


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "a" / "v", tmp_path / "b" / "v"]) == ["a/v", "b/v"]
    assert short_names([tmp_path / "a", tmp_path / "a"]) == ["a", "a (2)"]
