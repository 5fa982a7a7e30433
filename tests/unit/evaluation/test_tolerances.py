"""Tables of tolerances: organs in any spelling, invalid tables refused; and FLARE 2022's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from zoomseg.core.errors import GeometryError, ScanError
from zoomseg.evaluation.tolerances import (
    FLARE22_ORGANS,
    MAX_TABLE_BYTES,
    OrganRule,
    Tolerances,
    read_tolerances,
)


def test_the_challenge_has_thirteen_organs_in_its_order_and_three_tubes() -> None:
    """As in ``FLARE22_DSC_NSD_Eval.py``: organs 5, 6 and 10 are scored on the reference's slices."""
    rules = [rule for _, rule in FLARE22_ORGANS.values()]
    assert " ".join(FLARE22_ORGANS) == (
        "Liver RK Spleen Pancreas Aorta IVC RAG LAG Gallbladder Esophagus Stomach Duodenum LK"
    )
    assert [rule.tolerance_mm for rule in rules] == [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]
    assert [n for n, rule in enumerate(rules, start=1) if rule.reference_slices] == [5, 6, 10]
    assert {rule.neither for rule in rules} == {1}


@pytest.mark.parametrize(
    ("organ", "mm"),
    [
        ("right_kidney", 3),
        ("KidneyLeft", 3),
        ("oesophagus", 3),
        ("adrenal gland (R)", 2),
        ("gall_bladder", 2),
    ],
)
def test_spellings(organ: str, mm: float) -> None:
    assert read_tolerances("flare22").of(organ).tolerance_mm == mm


def test_what_a_table_lacks_has_none() -> None:
    rules = read_tolerances("flare22")
    assert rules.without(["liver", "portal vein", "spleen"]) == ("portal vein",)
    assert rules.of("portal vein").neither is None


def test_equal_rules_are_equal_field_by_field() -> None:
    """As Python 3.13 compares them; earlier, a NaN that is one object equalled itself."""
    for tolerance_mm in (1.0, None):
        one, other = OrganRule(tolerance_mm), OrganRule(tolerance_mm)
        assert all(getattr(one, field.name) == getattr(other, field.name) for field in fields(one))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "organ,mm\nLeft_Kidney,2.5\nliver,4\n"),
        ("t.yaml", "Left_Kidney: 2.5\nliver: 4\n"),
        ("t.yml", "{Left_Kidney: '2.5', liver: 4}"),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    rules = read_tolerances(str(tmp_path / name))
    assert rules.name == name
    assert rules.of("kidney, left") == OrganRule(2.5)
    assert rules.of("liver") == OrganRule(4)
    assert rules.without(["left kidney", "right kidney", "liver"]) == ("right kidney",)


def test_a_table_is_never_taken_for_the_challenge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flare22").write_text("liver: 4")
    monkeypatch.chdir(tmp_path)
    for source in (str(tmp_path / "flare22"), "./flare22"):
        rules = read_tolerances(source)
        assert (rules.name, rules.of("liver")) == (source, OrganRule(4))


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("t.csv", "liver,4\n", "has the columns organ and mm"),
        ("t.csv", "organ,mm\nliver,far\n", "of 'liver' is no number of mm: 'far'"),
        ("t.csv", "organ,mm\nliver\n", "of 'liver' is no number of mm: None"),
        ("t.csv", 'organ,mm\n"liver,4\n', "not a CSV table"),
        ("t.csv", "organ,mm\n", "no organ has a tolerance"),
        ("t.yaml", "- liver\n", "is CSV with the columns organ and mm, or 'organ: mm'"),
        ("t.yaml", "liver: [4]\n", r"of 'liver' is no number of mm: \[4\]"),
        ("t.yaml", "liver: true\n", "of 'liver' is no number of mm: True"),
        ("t.yaml", "liver: {\n", "not YAML"),
        ("t.yaml", "liver: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("t.yaml", "#" * (MAX_TABLE_BYTES + 1), "larger than"),
    ],
)
def test_no_tables(tmp_path: Path, name: str, text: str, what: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ScanError, match=what):
        read_tolerances(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("organ,mm\nliver,4\nliver,5\n", "'liver' has two tolerances"),
        ("organ,mm\nleft kidney,4\nkidney_l,5\n", "'kidney_l' has two tolerances"),
        ("organ,mm\nliver,-1\n", "must be 0 mm or more, got -1"),
        ("organ,mm\nliver,inf\n", "must be 0 mm or more, got inf"),
        ("organ,mm\nliver,nan\n", "tolerance of 'liver' is not a number"),
    ],
)
def test_impossible_tolerances(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(GeometryError, match=what):
        read_tolerances(str(tmp_path / "t.csv"))


def test_neither_a_rule_nor_a_file(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="flare21: neither 'flare22' nor a readable table"):
        read_tolerances("flare21")


def test_one_for_all_is_named_by_its_distance() -> None:
    assert Tolerances.same(2.5).name == "2.5 mm"
    assert Tolerances.same(2.5).of("anything").tolerance_mm == 2.5
