"""Organs by name, for any spelling in data sets: the only table of synonyms and abbreviations.

Spellings are those of BTCV, FLARE 2022, AMOS (including ``arota``), TotalSegmentator, CHAOS and VISCERAL, and
of the papers that abbreviate them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from zoomseg.core.labels import LabelSchema
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


_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "adrenal": ("ag",),
    "aorta": ("aor", "arota"),
    "duodenum": ("duo",),
    "esophagus": ("eso", "oes"),
    "gallbladder": ("gb", "gbl"),
    "inferior vena cava": ("ivc", "postcava", "post cava", "inferior vena cava ivc"),
    "kidney": ("kid", "ki"),
    "left adrenal": ("lag", "left adrenal lag"),
    "left kidney": ("lk", "lki", "lkid"),
    "liver": ("liv",),
    "pancreas": ("pan",),
    "portal vein and splenic vein": ("veins", "portal and splenic veins", "portal veins and splenic veins"),
    "rectus abdominis": ("muscle body of rectus abdominis",),
    "right adrenal": ("rag", "right adrenal rag"),
    "right kidney": ("rk", "rki", "rkid"),
    "spleen": ("spl",),
    "stomach": ("sto",),
    "superior vena cava": ("svc",),
    "urinary bladder": ("bladder", "bla"),
    "vertebra L1": ("first lumbar vertebra", "lumbar vertebra 1"),
}
"""An organ -> other complete names of it; those of a paired organ apply to either side."""
_ADRENALS: Mapping[str, str] = {"rad": "right adrenal", "lad": "left adrenal"}
"""Meaning in a data set that has both; alone, LAD is the left anterior descending artery."""


def _words(name: str) -> frozenset[str]:
    """The distinguishing words of a name, each in one spelling."""
    tokens = [t for token in name_tokens(name) for t in (side_word(token) or _SAME.get(token, token)).split()]
    if "gallbladder" in tokens and "bladder" in tokens:  # "gall bladder"
        tokens.remove("bladder")
    return frozenset(t for t in tokens if t not in _SILENT)


_MEANING = {_words(other): _words(organ) for organ, others in _SYNONYMS.items() for other in others}


def organ_words(name: str) -> frozenset[str]:
    """The distinguishing words of an organ's name, in one spelling: ``right_kidney``, ``RightKidney``,
    ``kidney R`` and ``RK`` are equal, and so are ``IVC`` and ``postcava``."""
    words = _words(name)
    sides = words.intersection(_SIDES)
    return _MEANING.get(words) or _MEANING.get(words - sides, words - sides) | sides


def label_of(organ: str, schema: LabelSchema) -> str | None:
    """The label of a data set that means ``organ``: as found by ``LabelSchema.find``, otherwise by its
    synonyms; None if there is none."""
    spelled = schema.find(organ)
    if spelled is not None:
        return spelled
    wanted = organ_words(organ)
    if not wanted:  # "muscle": no distinguishing word is left
        return None
    meanings = dict(zip(schema.names, schema.names, strict=True))
    adrenals = {n: _ADRENALS[n.lower()] for n in schema.names if n.lower() in _ADRENALS}
    if len(adrenals) == len(_ADRENALS):
        meanings |= adrenals
    return next((name for name, meaning in meanings.items() if organ_words(meaning) == wanted), None)


def alike(own: LabelSchema, other: LabelSchema) -> dict[str, str]:
    """The labels of ``own`` that ``other`` also has, with their names there: those of the same name, and
    those that mean the same (``label_of``) if no further label of either schema does."""
    found: list[tuple[str | None, str | None]] = [(name, label_of(name, other)) for name in own.names]
    found += [(label_of(name, own), name) for name in other.names]
    pairs = dict.fromkeys((ours, theirs) for ours, theirs in found if ours is not None and theirs is not None)
    count = Counter(name for pair in pairs for name in enumerate(pair))
    return {
        ours: theirs for ours, theirs in pairs if ours == theirs or count[0, ours] == count[1, theirs] == 1
    }


@dataclass(frozen=True)
class OrganMatch(Generic[Row]):
    """A row of a table. ``side`` is ``"left"`` or ``"right"`` if the row is for either side and the name
    states one."""

    row: Row
    side: str | None


def find_organ(name: str, table: Mapping[frozenset[str], Row]) -> OrganMatch[Row] | None:
    """The row of an organ in a table by ``organ_words``: as named, otherwise without its side; None if
    neither is there."""
    words = organ_words(name)
    if words in table:
        return OrganMatch(table[words], None)
    sides = [side for side in _SIDES if side in words]
    if len(sides) == 1 and words - {sides[0]} in table:
        return OrganMatch(table[words - {sides[0]}], sides[0])
    return None
