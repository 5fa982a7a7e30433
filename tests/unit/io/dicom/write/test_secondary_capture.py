"""A picture as a DICOM object; ``organ_pictures`` draws it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from helpers import dciodvfy
from helpers.dicom_annotations import ORIENTATIONS, grid_of, series_on
from zoomseg.io.dicom.write.secondary_capture import write_capture


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_it_belongs_to_the_study_and_is_valid(name: str, tmp_path: Path) -> None:
    series, path = series_on(grid_of(name)), tmp_path / "capture.dcm"
    picture = np.random.default_rng(0).integers(0, 256, (30, 70, 3), dtype=np.uint8)
    write_capture(path, picture, series, "abdomen-ct", "seed")
    dataset = pydicom.dcmread(path)
    assert np.array_equal(dataset.pixel_array, picture)
    assert dataset.StudyInstanceUID == series.study_uid
    assert dataset.PatientName == dict(series.patient)["PatientName"]
    assert dataset.BurnedInAnnotation == "NO"
    first = dataset.SOPInstanceUID
    write_capture(path, picture, series, "abdomen-ct", "seed")
    assert pydicom.dcmread(path).SOPInstanceUID == first
    if dciodvfy.VERIFIER is not None:
        assert dciodvfy.found_by(path) == []
