"""What SEG and RTSTRUCT have in common: what they refer to, who made them, and reading their files."""

# mypy: allow-untyped-calls

from __future__ import annotations

import importlib.metadata
import io
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, generate_uid

from zoomseg.anatomy.codes import Code, short_text
from zoomseg.core.errors import GeometryError, ScanError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom import patient
from zoomseg.io.dicom.read.archive import BoundedReader
from zoomseg.io.dicom.series import DicomSeries, Identity
from zoomseg.io.files import atomic_path, reading

Mask = npt.NDArray[np.bool_]

MANUFACTURER = "ZoomSeg"
MAX_OBJECT_BYTES = 4 * 1024**3
"""A larger SEG or RTSTRUCT is refused."""

ARTIFICIAL_INTELLIGENCE = Code("123110", "Artificial Intelligence", "DCM")

_UID = r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+"

_MODEL_CHARACTERS = 36
"""Of a model's name in a series' description, so that the time of its making fits into the 64 there are."""


# --- writing --------------------------------------------------------------------------------------


def found_classes(labels: LabelMap, series: DicomSeries) -> list[int]:
    """Classes of the organs that a label map has, in ascending order.

    Raises:
        GeometryError: it does not lie on the series' own grid.
    """
    if not labels.grid.same_as(series.grid):
        off = labels.grid.distance_mm(series.grid)
        raise GeometryError(
            f"labels of shape {labels.grid.shape} lie {off:.3g} mm off the grid of series "
            f"'{series.description}' of shape {series.grid.shape}; write them on the series' own grid"
        )
    return [int(c) for c in np.unique(labels.data) if 0 < c <= len(labels.schema.names)]


def study_uid(series: DicomSeries) -> str:
    """The series' study; for files that lost it, one that is the same for all that is made of them."""
    return _valid(series.study_uid) or _derived_uid(series, "study")


def series_uid(series: DicomSeries) -> str:
    """The series' own UID, or as ``study_uid``."""
    return _valid(series.series_uid) or _derived_uid(series, "series")


def frame_of_reference_uid(series: DicomSeries) -> str:
    """What positions of the series are relative to, or as ``study_uid``."""
    return _valid(series.frame_of_reference_uid) or _derived_uid(series, "frame of reference")


def _valid(uid: str | None) -> str:
    """The UID, or nothing where it is none: a writer would refuse it, or a reader the whole file."""
    return uid if uid and len(uid) <= 64 and re.fullmatch(_UID, uid) else ""


def _derived_uid(series: DicomSeries, what: str) -> str:
    known = [series.study_uid, series.series_uid, series.frame_of_reference_uid]
    uids = [uid for uid in (*known, *series.slice_uids) if uid]
    # Files may have lost all of them: without the rest, all such patients would have one study.
    rest = (series.patient, series.grid.shape, series.grid.affine.tolist())
    return str(generate_uid(entropy_srcs=[what, *uids, repr(rest)]))


def patient_and_study(series: DicomSeries) -> Dataset:
    """A data set that holds what an object repeats of the patient and study it belongs to. What the series
    lacks, or has in an impossible form, is empty or absent."""
    found = patient.elements(dict(series.patient))
    found.SpecificCharacterSet = "ISO_IR 192"
    found.StudyInstanceUID = study_uid(series)
    return found


def series_of_result(series: DicomSeries, model: str, offset: int, made: datetime) -> Dataset:
    """A data set that describes the series that an object made by ``model`` is alone in: two runs are told
    apart by the time.

    Args:
        offset: added to the number of ``series``, unlike those of other kinds of objects.
    """
    date, seconds = f"{made:%Y%m%d}", f"{made:%H%M%S}"
    found = Dataset()
    found.SeriesInstanceUID = UID(new_uid())
    found.SeriesNumber = (series.number or 0) % 100_000 + offset
    found.SeriesDescription = (
        f"{MANUFACTURER} {short_text(model, longest=_MODEL_CHARACTERS)} {made:%Y-%m-%d %H:%M:%S}"
    )
    found.SeriesDate = found.InstanceCreationDate = date
    found.SeriesTime = found.InstanceCreationTime = seconds
    return found


def require_one_identity(series: DicomSeries) -> None:
    """Refuse a series whose slices are, by their own headers, of several patients, studies, series or frames
    of reference, or of others than it says: an object would carry one's name and refer to another's images.

    Raises:
        ScanError: they are.
    """
    stored = [s.identity for s in series.slices if s is not None and s.identity is not None]
    differing = {keyword for one in stored for keyword in one.differing(series.identity)}
    if differing:
        what = ", ".join(keyword for keyword in Identity.KEYWORDS if keyword in differing)
        raise ScanError(
            f"slices of series '{series.description}' differ in {what}; no SEG or RTSTRUCT is made that may "
            "mix up patients: export each patient and study by itself"
        )


