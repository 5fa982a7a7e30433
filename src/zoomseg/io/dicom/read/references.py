"""The series to which a SEG or RTSTRUCT belongs, by its references, and whether patient and study agree."""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from zoomseg.anatomy.codes import short_text
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read import derived_objects
from zoomseg.io.dicom.read.archive import Source
from zoomseg.io.dicom.read.series_discovery import Stack
from zoomseg.io.dicom.series import DicomSeries, plain
from zoomseg.io.dicom.tags import text
from zoomseg.io.dicom.uids import frame_of_reference_uid, series_uid, study_uid

_TAGS = (
    *("FrameOfReferenceUID", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"),
    "StructureSetROISequence",
)


@dataclass(frozen=True)
class _References:
    """UIDs to which an object refers."""

    series: frozenset[str]
    instances: frozenset[str]
    frames: frozenset[str]


def series_of(source: Source, stacks: Sequence[Stack]) -> int:
    """The volume to which an object belongs: that of the series it names (by UID, or by its images) or, if it
    names none, the only one in its frame of reference. Of several, the one with images that it names.

    Raises:
        ScanError: unreadable, or none or several of the volumes are possible.
    """
    if source.member is not None:
        raise ScanError(f"{source}: labels in zips are not read; unpack it")
    named = _references(source.path)
    with_images = {i for i, s in enumerate(stacks) if named.instances & s.series.image_uids}
    if named.series:
        found = [
            i for i, s in enumerate(stacks) if named.series & {s.series.series_uid, series_uid(s.series)}
        ]
        found = found or sorted(with_images)  # files may have lost their series' UID
    else:
        found = [
            i
            for i, s in enumerate(stacks)
            if named.frames & {s.series.frame_of_reference_uid, frame_of_reference_uid(s.series)}
        ]
    if len(found) > 1:
        found = [i for i in found if i in with_images] or found
    if not found:
        raise ScanError(f"{source}: the series that it belongs to is missing or cannot be used")
    if len(found) > 1:
        raise ScanError(f"{source}: may belong to any of {len(found)} volumes, and does not state to which")
    return found[0]


def _references(path: Path) -> _References:
    with derived_objects.opened(path) as stream:
        return _named_in(pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS)))


def _named_in(header: Dataset) -> _References:
    frames = list(header.get("ReferencedFrameOfReferenceSequence") or ())
    series = list(header.get("ReferencedSeriesSequence") or ())
    for study in (study for frame in frames for study in frame.get("RTReferencedStudySequence") or ()):
        series += study.get("RTReferencedSeriesSequence") or ()
    spaces = {text(one, "FrameOfReferenceUID") for one in (header, *frames)}
    spaces |= {
        text(roi, "ReferencedFrameOfReferenceUID") for roi in header.get("StructureSetROISequence") or ()
    }
    return _References(
        frozenset(text(one, "SeriesInstanceUID") for one in series) - {""},
        frozenset(text(one, "ReferencedSOPInstanceUID") for one in _instances(series)) - {""},
        frozenset(spaces) - {""},
    )


def _instances(series: Iterable[Dataset]) -> Iterator[Dataset]:
    for one in series:
        for keyword in ("ReferencedInstanceSequence", "ContourImageSequence"):
            yield from one.get(keyword) or ()


# --- identity -------------------------------------------------------------------------------------


def require_same_images(path: Path, dataset: Dataset, series: DicomSeries) -> tuple[str, ...]:
    """Refuse an object of another patient, or of images that are not of ``series`` and lie elsewhere. Frames
    of reference are compared by ``derived_objects.require_frame``.

    Returns:
        Notes on uncertainties: one line each, without names or IDs of patients.

    Raises:
        ScanError: the patient or the images differ.
    """
    _require_patient(path, dataset, dict(series.patient))
    notes, named = [], _named_in(dataset)
    mine = {series.series_uid, series_uid(series)}
    strange = bool(named.series) and not (named.series & mine or named.instances & series.image_uids)
    if strange and series.frame_of_reference_uid not in named.frames - {""}:
        raise ScanError(
            f"{path}: refers to other images than those of series '{series.description}', and no frame of "
            "reference says where these lie; give the series that it annotates"
        )
    if strange:
        notes.append("annotates another series in the same frame of reference")
    if not named.frames or not series.frame_of_reference_uid:
        notes.append("it or its series has no frame of reference; placed by its coordinates alone")
    study = text(dataset, "StudyInstanceUID")
    if study and study not in (series.study_uid, study_uid(series)):
        notes.append("belongs to another study than its series")
    return tuple(notes)


def _require_patient(path: Path, dataset: Dataset, patient: Mapping[str, str]) -> None:
    """Compare patients by ID and date of birth; without IDs, by name. The series' value may be cut to a
    field's length."""
    pairs = {
        keyword: (plain(text(dataset, keyword)), patient.get(keyword, ""))
        for keyword in ("PatientID", "PatientBirthDate", "PatientName")
    }
    deciding = ["PatientID", "PatientBirthDate"] if all(pairs["PatientID"]) else ["PatientName"]
    given = ((keyword, *pairs[keyword]) for keyword in deciding if all(pairs[keyword]))
    other = next((k for k, its, ours in given if its not in (plain(ours), plain(short_text(ours)))), None)
    if other is not None:
        raise ScanError(
            f"{path}: its {other} is not that of the series; labels of one patient are not used on "
            "images of another; correct the header if they belong together"
        )
