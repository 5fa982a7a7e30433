"""Slices of one series that do not belong to one volume, apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.geometry import SAME_PLACE_MM, places_mm
from zoomseg.io.dicom.header import PHASES, StoredSlice

SAME_DIRECTION = 1e-3
"""Direction cosines of slices of one volume differ by at most this: half a millimetre over half a metre."""

SAME_SPACING = 1e-3
"""Their voxel sizes differ by at most this share."""


def by_geometry(slices: Sequence[StoredSlice]) -> list[list[StoredSlice]]:
    """Slices of one size, voxel size and orientation each, in the order of their first ones."""
    groups: list[list[StoredSlice]] = []
    for one in slices:
        home = next((g for g in groups if _alike(g[0], one)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return groups


def _alike(one: StoredSlice, other: StoredSlice) -> bool:
    a, b = one.pixels, other.pixels
    return (
        (a.rows, a.columns) == (b.rows, b.columns)
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=SAME_SPACING, atol=0)
        and np.allclose(one.along_row, other.along_row, rtol=0, atol=SAME_DIRECTION)
        and np.allclose(one.along_column, other.along_column, rtol=0, atol=SAME_DIRECTION)
    )


def by_phase(slices: Sequence[StoredSlice]) -> list[tuple[list[StoredSlice], tuple[str, ...]]]:
    """Slices of one orientation, so split that no two of a part lie at one place; with what tells the part
    apart, for its notes.

    Raises:
        ScanError: slices share places, and nothing in their headers says which belong together.
    """
    parts = list(_split(list(slices), ()))
    if len(parts) == 1:
        return [(parts[0][0], ())]
    return [(part, (f"one of {len(parts)} volumes of its series: {', '.join(why)}",)) for part, why in parts]


def _split(
    slices: list[StoredSlice], why: tuple[str, ...]
) -> Iterator[tuple[list[StoredSlice], tuple[str, ...]]]:
    most = _most_at_one_place(slices)
    if most == 1:
        yield slices, why
        return
    for keyword in PHASES:
        groups = _by_value(slices, keyword)
        if 1 < len(groups) <= most and all(_is_step(group, most) for group in groups.values()):
            for value, group in groups.items():
                yield from _split(group, (*why, f"{keyword} {value or 'missing'}"))
            return
    raise ScanError(
        f"up to {most} of its {len(slices)} slices lie at one place, and their headers do not say which "
        "belong together; export each phase as a series of its own"
    )


def _is_step(group: list[StoredSlice], most: int) -> bool:
    """Whether a part has fewer slices at one place than the whole, and is no mere single one."""
    return len(group) > 1 and _most_at_one_place(group) < most


def _most_at_one_place(slices: Sequence[StoredSlice]) -> int:
    along = np.sort(places_mm(slices))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(along) >= SAME_PLACE_MM]))
    return int(np.diff(np.concatenate([starts, [len(along)]])).max())


def _by_value(slices: Sequence[StoredSlice], keyword: str) -> dict[str, list[StoredSlice]]:
    groups: dict[str, list[StoredSlice]] = defaultdict(list)
    for one in slices:
        groups[dict(one.phase).get(keyword, "")].append(one)
    return groups
