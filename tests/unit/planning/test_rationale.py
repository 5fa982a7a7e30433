"""A plan's rationale is readable, and names from data sets do not break tables."""

from __future__ import annotations

import pytest

from helpers.tiny_dataset import tiny_recipe
from zoomseg.core.labels import LabelSchema
from zoomseg.planning.fingerprint import Fingerprint, OrganStatistics
from zoomseg.planning.rationale import (
    Plan,
    Reason,
    about,
    count,
    decimals,
    millilitres,
    millimetres,
    organ_reasons,
    voxels_of,
)


def organ(name: str, volume_ml: float, cases: int = 3) -> OrganStatistics:
    return OrganStatistics(
        name, cases, 4, volume_ml, (20.4, 31.6, 12.0), (0.25, 0.5, 0.752), (0.0, 90.0), 1.0
    )


def data(*organs: OrganStatistics, cases: int = 4, read: int = 4) -> Fingerprint:
    return Fingerprint(
        (1.0, 1.0, 2.5), (200, 180, 40), (220, 180, 60), True, (0.0, 1.0), cases, read, 1, organs
    )


def test_voxels_of_an_organ() -> None:
    assert voxels_of(organ("a", 4.0), (2.0, 2.0, 2.5)) == 400


def test_only_the_smallest_organ_is_told_of_and_all_that_are_too_small() -> None:
    schema = LabelSchema.consecutive(["a", "b", "c"])
    fine, coarse = (2.0, 2.0, 2.5), (6.0, 6.0, 6.0)
    seen = data(organ("a", 500.0), organ("b", 4.0), organ("c", 6.0))
    (smallest,) = organ_reasons(seen, schema, fine)
    assert (smallest.what, smallest.warning) == ("smallest organ", False)
    assert smallest.value == "b, 4 ml = 400 voxels of the finest grid"
    warned = organ_reasons(seen, schema, coarse)
    assert [(r.what, r.value.split(",")[0], r.warning) for r in warned] == [
        ("small organ", "b", True),
        ("small organ", "c", True),
    ]
    # 6 ml are 28 voxels of 6 mm, 6.48 ml 30.
    (last,) = organ_reasons(data(organ("c", 6.48)), LabelSchema.consecutive(["c"]), coarse)
    assert not last.warning


def test_organs_that_only_other_cases_have_are_named() -> None:
    seen = data(organ("a", 500.0), cases=1000, read=40)
    rare = organ_reasons(seen, LabelSchema.consecutive(["a", "b", "c"]), (1.0, 1.0, 1.0))[-1]
    assert (rare.what, rare.value) == ("rare organs", "b, c")
    assert rare.why == "in none of the 40 cases read, but in others of the 1000"


@pytest.mark.parametrize(("read", "of"), [(4, "of 4 cases"), (2, "of 2 of 4 cases")])
def test_the_median_scan(read: int, of: str) -> None:
    told = about(data(read=read))
    assert told.value == "200x180x40 voxels of 1x1x2.5 mm"
    assert told.why == (f"{of}, axes R, A, S: 200x180x100 mm; the largest scan is 220x180x60 such voxels")


def test_figures() -> None:
    assert count(63_000) == "63,000"
    assert count(149_987) == "150,000"
    assert count(999_499) == "999,500"
    assert count(999_999) == "1 million"
    assert count(2_500_000) == "2.5 million"
    assert millimetres((2.71, 2.71, 2.71)) == "2.71 mm"
    assert millimetres((1.25, 1.25, 7.699999)) == "1.25x1.25x7.7 mm"
    assert millimetres((0.0003, 0.0014, 0.0123456)) == "0.0003x0.0014x0.0123 mm"
    assert [decimals(mm) for mm in (250.0, 1.0, 0.1, 0.09, 0.0003)] == [3, 3, 3, 4, 6]
    assert [millilitres(v) for v in (4.768, 99.9, 1653.6)] == ["4.77", "99.9", "1,654"]


def test_the_page() -> None:
    reasons = (Reason("stages", "one", "small"), Reason("small organ", "x", "too small", warning=True))
    plan = Plan(tiny_recipe(together=True), reasons, data(organ("a | b\n<i>", 4.0)), (2.0, 2.0, 2.5))
    page = plan.markdown("my\ndata|set")
    assert page.startswith("# How tiny was planned for my data\\|set\n")
    assert "\n| what | value | why |\n| --- | --- | --- |\n| stages | one | small |\n" in page
    assert "\n| a \\| b \\<i\\> | 3 of 4 | 4 | 20x32x12 | 0.25, 0.50, 0.75 | 400 |\n" in page
    assert "of the 4 that were read" in page
    assert plan.warnings == ("small organ: x; too small",)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (4.42e9, "4.42 billion"),
        (1e9, "1 billion"),
        (999_400_000, "999 million"),
        (2_500_000, "2.5 million"),
        (150_049, "150,000"),
    ],
)
def test_counts(number: float, said: str) -> None:
    assert count(number) == said
