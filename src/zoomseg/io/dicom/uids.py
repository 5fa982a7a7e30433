"""UIDs of a series for objects derived from it: its own, or generated ones if files lost theirs."""

from __future__ import annotations

import re

from pydicom.uid import generate_uid

from zoomseg.io.dicom.series import DicomSeries

_UID = r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+"


def study_uid(series: DicomSeries) -> str:
    """The series' study; for files that lost it, one common to all objects derived from them."""
    return valid_uid(series.study_uid) or _derived_uid(series, "study")


def series_uid(series: DicomSeries) -> str:
    """The series' own UID, or as ``study_uid``."""
    return valid_uid(series.series_uid) or _derived_uid(series, "series")


def frame_of_reference_uid(series: DicomSeries) -> str:
    """The frame of reference of the series' positions, or as ``study_uid``."""
    return valid_uid(series.frame_of_reference_uid) or _derived_uid(series, "frame of reference")


def valid_uid(uid: str | None) -> str:
    """The UID, or an empty text if it is invalid: a writer would refuse it, or a reader the whole file."""
    return uid if uid and len(uid) <= 64 and re.fullmatch(_UID, uid) else ""


def _derived_uid(series: DicomSeries, what: str) -> str:
    known = [series.study_uid, series.series_uid, series.frame_of_reference_uid]
    uids = [uid for uid in (*known, *series.slice_uids) if uid]
    # Files may have lost all of them: without the other values, all such patients would have the same study.
    rest = (series.patient, series.grid.shape, series.grid.affine.tolist())
    return str(generate_uid(entropy_srcs=[what, *uids, repr(rest)]))


def notes_on_identity(series: DicomSeries) -> tuple[str, ...]:
    """A note, one line, on missing values that derived objects must contain; empty if none are missing."""
    uids = {
        "StudyInstanceUID": series.study_uid,
        "SeriesInstanceUID": series.series_uid,
        "FrameOfReferenceUID": series.frame_of_reference_uid,
    }
    lacking = [keyword for keyword, uid in uids.items() if not valid_uid(uid)]
    notes = []
    if lacking:
        what = " and ".join(lacking)
        notes.append(
            f"it lacks a valid {what}; a SEG or RTSTRUCT of it has a generated one, and archives and viewers "
            "do not associate it with the images"
        )
    if not all(valid_uid(s.sop_uid) for s in series.stored):
        notes.append("it has slices without SOPInstanceUID; a SEG or RTSTRUCT does not refer to these")
    return tuple(notes)
