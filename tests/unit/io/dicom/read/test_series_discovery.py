"""The volumes found, their names, and ignored or refused series with reasons."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import (
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

from helpers.dicom_series import image, numbered_series, ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.series_discovery import find_series, the_series


def test_what_a_series_says_of_itself(tmp_path: Path) -> None:
    datasets = stack(ramp())
    found = the_series(write(tmp_path, datasets)).series
    assert found.slice_uids == tuple(d.SOPInstanceUID for d in datasets)
    assert (found.study_uid, found.series_uid, found.frame_of_reference_uid) == (
        "1.2.3",
        "1.2.3.4",
        "1.2.3.5",
    )
    assert (found.modality, found.number, found.description) == ("CT", 4, "body")
    assert dict(found.patient) == {"PatientID": "p1", "PatientName": "Doe^Jane"}
    assert [s.position_lps_mm for s in found.slices if s is not None] == [
        (-10, -20, z) for z in range(30, 40, 2)
    ]
    assert set(found.paths) == set(tmp_path.iterdir())
    assert found.notes == ()


def test_what_is_no_scan_is_left_out_by_name(tmp_path: Path) -> None:
    numbered_series(tmp_path, 3)
    own = {"SeriesInstanceUID": "1.9"}
    for number in (1, 2):
        scout = image(ramp()[number], (0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **own)
        write(tmp_path / f"scout{number}", [scout])
    write(
        tmp_path / "capture", [image(ramp()[0], (1, 0, 0), SOPClassUID=SecondaryCaptureImageStorage, **own)]
    )
    write(tmp_path / "contours", [image(ramp()[0], (2, 0, 0), SOPClassUID=RTStructureSetStorage, **own)])
    write(tmp_path / "lone", [image(ramp()[0], (3, 0, 0), SeriesInstanceUID="1.8", SeriesNumber=9)])
    (tmp_path / "readme.txt").write_text("words" * 100)
    (tmp_path / ".hidden").write_bytes(b"x" * 200)
    found = find_series(tmp_path)
    assert len(found.stacks) == 1
    assert found.notes == (
        f"{tmp_path}: RT Structure Set left out",
        f"{tmp_path}: Secondary Capture Image left out",
        f"{tmp_path}: 2 objects of the kind 'localizer' left out",
        f"{tmp_path}: series 9 'body': a single image, not a volume; left out",
    )


def test_nothing_and_no_volume(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words" * 100)
    empty = find_series(tmp_path)
    assert (empty.stacks, empty.refused, empty.notes) == ((), (), ())
    with pytest.raises(ScanError, match="no such file or folder"):
        find_series(tmp_path / "none")
    write(tmp_path, [image(ramp()[0], (0, 0, 0))])
    with pytest.raises(ScanError, match=r"DICOM files, but no volume among them \(series 4 'body': a single"):
        find_series(tmp_path)
    with pytest.raises(ScanError, match=r"no volume among them \(series 4: a single"):
        find_series(tmp_path, described=False)


@pytest.mark.parametrize("edge", [300.0, 1e-7])
def test_an_implausible_grid_is_refused_as_in_other_formats(tmp_path: Path, edge: float) -> None:
    (refused,) = find_series(write(tmp_path, stack(ramp(), PixelSpacing=[edge, edge]))).refused
    said = f"series 4 'body': voxels of {edge:g} x {edge:g} x 2 mm; 1e-05 to 100 mm are read; are the unit"
    assert refused.reason.startswith(f"{tmp_path}: {said}")


def test_one_volume_is_asked_for(tmp_path: Path) -> None:
    numbered_series(tmp_path, 3)
    numbered_series(tmp_path / "more", 4)
    with pytest.raises(ScanError, match="2 DICOM volumes; give a folder or zip of one of them"):
        the_series(tmp_path)


def test_copies_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(ramp()))
    write(tmp_path / "b", stack(ramp())[:2])
    found = the_series(tmp_path).series
    assert found.grid.shape == (7, 6, 5)
    assert found.notes == ("2 slices are duplicated; the copies were left out",)


def test_what_is_called_dicom_and_is_none_is_told_of(tmp_path: Path) -> None:
    """Otherwise, the slice would be missing without a visible reason."""
    folder = write(tmp_path / "ct", stack(ramp(9)))
    file = sorted(folder.iterdir())[4].rename(folder / "4.DCM")
    file.write_bytes(b"hello")
    found = find_series(folder)
    assert found.notes == (f"{folder}: {file} is not DICOM despite the name; left out",)
    assert found.stacks[0].series.grid.shape == (7, 6, 9)
    (tmp_path / "none").mkdir()
    file.rename(tmp_path / "none" / "4.dcm")
    assert find_series(tmp_path / "none").notes == ()
