"""Which series a SEG or RTSTRUCT was drawn on, by what it refers to."""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.archive import Source
from zoomseg.io.dicom.finding import Stack
from zoomseg.io.dicom.objects import MAX_OBJECT_BYTES, series_uid
from zoomseg.io.dicom.tags import text
from zoomseg.io.files import reading

_TAGS = ("FrameOfReferenceUID", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")


@dataclass(frozen=True)
class _References:
    """UIDs that an object refers to."""

    series: frozenset[str]
    instances: frozenset[str]
    frames: frozenset[str]


def series_of(source: Source, stacks: Sequence[Stack]) -> int:
    """Which of the volumes an object was drawn on: that of the series it names (by UID, or by its images)
    or, where it names none, the only one in its frame of reference. Of several, that with images it names.

    Raises:
        ScanError: unreadable, or none or several of the volumes come into question.
    """
    if source.member is not None:
        raise ScanError(f"{source}: labels in zips are not read; unpack it")
    named = _references(source.path)
    with_images = {i for i, s in enumerate(stacks) if named.instances.intersection(s.series.slice_uids)}
    if named.series:
        found = [
            i for i, s in enumerate(stacks) if named.series & {s.series.series_uid, series_uid(s.series)}
        ]
        found = found or sorted(with_images)  # files may have lost their series' UID
    else:
        found = [i for i, s in enumerate(stacks) if s.series.frame_of_reference_uid in named.frames]
    if len(found) > 1:
        found = [i for i in found if i in with_images] or found
    if not found:
        raise ScanError(f"{source}: the series that it was drawn on is not here, or is none that can be used")
    if len(found) > 1:
        raise ScanError(f"{source}: may be drawn on any of {len(found)} volumes, and does not say on which")
    return found[0]


def _references(path: Path) -> _References:
    with reading(path, "DICOM"):
        if path.stat().st_size > MAX_OBJECT_BYTES:
            raise ScanError(f"{path}: larger than {MAX_OBJECT_BYTES} bytes; no SEG or RTSTRUCT is")
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        frames = list(header.get("ReferencedFrameOfReferenceSequence") or ())
        series = list(header.get("ReferencedSeriesSequence") or ())
        for study in (study for frame in frames for study in frame.get("RTReferencedStudySequence") or ()):
            series += study.get("RTReferencedSeriesSequence") or ()
        return _References(
            frozenset(text(one, "SeriesInstanceUID") for one in series) - {""},
            frozenset(text(one, "ReferencedSOPInstanceUID") for one in _instances(series)) - {""},
            frozenset(text(one, "FrameOfReferenceUID") for one in (header, *frames)) - {""},
        )


def _instances(series: Iterable[Dataset]) -> Iterator[Dataset]:
    for one in series:
        for keyword in ("ReferencedInstanceSequence", "ContourImageSequence"):
            yield from one.get(keyword) or ()
