"""Secondary capture: a picture of the scan with its organs in three planes, for viewers of images alone.

Planes are those with the largest area of organs; the patient's right is on the picture's left.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.uid import ExplicitVRLittleEndian

from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.geometry import FloatArray, Orientation
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.dicom import uids
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write import derived_objects

Picture = npt.NDArray[np.uint8]

PANEL = 384
"""Pixels of the longer side of each plane."""
OPACITY = 0.4
"""Of organs' colours over the grey of the scan."""
CT_WINDOW = (-160.0, 240.0)
"""Hounsfield units from black to white."""
PERCENTILES = (1.0, 99.0)
"""From black to white where values have no unit."""


def write_capture(
    path: Path, labels: LabelMap, image: Volume, series: DicomSeries, model: str, seed: str = ""
) -> bool:
    """Write one picture: axial, coronal and sagittal plane side by side.

    Args:
        labels, image: on the series' own grid.
        model: that created the labels.
        seed: of the UIDs (see ``derived_objects.new_uid``).

    Returns:
        False if no organ was found: nothing is written.

    Raises:
        GeometryError: the labels are on another grid.
        OutputError: the file cannot be written.
    """
    if not derived_objects.found_classes(labels, series):
        return False
    told = derived_objects.series_of_result(series, model, 4000, datetime.now(), seed)
    dataset = hd.sc.SCImage(
        pixel_array=picture(labels, image, ct=series.modality == "CT"),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=uids.study_uid(series),
        series_instance_uid=told.SeriesInstanceUID,
        series_number=told.SeriesNumber,
        sop_instance_uid=derived_objects.new_uid(seed, "capture"),
        instance_number=1,
        manufacturer=derived_objects.MANUFACTURER,
        patient_orientation=("L", "F"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    dataset.update(told)
    dataset.ContentDate, dataset.ContentTime = told.SeriesDate, told.SeriesTime
    dataset.update(derived_objects.patient_and_study(series))
    dataset.PatientOrientation = []  # three planes have no common one
    dataset.Modality = "OT"
    dataset.ImageLaterality = "B"
    dataset.BurnedInAnnotation = "NO"
    dataset.SoftwareVersions = derived_objects.software_version()
    derived_objects.save(dataset, path)
    return True


def picture(labels: LabelMap, image: Volume, ct: bool) -> Picture:
    """``[row, column, RGB]``: the three planes side by side, at the patient's scale."""
    turn = Orientation.to_canonical(labels.grid)
    classes, volume = labels.reoriented(turn), image.reoriented(turn)
    values, spacing = volume.data[0], volume.grid.spacing_mm
    low, high = CT_WINDOW if ct else _range(values)
    colours = np.array([(0, 0, 0), *(organ_colour(name) for name in labels.schema.names)], dtype=np.float64)
    pixel_mm = max(n * mm for n, mm in zip(labels.grid.shape, labels.grid.spacing_mm, strict=True)) / PANEL
    panels = []
    for axis in (2, 1, 0):
        k = _fullest(classes.data, axis)
        grey = (np.take(values, k, axis).astype(np.float64) - low) / max(high - low, 1e-6)
        rest = [spacing[a] for a in range(3) if a != axis]
        shown = _coloured(grey.clip(0, 1), np.take(classes.data, k, axis), colours)
        panels.append(_scaled(_as_seen(shown), (rest[1], rest[0]), pixel_mm))
    height = max(panel.shape[0] for panel in panels)
    return np.ascontiguousarray(np.concatenate([_centred(panel, height) for panel in panels], axis=1))


def _range(values: npt.NDArray[np.number[Any]]) -> tuple[float, float]:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def _fullest(classes: npt.NDArray[np.uint8], axis: int) -> int:
    """The plane across an axis with the most voxels of organs."""
    planes = np.moveaxis(classes, axis, 0)
    return int(np.argmax([np.count_nonzero(plane) for plane in planes]))


def _coloured(grey: FloatArray, classes: npt.NDArray[np.uint8], colours: FloatArray) -> FloatArray:
    shade = np.repeat(255 * grey[..., None], 3, axis=-1)
    blended = (1 - OPACITY) * shade + OPACITY * colours[classes]
    return np.where((classes > 0)[..., None], blended, shade)


def _as_seen(plane: FloatArray) -> FloatArray:
    """A plane ``[a, b]`` of canonical axes in display orientation: rows run along b from its high end down,
    and columns along a from its high end: right is left, back and feet are down, the front is left."""
    return plane[::-1, ::-1].transpose(1, 0, 2)


def _scaled(plane: FloatArray, pixel_mm: tuple[float, float], wanted_mm: float) -> Picture:
    """Resample to square pixels by nearest neighbour."""
    indices = []
    for count, mm in zip(plane.shape[:2], pixel_mm, strict=True):
        wanted = max(1, round(count * mm / wanted_mm))
        indices.append(np.minimum((np.arange(wanted) + 0.5) * count / wanted, count - 1).astype(np.intp))
    scaled: Picture = plane[np.ix_(*indices)].round().astype(np.uint8)
    return scaled


def _centred(panel: Picture, height: int) -> Picture:
    above = (height - panel.shape[0]) // 2
    return np.pad(panel, ((above, height - panel.shape[0] - above), (0, 0), (0, 0)))
