"""A series, and objects written for it, shared by tests of reading and writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.dicom_annotations import drawn_on, grid_of, series_on
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write.rtstruct import write_rtstruct
from zoomseg.io.dicom.write.seg import write_seg


@pytest.fixture
def series() -> DicomSeries:
    return series_on(grid_of("axial"))


@pytest.fixture
def written_seg(tmp_path: Path, series: DicomSeries) -> Path:
    path = tmp_path / "case.seg.dcm"
    assert write_seg(path, drawn_on(series.grid), series, "abdomen-ct", "3")
    return path


@pytest.fixture
def written_rtstruct(tmp_path: Path, series: DicomSeries) -> Path:
    path = tmp_path / "case.rtstruct.dcm"
    assert write_rtstruct(path, drawn_on(series.grid), series, "abdomen-ct", "3")
    return path
