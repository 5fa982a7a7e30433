"""What a DICOM series is once its slices are in place: a grid, and what objects that refer to it need.

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
    """A header's text to be compared: names without regard to case and empty components (PS3.5 6.2.1)."""
    return value.casefold().rstrip("^= ")


@dataclass(frozen=True)
class Identity:
    """Whose image an object is, and what it belongs to: its own header's text, empty where it has none."""

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
        """Keywords and what is compared of their values."""
        return tuple((k, plain(value)) for k, value in zip(self.KEYWORDS, vars(self).values(), strict=True))

    def differing(self, other: Identity) -> tuple[str, ...]:
        """Keywords of what differs."""
        pairs = zip(self.compared, other.compared, strict=True)
        return tuple(mine[0] for mine, its in pairs if mine != its)


@dataclass(frozen=True)
class Slice:
    """One plane as it is stored: a single-frame object, or one frame of an enhanced multi-frame one."""

    source: Source
    sop_uid: str
    frame: int | None
    """Counted from 1, as DICOM references do; None for a single-frame object."""
    position_lps_mm: Vector3
    """Centre of the first voxel."""
    identity: Identity | None = field(default=None, kw_only=True)
    """As its own header has it, whatever it was put together with; None where there is no header."""


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One volume of a study: axis i runs along columns, j along rows, k along the normal of the slices (their
    cross product), as they are stored; nothing is flipped.

    UIDs and texts are empty where the files lack them (badly anonymised files do).
    """

    grid: Grid
    slices: tuple[Slice | None, ...]
    """The stored slice that lies in each plane of ``grid``, in order of k; None where the plane was
    interpolated. Where the gantry was tilted, a slice lies in its plane, but its voxels are not the
    grid's."""
    sop_class_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    number: int | None
    description: str
    patient: tuple[tuple[str, str], ...]
    """DICOM keyword and value of what identifies patient and study, for objects that refer to this series."""
    notes: tuple[str, ...] = ()
    """What the user should know of how this became a volume; one line each."""

    @property
    def identity(self) -> Identity:
        """What all slices should have in their headers."""
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
    def slice_uids(self) -> tuple[str | None, ...]:
        """SOP instance UID of each plane, in order of k."""
        return tuple(None if s is None else s.sop_uid for s in self.slices)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that this was read from, each once."""
        return tuple(dict.fromkeys(s.source.path for s in self.slices if s is not None))
