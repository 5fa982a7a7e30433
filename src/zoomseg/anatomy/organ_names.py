"""Organs by name, however a data set spells it, so that tables of what is known of organs find them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from zoomseg.core.sides import name_tokens, side_word

Row = TypeVar("Row")

_SIDES = ("left", "right")
_SAME: Mapping[str, str] = {
    "oesophagus": "esophagus",
    "brainstem": "brain stem",
    "gall": "gallbladder",
    "vertebrae": "vertebra",
    "bowel": "intestine",
    "clavicula": "clavicle",
    "vena": "vein",
    "suprarenal": "adrenal",
    "ventricular": "ventricle",
    "autochthon": "deep back",
    "eyeball": "eye",
    "globe": "eye",
}
_SILENT = {"gland", "muscle", "of", "the", "and", "structure", "organ"}


def organ_words(name: str) -> frozenset[str]:
    """The words of an organ's name that tell it from others, in one spelling: ``right_kidney``,
    ``RightKidney`` and ``kidney R`` are alike."""
    tokens = [t for token in name_tokens(name) for t in (side_word(token) or _SAME.get(token, token)).split()]
    if "gallbladder" in tokens and "bladder" in tokens:  # "gall bladder"
        tokens.remove("bladder")
    return frozenset(t for t in tokens if t not in _SILENT)


@dataclass(frozen=True)
class Match(Generic[Row]):
    """A row of a table. ``side`` is ``"left"`` or ``"right"`` where the row is of either side and the name
    says which."""

    row: Row
    side: str | None


def find_organ(name: str, table: Mapping[frozenset[str], Row]) -> Match[Row] | None:
    """The row of an organ in a table by ``organ_words``: as named, else without its side; None if neither is
    there."""
    words = organ_words(name)
    if words in table:
        return Match(table[words], None)
    sides = [side for side in _SIDES if side in words]
    if len(sides) == 1 and words - {sides[0]} in table:
        return Match(table[words - {sides[0]}], sides[0])
    return None
