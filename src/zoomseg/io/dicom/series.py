"""A DICOM series as a volume: a grid, and the data needed by objects that refer to it.

DICOM's patient coordinates are LPS+; grids are RAS+, as everywhere here. Series are found by
``io.dicom.read.series_discovery``, their voxels read by ``io.dicom.read.voxels``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from zoomseg.core.geometry import Grid, Vector3
from zoomseg.io.dicom.read.archive import Source


def plain(value: str) -> str:
    """A header's text in comparable form: names without regard to case and empty components (PS3.5 6.2.1)."""
    return value.casefold().rstrip("^= ")


@dataclass(frozen=True)
class Identity:
    """Patient and context of an object: the text of its own header, empty if missing."""

    KEYWORDS: ClassVar[tuple[str, ...]] = (
        *("PatientID", "PatientName", "PatientBirthDate"),
        *("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    )
    """Of the fields, in their order."""

    patient_id: str
    patient_name: str
    patient_birth_date: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """Keywords and comparable values."""
        return tuple((k, plain(value)) for k, value in zip(self.KEYWORDS, vars(self).values(), strict=True))

    def differing(self, other: Identity) -> tuple[str, ...]:
        """Keywords of the values that differ."""
        pairs = zip(self.compared, other.compared, strict=True)
        return tuple(mine[0] for mine, its in pairs if mine != its)


@dataclass(frozen=True)
class Slice:
    """One stored plane: a single-frame object, or one frame of an enhanced multi-frame one."""

    source: Source
    sop_uid: str
    frame: int | None
    """From 1, as in DICOM references; None for a single-frame object."""
    position_lps_mm: Vector3
    """Centre of the first voxel."""
    identity: Identity | None = field(default=None, kw_only=True)
    """From its own header, independent of the series to which it was assigned; None without a header."""


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One volume of a study: axis i runs along columns, j along rows, k along the normal of the slices (their
    cross product), as stored; nothing is flipped.

    UIDs and texts are empty if the files lack them (as badly anonymised files do).
    """

    grid: Grid
    slices: tuple[Slice | None, ...]
    """The stored slice in each plane of ``grid``, in order of k; None if the plane was interpolated. With a
    tilted gantry, a slice lies in its plane, but its voxels are not the grid's."""
    sop_class_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    number: int | None
    description: str
    patient: tuple[tuple[str, str], ...]
    """DICOM keyword and value of the attributes that identify patient and study, for objects that refer to
    this series."""
    notes: tuple[str, ...] = ()
    """What the user should know about how this became a volume; one line each."""
    between: tuple[Slice, ...] = ()
    """Stored slices in no plane of ``grid``, as they are unevenly spaced; planes were interpolated from
    them."""

    @property
    def identity(self) -> Identity:
        """The identity that all slices should have in their headers."""
        known = dict(self.patient)
        return Identity(
            known.get("PatientID", ""),
            known.get("PatientName", ""),
            known.get("PatientBirthDate", ""),
            self.study_uid,
            self.series_uid,
            self.frame_of_reference_uid,
        )

    @property
    def stored(self) -> tuple[Slice, ...]:
        """All slices from which this was read: those in planes of ``grid``, then the others."""
        return (*(s for s in self.slices if s is not None), *self.between)

    @property
    def slice_uids(self) -> tuple[str | None, ...]:
        """SOP instance UID of each plane, in order of k."""
        return tuple(None if s is None else s.sop_uid for s in self.slices)

    @property
    def image_uids(self) -> frozenset[str]:
        """SOP instance UIDs of the objects from which this was read."""
        return frozenset(s.sop_uid for s in self.stored) - {""}

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files from which this was read, each once."""
        return tuple(dict.fromkeys(s.source.path for s in self.stored))
