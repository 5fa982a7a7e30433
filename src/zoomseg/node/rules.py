"""Rules: which of a study's series a node segments, by which rule, and why it ignores the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoomseg.node.settings import Rule


@dataclass(frozen=True)
class SeriesFacts:
    """The properties of a received series that rules read."""

    modality: str
    body_part: str
    description: str
    slices: int
    number: int | None = None


@dataclass(frozen=True)
class Decision:
    """The rule that matches a series; None if none does. ``why`` states the reason in one line."""

    rule: Rule | None
    why: str


def why_not(rule: Rule, series: SeriesFacts) -> str | None:
    """The first condition of a rule that a series does not meet; None if it meets all. Reasons contain
    nothing from the header, as they are shown where headers are not."""
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
    """The decisions on the complete series of a study: each is assigned the first matching rule.

    Args:
        study: the series, by key.
        taken: for rules that accept one series per study, the key of the one accepted before, which may be
            among ``study``: it has arrived again.
    """
    decisions = {key: _first(rules, series) for key, series in study.items()}
    for rule in (rule for rule in rules if rule.one_per_study):
        mine = [key for key, decision in decisions.items() if decision.rule is rule]
        if not mine:
            continue
        best = taken.get(rule.name)
        if best is None or (best in study and best not in mine):
            best = min(mine, key=lambda key: _rank(study[key]))
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
    """Most slices first; among equals, the lowest number."""
    return -series.slices, float("inf") if series.number is None else series.number
