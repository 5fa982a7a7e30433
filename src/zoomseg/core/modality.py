"""How a scan was made, as far as its channels' names or its DICOM header say."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORDS = {
    "CT": r"ct",
    "MR": r"mri?|t1\w*|t2\w*|flair|adc|dwi|spir|mprage|swi|dixon",
    "PT": r"pet|pt|suv|fdg",
    "US": r"us|ultrasound",
}
_NAMED = {
    modality: re.compile(rf"(?<![a-z])(?:{words})(?![a-z])", re.IGNORECASE)
    for modality, words in _WORDS.items()
}
"""By DICOM's Modality (0008,0060), the words that name it in data sets."""


def modality_of(channel_names: Iterable[str]) -> str | None:
    """DICOM's word (CT, MR, PT, US) for what all of these channels are; None where their names do not say."""
    found = {_modality(name) for name in channel_names}
    return found.pop() if len(found) == 1 else None


def _modality(name: str) -> str | None:
    said = {modality for modality, words in _NAMED.items() if words.search(name)}
    return said.pop() if len(said) == 1 else None
