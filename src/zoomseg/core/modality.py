"""How a scan was made, as far as its channels' names say."""

from __future__ import annotations

import re
from collections.abc import Iterable

CONE_BEAM = "CBCT"
"""Is CT to DICOM, but seldom in Hounsfield units."""

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
"""By DICOM's Modality (0008,0060), and ``CONE_BEAM``, the words that name it in data sets."""


def named(channel: str) -> frozenset[str]:
    """What a channel's name says it is: DICOM's words, or ``CONE_BEAM``."""
    return frozenset(modality for modality, words in _NAMED.items() if words.search(channel))


def modality_of(channels: Iterable[str]) -> str | None:
    """DICOM's word (CT, MR, PT, NM, US) for what all of these channels are; None where their names do not
    say, or say several."""
    said = {modality for channel in channels for modality in (named(channel) or {""})}
    (one,) = said if len(said) == 1 else ("",)
    return {CONE_BEAM: "CT"}.get(one, one) or None
