"""Duplicate objects: of true copies one is used, others are refused.

A SOP Instance UID identifies one object. Two objects of one UID with different voxels were processed by a
program that should have assigned new UIDs, and it is unknown which one is meant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.archive import Opener, Source, opening
from zoomseg.io.dicom.read.decoding import reading_source, stored_values
from zoomseg.io.dicom.read.object_header import Image, StoredSlice

_Copies = dict[tuple[Source, Source], list[tuple[StoredSlice, StoredSlice]]]
"""Pairs of objects -> their slices with the same UID and frame."""


def without_copies(images: Iterable[Image]) -> tuple[list[StoredSlice], list[str]]:
    """All slices, with only the first of copies of an object; and a note if there are copies.

    Raises:
        ScanError: two objects have one UID, but differ in their positions or voxels; or voxels of copies
            cannot be read.
    """
    kept: dict[object, StoredSlice] = {}
    copies: _Copies = defaultdict(list)
    for stored in (s for image in images for s in image.slices):
        key = (stored.sop_uid, stored.frame) if stored.sop_uid else (stored.source, stored.frame)
        first = kept.setdefault(key, stored)
        if first is not stored:
            copies[first.source, stored.source].append((first, stored))
    _require_equal(copies)
    count = sum(map(len, copies.values()))
    notes = [f"{count} slices are duplicated; the copies were left out"] if count else []
    return list(kept.values()), notes


def _require_equal(copies: _Copies) -> None:
    zips = {source.path for pair in copies for source in pair if source.member is not None}
    with opening(*zips) as opener:
        for (one, other), slices in copies.items():
            if any(_lie_apart(a, b) for a, b in slices):
                raise ScanError(f"{other}: has the UID of {one}, but lies elsewhere")
            if _values_differ(slices, opener):
                raise ScanError(f"{other}: has the UID of {one}, but other voxels; give one of them alone")


def _lie_apart(one: StoredSlice, other: StoredSlice) -> bool:
    return any(
        getattr(one, where) != getattr(other, where)
        for where in ("position_lps_mm", "along_row", "along_column", "spacing_mm")
    )


def _values_differ(slices: Sequence[tuple[StoredSlice, StoredSlice]], opener: Opener) -> bool:
    """Compare values, decoded if necessary: one of two copies may have been compressed."""
    meaning = ("slope", "intercept", "rescale_type")
    layout = ("rows", "columns", "stored", "signed", "inverted", "padding")
    for one, other in slices:
        if any(getattr(one, name) != getattr(other, name) for name in meaning):
            return True
        if any(getattr(one.pixels, name) != getattr(other.pixels, name) for name in layout):
            return True
    if _same_content(*slices[0], opener):
        return False
    firsts, seconds = (list(some) for some in zip(*slices, strict=True))
    pairs = zip(stored_values(firsts, opener), stored_values(seconds, opener), strict=True)
    return any(i != j or not np.array_equal(a, b) for (i, a), (j, b) in pairs)


def _same_content(one: StoredSlice, other: StoredSlice, opener: Opener) -> bool:
    """Whether two objects contain the same bytes from their voxels on, in the same transfer syntax."""
    if (one.pixels.syntax, one.pixels.order) != (other.pixels.syntax, other.pixels.order):
        return False
    with (
        reading_source(other.source),
        opener.open(one.source) as mine,
        opener.open(other.source) as theirs,
    ):
        mine.seek(one.pixels.offset)
        theirs.seek(other.pixels.offset)
        while (chunk := mine.read(_CHUNK)) == theirs.read(_CHUNK):
            if not chunk:
                return True
    return False


_CHUNK = 1 << 20
