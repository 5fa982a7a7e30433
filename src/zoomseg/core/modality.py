"""The modality of a scan, from the names of its channels."""

from __future__ import annotations

import re
from collections.abc import Iterable

CONE_BEAM = "CBCT"
"""CT in DICOM's terms, but rarely in Hounsfield units."""

_WORDS = {
    "CT": r"ct",
    CONE_BEAM: r"cbct",
    "MR": r"mri?|t[12]\w*|flair|adc|dwi|pd\w?|spir|mprage|swi|dixon",
    "PT": r"pet|pt|suv|fdg",
    "NM": r"spect|nm",
    "US": r"us|ultrasound",
}
_NAMED = {
    modality: re.compile(rf"(?<![a-z])(?:{words})(?![a-z])", re.IGNORECASE)
    for modality, words in _WORDS.items()
}
"""DICOM's Modality (0008,0060), or ``CONE_BEAM`` -> words that name it in data sets."""


def named(channel: str) -> frozenset[str]:
    """The modalities that a channel's name states: DICOM's terms, or ``CONE_BEAM``."""
    return frozenset(modality for modality, words in _NAMED.items() if words.search(channel))


def modality_of(channels: Iterable[str]) -> str | None:
    """DICOM's term (CT, MR, PT, NM, US) for all of these channels; None if their names state none or
    several."""
    named_modalities = {modality for channel in channels for modality in (named(channel) or {""})}
    (one,) = named_modalities if len(named_modalities) == 1 else ("",)
    return {CONE_BEAM: "CT"}.get(one, one) or None
