"""Common parts of written SEG and RTSTRUCT objects: references and provenance."""

# mypy: allow-untyped-calls

from __future__ import annotations

import importlib.metadata
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from zoomseg.anatomy.codes import Code, short_text
from zoomseg.core.errors import GeometryError, ScanError
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom import patient
from zoomseg.io.dicom.series import DicomSeries, Identity
from zoomseg.io.dicom.uids import study_uid, valid_uid
from zoomseg.io.files import atomic_path

Mask = npt.NDArray[np.bool_]

MANUFACTURER = "ZoomSeg"
ARTIFICIAL_INTELLIGENCE = Code("123110", "Artificial Intelligence", "DCM")

_MODEL_CHARACTERS = 36
"""Maximum length of a model's name in a series description, so that the time of creation fits into its 64
characters."""


def found_classes(labels: LabelMap, series: DicomSeries) -> list[int]:
    """Classes of the organs present in a label map, in ascending order.

    Raises:
        GeometryError: it is not on the series' own grid.
    """
    if not labels.grid.same_as(series.grid):
        off = labels.grid.distance_mm(series.grid)
        raise GeometryError(
            f"labels of shape {labels.grid.shape} lie {off:.3g} mm off the grid of series "
            f"'{series.description}' of shape {series.grid.shape}; write them on the series' own grid"
        )
    return [labels.schema.class_of(name) for name in labels.present]


def patient_and_study(series: DicomSeries) -> Dataset:
    """A data set with the patient and study attributes that an object repeats. Attributes that the series
    lacks, or has in an invalid form, are empty or absent."""
    found = patient.elements(dict(series.patient))
    found.SpecificCharacterSet = "ISO_IR 192"
    found.StudyInstanceUID = study_uid(series)
    return found


def series_of_result(series: DicomSeries, model: str, offset: int, made: datetime, seed: str = "") -> Dataset:
    """A data set that describes the new series of an object created by ``model``: two runs are distinguished
    by the time.

    Args:
        offset: added to the number of ``series``, different for each kind of object.
        seed: of its UID, together with ``offset``; random if omitted.
    """
    date, seconds = f"{made:%Y%m%d}", f"{made:%H%M%S}"
    found = Dataset()
    found.SeriesInstanceUID = UID(new_uid(seed, "series", str(offset)))
    found.SeriesNumber = (series.number or 0) % 100_000 + offset
    found.SeriesDescription = (
        f"{MANUFACTURER} {short_text(model, longest=_MODEL_CHARACTERS)} {made:%Y-%m-%d %H:%M:%S}"
    )
    found.SeriesDate = found.InstanceCreationDate = date
    found.SeriesTime = found.InstanceCreationTime = seconds
    return found


def require_one_identity(series: DicomSeries) -> None:
    """Refuse a series whose slices have, in their own headers, several patients, studies, series or frames of
    reference, or others than the series: an object would name one patient and refer to another's images.

    Raises:
        ScanError: they have.
    """
    stored = [s.identity for s in series.stored if s.identity is not None]
    differing = {keyword for one in stored for keyword in one.differing(series.identity)}
    if differing:
        what = ", ".join(keyword for keyword in Identity.KEYWORDS if keyword in differing)
        raise ScanError(
            f"slices of series '{series.description}' differ in {what}; no SEG or RTSTRUCT is made that may "
            "mix up patients: export each patient and study by itself"
        )


def code_item(code: Code) -> Dataset:
    """A code as an item of a code sequence."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return item


def software_version() -> str:
    return importlib.metadata.version("zoomseg")


def new_uid(seed: str = "", *what: str) -> str:
    """An unused UID; with a ``seed``, the one that ``what`` has in all runs with that seed."""
    return str(generate_uid(entropy_srcs=[seed, *what] if seed else None))


def reference_item(series: DicomSeries, k: int) -> Dataset | None:
    """Reference to the stored slice in plane k; None if that plane was interpolated or has no (valid) UID."""
    stored = series.slices[k]
    if stored is None or not valid_uid(stored.sop_uid):
        return None
    item = Dataset()
    item.ReferencedSOPClassUID = UID(series.sop_class_uid)
    item.ReferencedSOPInstanceUID = UID(stored.sop_uid)
    if stored.frame is not None:
        item.ReferencedFrameNumber = stored.frame
    return item


def instance_items(series: DicomSeries) -> list[Dataset]:
    """References to all objects of the series, each once."""
    items = []
    for uid in dict.fromkeys(s.sop_uid for s in series.stored if valid_uid(s.sop_uid)):
        item = Dataset()
        item.ReferencedSOPClassUID = UID(series.sop_class_uid)
        item.ReferencedSOPInstanceUID = UID(uid)
        items.append(item)
    return items


def save(dataset: Dataset, path: Path) -> None:
    """Write an object as a DICOM file, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_path(path) as partial:
        dataset.save_as(partial, enforce_file_format=True)
