"""Rules select series of a study, and the others are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zoomseg.node.rules import SeriesFacts, decide, why_not
from zoomseg.node.settings import Rule

VENOUS = SeriesFacts("CT", "ABDOMEN", "Abd portal venous 2.0", 120, 3)


def rule(**changes: object) -> Rule:
    return Rule.model_validate({"name": "r", "modality": "CT", "model": "m", **changes})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"modality": "MR"}, "not MR"),
        ({"body_part": ["chest", "abdomen"]}, None),
        ({"body_part": ["CHEST"]}, "body part not CHEST"),
        ({"description": "PORTAL|venous"}, None),
        ({"description": "arterial"}, "description without 'arterial'"),
        ({"min_slices": 120, "max_slices": 120}, None),
        ({"min_slices": 121}, "120 slices, fewer than 121"),
        ({"max_slices": 119}, "120 slices, more than 119"),
    ],
)
def test_all_that_a_rule_gives_must_hold(changes: dict[str, object], why: str | None) -> None:
    assert why_not(rule(**changes), VENOUS) == why


def test_the_first_rule_that_fits_takes_a_series_and_reasons_name_the_others() -> None:
    rules = [rule(name="chest", body_part=["CHEST"]), rule(name="any"), rule(name="late")]
    scout = replace(VENOUS, slices=2)
    found = decide(rules, {"a": VENOUS, "b": scout}, {})
    assert found["a"].rule is rules[1]
    assert found["b"].rule is None
    assert found["b"].why == (
        "no rule fits (chest: body part not CHEST; any: 2 slices, fewer than 10; "
        "late: 2 slices, fewer than 10)"
    )


def test_a_rule_may_take_one_series_of_a_study() -> None:
    one = rule(one_per_study=True)
    study = {
        "a": replace(VENOUS, slices=100, number=2),
        "b": replace(VENOUS, slices=120, number=4),
        "c": replace(VENOUS, slices=120, number=3),
    }
    found = decide([one], study, {})
    assert [key for key, decision in found.items() if decision.rule] == ["c"]
    assert found["a"].why == "rule 'r' takes one series of a study, and took another"


def test_what_was_taken_before_counts() -> None:
    one = rule(one_per_study=True)
    assert decide([one], {"a": VENOUS}, {"r": "earlier"})["a"].rule is None
    assert decide([one], {"a": VENOUS}, {"r": "a"})["a"].rule is one
    again = decide([one], {"a": VENOUS, "b": replace(VENOUS, slices=600)}, {"r": "a"})
    assert [key for key, decision in again.items() if decision.rule] == ["a"]
    none = decide([one], {"a": replace(VENOUS, slices=2), "b": VENOUS}, {"r": "a"})  # by other settings
    assert [key for key, decision in none.items() if decision.rule] == ["b"]
    assert decide([rule()], {"a": VENOUS}, {"r": "earlier"})["a"].rule is not None
