"""DICOM series in memory, and organs annotated on them, for tests of SEG and RTSTRUCT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom.read.archive import Source
from zoomseg.io.dicom.series import DicomSeries, Slice

FloatArray = npt.NDArray[np.float64]

ORGANS = LabelSchema(("liver", "left kidney", "right_kidney", "spleen", "my lesion"), (1, 2, 3, 7, 9))

AXIAL = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
"""RAS directions of axes i and j as in scanners: to the patient's left, to the back."""
SAGITTAL = ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
CORONAL = ((-1.0, 0.0, 0.0), (0.0, 0.0, -1.0))


def oblique() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Axial, rotated about all three axes."""
    a, b, c = 0.4, -0.3, 0.7
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    turned = x @ y @ z @ np.array(AXIAL).T
    return tuple(turned[:, 0].tolist()), tuple(turned[:, 1].tolist())


ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": oblique()}


def grid_of(
    orientation: str, shape: tuple[int, int, int] = (16, 12, 9), spacing: tuple[float, ...] = (0.8, 1.1, 2.5)
) -> Grid:
    along = np.array(ORIENTATIONS[orientation])
    directions = np.column_stack([*along, np.cross(along[0], along[1])])
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = (31.25, -17.5, 103.0)
    return Grid(shape, affine)


def series_on(grid: Grid, enhanced: bool = False) -> DicomSeries:
    """A series of one object per plane, or of one object with a frame per plane."""
    slices = []
    for k in range(grid.shape[2]):
        x, y, z = (grid.world((0, 0, k)) * (-1, -1, 1)).tolist()
        uid = "1.2.3.4.1" if enhanced else f"1.2.3.4.1.{k + 1}"
        slices.append(Slice(Source(Path("/nowhere")), uid, k + 1 if enhanced else None, (x, y, z)))
    return DicomSeries(
        grid=grid,
        slices=tuple(slices),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2.1" if enhanced else str(CTImageStorage),
        study_uid="1.2.3.4",
        series_uid="1.2.3.4.5",
        frame_of_reference_uid="1.2.3.4.6",
        modality="CT",
        number=4,
        description="Abdomen",
        patient=(("PatientName", "Doe^Jane"), ("PatientID", "P1"), ("StudyDate", "20260102")),
    )


def interpolated(series: DicomSeries, k: int) -> DicomSeries:
    """The series without the stored slice of plane k."""
    return dataclasses.replace(series, slices=(*series.slices[:k], None, *series.slices[k + 1 :]))


def drawn_on(grid: Grid) -> LabelMap:
    """Organs of various shapes: with a hole, in pieces, at the border, of one voxel; no spleen."""
    rng = np.random.default_rng(3)
    classes = np.zeros(grid.shape, dtype=np.uint8)
    classes[1:9, 1:9, 1:6] = 1
    classes[3:6, 3:6, 2:5] = 0
    classes[4, 4, 3] = 2
    classes[10:, :, 3:][rng.random(classes[10:, :, 3:].shape) < 0.4] = 3
    classes[0, -1, -1] = 5
    return LabelMap(classes, grid, ORGANS)


def spoiled(path: Path, change: Callable[[Dataset], None]) -> Path:
    """A changed copy of a DICOM file, beside it."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    out = path.with_name("spoiled.dcm")
    dataset.save_as(out)
    return out