def notes_on_identity(series: DicomSeries) -> tuple[str, ...]:
    """What a series lacks that objects made of it must name, one line; nothing if it lacks none."""
    uids = {
        "StudyInstanceUID": series.study_uid,
        "SeriesInstanceUID": series.series_uid,
        "FrameOfReferenceUID": series.frame_of_reference_uid,
    }
    lacking = [keyword for keyword, uid in uids.items() if not _valid(uid)]
    notes = []
    if lacking:
        what = " and ".join(lacking)
        notes.append(
            f"it lacks a valid {what}; a SEG or RTSTRUCT of it has one made up, and archives and viewers do "
            "not put it with the images"
        )
    if any(s is not None and not _valid(s.sop_uid) for s in series.slices):
        notes.append("it has slices without SOPInstanceUID; a SEG or RTSTRUCT does not refer to these")
    return tuple(notes)


def code_item(code: Code) -> Dataset:
    """A code as an item of a code sequence."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return item


def software_version() -> str:
    return importlib.metadata.version("zoomseg")


def new_uid() -> str:
    return str(generate_uid())


def reference_item(series: DicomSeries, k: int) -> Dataset | None:
    """Reference to the stored slice in plane k; None if that plane was interpolated or has no (valid) UID."""
    stored = series.slices[k]
    if stored is None or not _valid(stored.sop_uid):
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
    for uid in dict.fromkeys(uid for uid in series.slice_uids if uid and _valid(uid)):
        item = Dataset()
        item.ReferencedSOPClassUID = UID(series.sop_class_uid)
        item.ReferencedSOPInstanceUID = UID(uid)
        items.append(item)
    return items


def lps(points_ras: FloatArray) -> FloatArray:
    """RAS+ millimetres ``[..., 3]`` to DICOM's LPS+, and back."""
    return points_ras * (-1.0, -1.0, 1.0)


def plane_positions(grid: Grid) -> FloatArray:
    """``[K, 3]``: centre of each plane's first voxel, LPS+ millimetres."""
    return lps(grid.world([(0, 0, k) for k in range(grid.shape[2])]))


def in_plane_directions(grid: Grid) -> tuple[float, ...]:
    """Image Orientation (Patient): unit vectors along a row (axis i) and down a column (axis j), LPS+."""
    columns = lps(grid.affine[:3, :2].T) / np.array(grid.spacing_mm[:2])[:, None]
    return tuple(float(c) for c in columns.ravel())


def slice_affine(
    orientation: Sequence[float], spacing: Sequence[float], position: Sequence[float]
) -> FloatArray:
    """``[4, 3]``: from (column, row, 1) of a slice to RAS+ millimetres, of Image Orientation and Position
    (Patient) and Pixel Spacing (which has the distance between rows first)."""
    affine = np.zeros((4, 3))
    directions = np.array(orientation, dtype=np.float64).reshape(2, 3)
    affine[:3, 0] = lps(directions[0] * float(spacing[1]))
    affine[:3, 1] = lps(directions[1] * float(spacing[0]))
    affine[:3, 2] = lps(np.array(position, dtype=np.float64))
    affine[3, 2] = 1
    return affine


def save(dataset: Dataset, path: Path) -> None:
    """Write an object as a DICOM file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_path(path) as partial:
        dataset.save_as(partial, enforce_file_format=True)


# --- reading --------------------------------------------------------------------------------------


def read_object(path: Path, kinds: Mapping[str, str]) -> Dataset:
    """A DICOM file of one of the SOP classes ``kinds`` (UID to name).

    Raises:
        ScanError: unreadable, too large, packed in a way that hides its size, or something else.
    """
    with reading(path, "DICOM"):
        if path.stat().st_size > MAX_OBJECT_BYTES:
            raise ScanError(f"{path}: larger than {MAX_OBJECT_BYTES} bytes; no SEG or RTSTRUCT is")
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:
            raise ScanError(f"{path}: is deflated as a whole; write it uncompressed (dcmconv +te)")
        with BoundedReader(io.FileIO(path), path.stat().st_size) as stream:
            found = pydicom.dcmread(stream)
        kind = str(found.get("SOPClassUID", ""))
        if kind not in kinds:
            what = short_text(UID(kind).name) or "of no kind"
            raise ScanError(f"{path}: is {what}; a {' or '.join(kinds.values())} is needed")
        return found


def require_frame(path: Path, frame_of_reference: str, series: DicomSeries) -> None:
    """Refuse what was drawn in another coordinate system. Where either does not say, geometry has to tell.

    Raises:
        ScanError: the frames of reference differ.
    """
    mine = _valid(series.frame_of_reference_uid)
    if mine and frame_of_reference and mine != frame_of_reference:
        raise ScanError(
            f"{path}: drawn in frame of reference {short_text(frame_of_reference)}, but series "
            f"'{series.description}' lies in {mine}; give the series that it was drawn on"
        )
