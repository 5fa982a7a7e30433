"""An original series of a scanner, in its own compression, is read as by another library."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from zoomseg.io.scans import find_scans, read_scan

DATA = os.environ.get("ZOOMSEG_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ZOOMSEG_DATA is not set: no real data on this machine")


@pytest.mark.parametrize("zipped", [False, True])
def test_the_series_is_read_as_simpleitk_reads_it(tmp_path: Path, zipped: bool) -> None:
    folder = tmp_path / "ct_dicom"
    folder.mkdir()
    for file in (Path(str(DATA)) / "ct_dicom").glob("*.dcm"):  # the folder also contains a NIfTI file
        shutil.copy(file, folder)
    scans = folder
    if zipped:
        scans = Path(shutil.make_archive(str(folder), "zip", folder))
    notes: list[str] = []
    (scan,) = find_scans(scans, notes.append)
    assert (scan.id, notes) == ("ct_dicom", [])
    case = read_scan(scan)
    lacking = "PatientID, StudyInstanceUID, SeriesInstanceUID"  # removed by anonymisation
    apart = "images of several {} could not be distinguished"
    meaning = "; ".join(apart.format(what) for what in ("patients", "studies", "series"))
    assert case.notes[0] == f"its headers lack {lacking}; {meaning}"
    assert "lacks a valid StudyInstanceUID and SeriesInstanceUID;" in case.notes[1]
    assert len(case.notes) == 2
    found = case.image
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    assert np.array_equal(found.data[0], sitk.GetArrayFromImage(image).T)
    assert found.data.dtype == np.int16
    for index in ((0, 0, 0), (511, 0, 0), (0, 511, 0), (0, 0, 19), (100, 200, 7)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        assert found.grid.world(index) == pytest.approx([-x, -y, z], abs=1e-6)
