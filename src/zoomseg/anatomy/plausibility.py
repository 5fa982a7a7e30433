"""Plausibility of organ positions: left ones on the left, the liver to the right of the spleen and above the
kidneys.

Such rules detect what probabilities do not show: a scan whose header is wrong in a side or in head and feet,
or a network that confused the kidneys. They only report certain errors: an organ that the scan cuts off may
have its centre outside, so nothing is reported that its part outside could invalidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zoomseg.anatomy.measurements import OrganMeasurement
from zoomseg.anatomy.organ_names import find_organ, organ_words
from zoomseg.core.errors import listed, quoted
from zoomseg.core.labels import LabelSchema

SIDES_SWAPPED = "sides_swapped"
"""A left organ lies to the right of its right one."""
MIRRORED_SCAN = "mirrored_scan?"
"""Organs that are on the same side in nearly everybody lie on the other one."""
UPSIDE_DOWN = "upside_down?"
"""Organs of the upper body lie below those of the lower one."""

_NOTES = {
    SIDES_SWAPPED: "left organs lie to the right of right ones ({}); is the scan mirrored?",
    MIRRORED_SCAN: "organs lie on the opposite side of the body ({}); is the scan mirrored?",
    UPSIDE_DOWN: "organs of the upper body lie below those of the lower one ({}); is the scan upside down?",
}

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
"""Pairs with this order in everybody, if the organs are complete. "Kidney" comprises all kidneys present."""


def plausibility_flags(
    schema: LabelSchema, found: Mapping[str, OrganMeasurement]
) -> dict[str, tuple[str, ...]]:
    """Flags of the organs in implausible positions, by organ; plausible ones are omitted.

    Args:
        found: the organs present, by their names in the schema.
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


def position_notes(flags: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """One line for each kind of implausible position, with its organs.

    Args:
        flags: by organ; others are ignored.
    """
    marked = {flag: [quoted(organ) for organ, own in flags.items() if flag in own] for flag in _NOTES}
    return tuple(_NOTES[flag].format(listed(organs)) for flag, organs in marked.items() if organs)


def _called(organ: str, names: Iterable[str]) -> list[str]:
    """All of these names that mean an organ, of either side."""
    table = {organ_words(organ): organ}
    return [name for name in names if find_organ(name, table) is not None]


def _before(one: OrganMeasurement, other: OrganMeasurement, axis: int) -> bool:
    """Whether one organ's centre certainly lies before another's along a canonical axis: no part cut off by
    the scan can move the former up, or the latter down."""
    if one.cut[axis][1] or other.cut[axis][0]:
        return False
    return one.centroid_mm[axis] < other.centroid_mm[axis]
