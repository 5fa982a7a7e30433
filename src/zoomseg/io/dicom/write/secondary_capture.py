"""Secondary capture: a picture of a result as a DICOM object, for viewers of images alone."""

# mypy: allow-untyped-calls

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.uid import ExplicitVRLittleEndian

from zoomseg.io.dicom import uids
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write import derived_objects


def write_capture(
    path: Path, picture: npt.NDArray[np.uint8], series: DicomSeries, model: str, seed: str = ""
) -> None:
    """Write a picture of several planes.

    Args:
        picture: ``[row, column, RGB]``.
        model: that created the labels.
        seed: of the UIDs (see ``derived_objects.new_uid``).

    Raises:
        OutputError: the file cannot be written.
    """
    attributes = derived_objects.series_of_result(series, model, 4000, datetime.now(), seed)
    dataset = hd.sc.SCImage(
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=uids.study_uid(series),
        series_instance_uid=attributes.SeriesInstanceUID,
        series_number=attributes.SeriesNumber,
        sop_instance_uid=derived_objects.new_uid(seed, "capture"),
        instance_number=1,
        manufacturer=derived_objects.MANUFACTURER,
        patient_orientation=("L", "F"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    dataset.update(attributes)
    dataset.ContentDate, dataset.ContentTime = attributes.SeriesDate, attributes.SeriesTime
    dataset.update(derived_objects.patient_and_study(series))
    dataset.PatientOrientation = []  # several planes have no common one
    dataset.Modality = "OT"
    dataset.ImageLaterality = "B"
    dataset.BurnedInAnnotation = "NO"
    dataset.SoftwareVersions = derived_objects.software_version()
    derived_objects.save(dataset, path)
