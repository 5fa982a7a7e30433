"""Which of a study's series a node segments, by which rule, and why it leaves the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoomseg.node.settings import Rule


@dataclass(frozen=True)
class SeriesFacts:
    """What rules ask about a series that has arrived."""

    modality: str
    body_part: str
    description: str
    slices: int
    number: int | None = None


@dataclass(frozen=True)
class Decision:
    """The rule that takes a series; None if none does. ``why`` says in one line what decided."""

    rule: Rule | None
    why: str


def why_not(rule: Rule, series: SeriesFacts) -> str | None:
    """The first thing in which a series is not what a rule asks for; None if it is all of it. Nothing of the
    header is repeated: reasons are shown where headers are not."""
    if series.modality != rule.modality:
        return f"not {rule.modality}"
    if rule.body_part and series.body_part.casefold() not in (part.casefold() for part in rule.body_part):
        return f"body part not {' or '.join(rule.body_part)}"
    if rule.description is not None and not re.search(rule.description, series.description, re.IGNORECASE):
        return f"description without '{rule.description}'"
    if series.slices < rule.min_slices:
        return f"{series.slices} slices, fewer than {rule.min_slices}"
    if rule.max_slices is not None and series.slices > rule.max_slices:
        return f"{series.slices} slices, more than {rule.max_slices}"
    return None


def decide(
    rules: Sequence[Rule],
    study: Mapping[str, SeriesFacts],
    taken: Mapping[str, str],
) -> dict[str, Decision]:
    """What becomes of the series of a study that are complete: the first rule that fits takes each.

    Args:
        study: the series, by key.
        taken: of rules that take one series a study, the key of the one that was taken before.
    """
    decisions = {key: _first(rules, series) for key, series in study.items()}
    for rule in (rule for rule in rules if rule.one_per_study):
        mine = [key for key, decision in decisions.items() if decision.rule is rule]
        if not mine:
            continue
        best = taken.get(rule.name) or min(mine, key=lambda key: _rank(study[key]))
        for key in mine:
            if key != best:
                why = f"rule '{rule.name}' takes one series of a study, and took another"
                decisions[key] = Decision(None, why)
    return decisions


def _first(rules: Sequence[Rule], series: SeriesFacts) -> Decision:
    reasons = []
    for rule in rules:
        reason = why_not(rule, series)
        if reason is None:
            return Decision(rule, f"rule '{rule.name}'")
        reasons.append(f"{rule.name}: {reason}")
    return Decision(None, f"no rule fits ({'; '.join(reasons)})")


def _rank(series: SeriesFacts) -> tuple[int, float]:
    """Most slices first; of equals, the lowest number."""
    return -series.slices, float("inf") if series.number is None else series.number
