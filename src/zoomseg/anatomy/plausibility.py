"""Whether organs lie where they can: left ones left, the liver right of the spleen and over the kidneys.

Such rules catch what no probability tells: a scan whose header has a side or its head the wrong way round,
or a network that took one kidney for the other. They speak only where they must be right: an organ that the
scan cuts off may have its middle outside, so nothing is said of it that what lies outside could undo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zoomseg.anatomy.measurements import OrganMeasurement
from zoomseg.anatomy.organ_names import find_organ, organ_words
from zoomseg.core.labels import LabelSchema

SIDES_SWAPPED = "sides_swapped"
"""A left organ lies right of its right one."""
MIRRORED_SCAN = "mirrored_scan?"
"""Organs that have their side in nearly everybody lie on the other one."""
UPSIDE_DOWN = "upside_down?"
"""Organs of the upper body lie below those of the lower one."""

_X, _Z = 0, 2
_RIGHT_OF: tuple[tuple[str, str], ...] = (
    ("liver", "spleen"),
    ("liver", "stomach"),
    ("gallbladder", "spleen"),
)
_ABOVE: tuple[tuple[str, str], ...] = (
    ("liver", "kidney"),
    ("spleen", "urinary bladder"),
    ("kidney", "urinary bladder"),
    ("liver", "urinary bladder"),
    ("heart", "kidney"),
    ("lung", "kidney"),
    ("brain", "heart"),
)
"""Pairs that lie so in everybody, whole organs given. A kidney is both of them: all that there are."""


def plausibility_flags(
    schema: LabelSchema, found: Mapping[str, OrganMeasurement]
) -> dict[str, tuple[str, ...]]:
    """Flags of the organs that do not lie where they can, by organ; those that do are left out.

    Args:
        found: the organs that are there, by their names in the schema.
    """
    flags: dict[str, list[str]] = {}

    def mark(flag: str, organs: Iterable[str]) -> None:
        for organ in organs:
            own = flags.setdefault(organ, [])
            if flag not in own:
                own.append(flag)

    for left, right in schema.left_right:
        if left in found and right in found and _before(found[right], found[left], _X):
            mark(SIDES_SWAPPED, (left, right))
    for rules, axis, flag in ((_RIGHT_OF, _X, MIRRORED_SCAN), (_ABOVE, _Z, UPSIDE_DOWN)):
        for high, low in rules:
            highs, lows = _called(high, found), _called(low, found)
            if highs and lows and all(_before(found[h], found[w], axis) for h in highs for w in lows):
                mark(flag, (*highs, *lows))
    return {organ: tuple(own) for organ, own in flags.items()}


def _called(organ: str, names: Iterable[str]) -> list[str]:
    """All of these names that mean an organ, of either side."""
    table = {organ_words(organ): organ}
    return [name for name in names if find_organ(name, table) is not None]


def _before(one: OrganMeasurement, other: OrganMeasurement, axis: int) -> bool:
    """Whether one organ's middle lies before another's for certain, along a canonical axis: nothing that the
    scan cut off can move the one up, nor the other one down."""
    if one.cut[axis][1] or other.cut[axis][0]:
        return False
    return one.centroid_mm[axis] < other.centroid_mm[axis]
