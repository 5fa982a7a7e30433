"""Other methods in a paper's table, with a study's own result on top: Table 3 of Roth et al. 2018."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoomseg.core.labels import LabelSchema
from zoomseg.evaluation.result import mean
from zoomseg.inference.html_page import number
from zoomseg.study import efficiency
from zoomseg.study.ablations import Ablation, OtherMethod, find_organ
from zoomseg.study.report_page import Sheet
from zoomseg.study.table import RowResult, organ_spread

DIGITS = 1
"""Digits of a Dice in percent, as in the paper."""

HEAD = ("method", "subjects", "approach", "validation", "organ", "Dice, %", "time, h")


def sheet(
    study: Ablation, results: Sequence[RowResult], folders: Mapping[str, Sequence[Path]], schema: LabelSchema
) -> Sheet | None:
    """A line for every organ of every method, restricted to the data set's organs; first the study's last
    finished row. None for cases that are not an unseen set, or a study whose paper lists no methods.

    Args:
        folders: of each row's measures (see ``efficiency``).
    """
    if not results or not results[-1].unseen or not study.others:
        return None
    organs = dict.fromkeys(organ for method in study.others for organ in method.dice)
    own = {organ: found for organ in organs if (found := find_organ(organ, schema)) is not None}
    lines = [*_of_row(results[-1], own, folders.get(results[-1].name, ()))]
    for method in study.others:
        lines += _of_method(method, own)
    return Sheet(f"Other methods, as listed in {study.source_others}", HEAD, tuple(lines))


def _of_row(result: RowResult, organs: Mapping[str, str], folders: Sequence[Path]) -> list[tuple[str, ...]]:
    """The last row of a table, with the whole recipe."""
    seconds = mean(case["seconds"] for folder in folders for case in efficiency.read(folder).values())
    hours = "" if math.isnan(seconds) else f"{seconds / 3600:.4f}"
    cases = str(len(result.evaluation.cases))
    summary = {s.organ: s.dice for s in result.evaluation.summary}
    return [
        (
            f"{result.name}, here",
            cases,
            "",
            "test set",
            organ,
            _percent(summary[own], organ_spread(result, own)),
            hours,
        )
        for organ, own in organs.items()
        if own in summary
    ]


def _of_method(method: OtherMethod, organs: Mapping[str, str]) -> list[tuple[str, ...]]:
    about = (method.name, str(method.subjects), method.approach, method.validation)
    hours = "" if method.hours is None else f"{method.hours:g}"
    return [(*about, organ, _percent(*dice), hours) for organ, dice in method.dice.items() if organ in organs]


def _percent(value: float, deviation: float) -> str:
    spread = "" if math.isnan(deviation) else f" ± {number(100 * deviation, DIGITS)}"
    return f"{number(100 * value, DIGITS)}{spread}"
