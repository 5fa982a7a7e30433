"""Which files are cases, and which are channels of one case."""

import os
from pathlib import Path

import pytest

from helpers import dicom_series
from helpers.scan_files import noise, save
from zoomseg.core.errors import ScanError
from zoomseg.io.scans import (
    ScanInput,
    find_scans,
    reading_bytes,
    scan_name,
    the_scan,
)


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_scan_name() -> None:
    assert scan_name(Path("x/a.b.nii.gz")) == "a.b"
    assert scan_name(Path("A.NII.GZ")) == "A"
    assert scan_name(Path("a.mha")) == "a"


def test_channel_files_become_one_case(tmp_path: Path) -> None:
    touch(tmp_path, "b_0000.nii.gz", "b_0001.nii.gz", "a_0000.nrrd", "scan_2021.nii.gz", "c.mha")
    touch(tmp_path, ".c.mha.partial-1.mha", "notes.txt")
    found = {scan.id: [p.name for p in scan.paths] for scan in find_scans(tmp_path)}
    assert found == {
        "a": ["a_0000.nrrd"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
        "c": ["c.mha"],
        "scan_2021": ["scan_2021.nii.gz"],
    }


def test_files_read_as_channels_are_told_of(tmp_path: Path) -> None:
    touch(tmp_path / "one", "img_0000.nii.gz", "img_0001.nii.gz", "img_0002.nii.gz")
    told: list[str] = []
    find_scans(tmp_path / "one", told.append)
    assert told == [
        f"{tmp_path / 'one'}: img_0000.nii.gz to img_0002.nii.gz were read as 3 channels of one scan, 'img'; "
        "if each is a scan of its own, give the files, not their folder, or rename them"
    ]
    touch(tmp_path / "two", "a_0000.mha", "a_0001.mha", "b_0000.mha", "b_0001.mha", "c.mha")
    find_scans(tmp_path / "two", told.append)
    assert "read as 2 channels of one scan, 'a', and so on for 1 more; if" in told[1]
    touch(tmp_path / "none", "a_0000.mha", "b_0000.mha", "c_0007.mha", "c_0008.mha")
    assert [scan.id for scan in find_scans(tmp_path / "none", told.append)] == ["a", "b", "c_0007", "c_0008"]
    assert len(told) == 2


def test_files_that_are_known_to_be_cases_are_no_channels(tmp_path: Path) -> None:
    touch(tmp_path, "img_0000.mha", "img_0001.mha", "b_0000.mha", "b_0001.mha")
    found = find_scans(tmp_path, apart={"img_0000", "img_0001"})
    assert [(scan.id, len(scan.paths)) for scan in found] == [("b", 2), ("img_0000", 1), ("img_0001", 1)]


def test_links_to_nowhere_are_scans_and_named_when_they_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("/nowhere/b.nii.gz")
    (tmp_path / "c.nrrd").symlink_to("c.nrrd")
    (tmp_path / "d.mha").mkdir()
    found = find_scans(tmp_path)
    assert [scan.id for scan in found] == ["a", "b", "c"]
    with pytest.raises(ScanError, match=r"b\.nii\.gz: no such file \(a link to /nowhere/b\.nii\.gz\)"):
        reading_bytes(found[1])
    with pytest.raises(ScanError, match=r"c\.nrrd: cannot be read \(Too many levels of symbolic links\)"):
        reading_bytes(found[2])
    with pytest.raises(ScanError, match=r"b\.nii\.gz: no such file or folder \(a link to /nowhere"):
        find_scans(tmp_path / "b.nii.gz")


def test_a_pipe_is_no_scan(tmp_path: Path) -> None:
    """Reading it would block forever."""
    os.mkfifo(tmp_path / "a.nii.gz")
    with pytest.raises(ScanError, match="no scans in this folder"):
        find_scans(tmp_path)


def test_a_path_too_long_is_one_short_line(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"cannot be read \(File name too long\)") as error:
        find_scans(tmp_path / ("x" * 5000 + ".nii.gz"))
    assert len(str(error.value)) < 200


def test_single_file(tmp_path: Path) -> None:
    touch(tmp_path, "x_0000.nii.gz", "x_0001.nii.gz")
    assert [(s.id, s.paths) for s in find_scans(tmp_path / "x_0000.nii.gz")] == [
        ("x", (tmp_path / "x_0000.nii.gz",))
    ]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no such file or folder"):
        find_scans(tmp_path / "none")
    with pytest.raises(ScanError, match="no scans in this folder"):
        find_scans(tmp_path)
    touch(tmp_path / "gap", "a_0000.nii.gz", "a_0002.nii.gz")
    with pytest.raises(ScanError, match="case a has no file for channel 0001"):
        find_scans(tmp_path / "gap")
    touch(tmp_path / "twice", "a.nii.gz", "a.nrrd")
    with pytest.raises(ScanError, match=r"a\.nii\.gz and a\.nrrd are both case 'a'"):
        find_scans(tmp_path / "twice")
    touch(tmp_path / "twice_channel", "a_0000.nii.gz", "a_0000.nrrd")
    with pytest.raises(ScanError, match=r"a_0000\.nii\.gz and a_0000\.nrrd are the same channel"):
        find_scans(tmp_path / "twice_channel")
    touch(tmp_path, "photo.jpg")
    with pytest.raises(ScanError, match="not a supported scan file"):
        find_scans(tmp_path / "photo.jpg")


def test_one_scan_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", noise())
    assert the_scan(tmp_path).id == the_scan(tmp_path / "a.nii.gz").id == "a"
    save(tmp_path / "b.nii.gz", noise())
    with pytest.raises(ScanError, match="holds 2 scans, among them a; give one"):
        the_scan(tmp_path)


def test_a_folder_with_nifti_is_not_searched_for_dicom(tmp_path: Path) -> None:
    dicom_series.write(tmp_path, dicom_series.stack(dicom_series.ramp()))
    touch(tmp_path, "a.nii.gz")
    notes: list[str] = []
    assert find_scans(tmp_path, notes.append) == [ScanInput("a", (tmp_path / "a.nii.gz",))]
    assert notes == [
        f"{tmp_path}: only a.nii.gz and the like are read, the DICOM objects or zips beside them are not; "
        "give those in a folder of their own"
    ]


def test_only_dicom_beside_nifti_is_told_of(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "readme.txt").write_text("words" * 100)
    notes: list[str] = []
    find_scans(tmp_path, notes.append)
    assert notes == []
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "export.zip").write_bytes(b"PK")
    find_scans(tmp_path, notes.append)
    assert len(notes) == 1
