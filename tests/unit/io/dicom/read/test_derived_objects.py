"""Attributes that objects repeat from their series, and the files that are read at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian

from helpers import dicom_series
from helpers.dicom_annotations import grid_of, series_on
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read import derived_objects
from zoomseg.io.dicom.series import DicomSeries

SERIES = series_on(grid_of("oblique"))
CT = {str(CTImageStorage): "CT"}


def without_uids(series: DicomSeries, **changes: Any) -> DicomSeries:
    nameless = tuple(s and dataclasses.replace(s, sop_uid="") for s in series.slices)
    lost = dict.fromkeys(("study_uid", "series_uid", "frame_of_reference_uid"), "")
    return dataclasses.replace(series, slices=nameless, **lost, **changes)


def saved(path: Path, dataset: Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def image() -> Dataset:
    return dicom_series.stack(dicom_series.ramp(1))[0]


def refused(path: Path, kinds: dict[str, str]) -> str:
    with pytest.raises(ScanError) as error:
        derived_objects.read_label_object(path, kinds)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_an_object_of_the_kind_asked_for_is_read(image: Dataset, tmp_path: Path) -> None:
    found = derived_objects.read_label_object(saved(tmp_path / "a.dcm", image), CT)
    assert (found.SOPInstanceUID, found.PixelData) == (image.SOPInstanceUID, image.PixelData)


def test_other_kinds_are_refused_by_name(image: Dataset, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.dcm", image)
    assert (
        refused(path, {"1.2": "SEG", "1.3": "RTSTRUCT"}) == "is CT Image Storage; a SEG or RTSTRUCT is needed"
    )
    data = path.read_bytes()
    at = data.rindex(str(CTImageStorage).encode())
    path.write_bytes(data[:at] + b"1\n3" + data[at + 3 :])
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        assert refused(path, CT) == "is 1 3.840.10008.5.1.4.1.1.2; a CT is needed"
    path.write_bytes(data[:at] + b"\0" * len(CTImageStorage) + data[at + len(CTImageStorage) :])
    assert refused(path, CT) == "is of no kind; a CT is needed"


def test_what_hides_its_size_or_is_too_large_is_refused_unread(
    image: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = saved(tmp_path / "deflated.dcm", image)
    monkeypatch.setattr(pydicom, "dcmread", lambda path: pytest.fail("read"))
    assert refused(deflated, CT).startswith("is deflated as a whole; convert it")
    monkeypatch.setattr(derived_objects, "MAX_OBJECT_BYTES", deflated.stat().st_size - 1)
    assert refused(deflated, CT).startswith(f"larger than {derived_objects.MAX_OBJECT_BYTES} bytes")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.dcm", CT) == "no such file"
    (tmp_path / "a.dcm").write_bytes(b"PK\3\4" * 100)
    for path in (tmp_path / "a.dcm", tmp_path):
        assert refused(path, CT).startswith("damaged, truncated or not DICOM (")


def test_what_was_drawn_in_another_frame_of_reference_is_refused() -> None:
    path = Path("x.dcm")
    with pytest.raises(ScanError) as error:
        derived_objects.require_frame(path, "1.2\n9", SERIES)
    assert str(error.value) == (
        "x.dcm: drawn in frame of reference 1.2 9, but series 'Abdomen' lies in 1.2.3.4.6; "
        "give the series that it annotates"
    )
    derived_objects.require_frame(path, "1.2.3.4.6", SERIES)
    derived_objects.require_frame(path, "", SERIES)
    derived_objects.require_frame(path, "1.2.9", without_uids(SERIES))
