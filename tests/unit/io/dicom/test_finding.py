"""Which volumes are found, what they are called, what is left out or refused, and why."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    MRImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)
from tests.dicoms import CORONAL, image, ramp, stack, write

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.archive import opening
from zoomseg.io.dicom.finding import Found, case_names, find_series, the_series


def series(folder: Path, number: int, study: str = "1.2.3", **tags: Any) -> Path:
    uid = f"1.2.3.{study}.{number}"
    return write(
        folder, stack(ramp(), SeriesNumber=number, SeriesInstanceUID=uid, StudyInstanceUID=study, **tags)
    )


def names(path: Path) -> tuple[str, ...]:
    return case_names(path, find_series(path))


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


def test_names(tmp_path: Path) -> None:
    series(tmp_path / "one", 3)
    assert names(tmp_path / "one") == ("one",)
    series(tmp_path / "study" / "b", 7)
    series(tmp_path / "study" / "a", 12)
    assert names(tmp_path / "study") == ("study_7", "study_12")
    series(tmp_path / "all" / "anna", 2, "1.7")
    series(tmp_path / "all" / "bert" / "x", 5, "1.8")
    series(tmp_path / "all" / "bert" / "y", 6, "1.8")
    assert names(tmp_path / "all") == ("anna", "bert_5", "bert_6")
    shutil.make_archive(str(tmp_path / "all" / "carl"), "zip", tmp_path / "one")
    assert names(tmp_path / "all") == ("carl", "anna", "bert_5", "bert_6")
    assert names(tmp_path / "all" / "carl.zip") == ("carl",)


def test_series_of_one_number_differ_in_name(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write(tmp_path / place, stack(ramp(), SeriesInstanceUID=f"1.{ord(place)}"))
    assert names(tmp_path) == (f"{tmp_path.name}_4_1", f"{tmp_path.name}_4_2")


def test_what_is_no_scan_is_left_out_by_name(tmp_path: Path) -> None:
    series(tmp_path, 3)
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
        f"{tmp_path}: series 9 'body': a single image, no volume; left out",
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


def test_one_volume_is_asked_for(tmp_path: Path) -> None:
    series(tmp_path, 3)
    series(tmp_path / "more", 4)
    with pytest.raises(ScanError, match="2 DICOM volumes; give a folder or zip of one of them"):
        the_series(tmp_path)


def test_sizes_and_orientations_are_volumes_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(ramp()))
    write(tmp_path / "b", stack(ramp(4) + 500, (0, 2, 0), ImageOrientationPatient=list(CORONAL)))
    write(tmp_path / "c", stack(ramp(3, 8, 8) + 900))
    found = find_series(tmp_path)
    assert sorted(s.series.grid.shape for s in found.stacks) == [(7, 6, 4), (7, 6, 5), (8, 8, 3)]
    assert "the series holds 3 sizes or orientations" in found.stacks[0].series.notes[0]


def test_phases_are_told_apart(tmp_path: Path) -> None:
    late = stack(ramp() + 1, AcquisitionNumber=2)
    write(tmp_path / "a", stack(ramp(), AcquisitionNumber=1))
    write(tmp_path / "b", late)
    found = find_series(tmp_path)
    assert [s.series.notes for s in found.stacks] == [
        (f"one of 2 volumes of its series: AcquisitionNumber {n}",) for n in (1, 2)
    ]
    assert found.stacks[1].series.slice_uids == tuple(d.SOPInstanceUID for d in late)


def test_echoes_of_magnitude_and_phase_are_four_volumes(tmp_path: Path) -> None:
    for number, (echo, kind) in enumerate([(2.3, "M"), (4.6, "M"), (2.3, "P"), (4.6, "P")]):
        tags: dict[str, Any] = {"EchoTime": echo, "ImageType": ["ORIGINAL", "PRIMARY", kind]}
        write(tmp_path / str(number), stack(ramp() + number, SOPClassUID=MRImageStorage, **tags))
    stacks = find_series(tmp_path).stacks
    assert len(stacks) == 4
    assert stacks[0].series.notes[0].startswith("one of 4 volumes of its series: EchoTime 2.3, ImageType ")


def test_phases_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(ramp()))
    write(tmp_path / "b", stack(ramp() + 1))
    (refused,) = find_series(tmp_path).refused
    assert "up to 2 of its 10 slices lie at one place" in refused.reason
    assert refused.reason.startswith(f"{tmp_path}: series 4 'body': ")
    with pytest.raises(ScanError, match="up to 2 of its 10"):
        refused.usable()


def test_copies_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(ramp()))
    write(tmp_path / "b", stack(ramp())[:2])
    found = the_series(tmp_path).series
    assert found.grid.shape == (7, 6, 5)
    assert found.notes == ("2 slices are there twice; the copies were left out",)


def test_one_uid_at_two_places_is_refused(tmp_path: Path) -> None:
    datasets = stack(ramp())
    datasets[1].SOPInstanceUID = datasets[0].SOPInstanceUID
    (refused,) = find_series(write(tmp_path, datasets)).refused
    assert "but lies elsewhere" in refused.reason


def _without(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def _with(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("PixelSpacing"), "PixelSpacing is None; 2 finite numbers are needed"),
        (_with("PixelSpacing", [0.5, 0]), "it must be positive"),
        (_with("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "not at a right angle"),
        (_with("ImageOrientationPatient", [2, 0, 0, 0, 1, 0]), "not two unit vectors"),
        (_with("ImagePositionPatient", [0, 0, 1e9]), "ImagePositionPatient is"),
        (_with("RescaleSlope", 0), "rescale slope 0 and intercept -1024 are impossible"),
        (_with("Rows", 60000), "truncated; header promises 840000 bytes of voxels, the file has 84"),
        (_with("Columns", 0), "Columns is 0; a number from 1 to 65535 is needed"),
        (_with("BitsStored", 20), "BitsStored is 20; a number from 1 to 16 is needed"),
        (_with("BitsAllocated", 12), "BitsAllocated is 12; 8, 16 and 32 are read"),
        (_with("PhotometricInterpretation", "PALETTE COLOR"), "PALETTE COLOR, not grey values"),
        (_without("PixelData"), "holds no pixel data"),
    ],
)
def test_impossible_headers_are_one_line(
    tmp_path: Path, change: Callable[[Dataset], None], says: str
) -> None:
    datasets = stack(ramp())
    change(datasets[2])
    (refused,) = find_series(write(tmp_path, datasets)).refused
    assert says in refused.reason
    assert "\n" not in refused.reason
    assert ".dcm: " in refused.reason


def test_truncated_files(tmp_path: Path) -> None:
    write(tmp_path, stack(ramp()))
    victim = sorted(tmp_path.iterdir())[0]
    content = victim.read_bytes()
    for length in range(132, len(content), 7):
        victim.write_bytes(content[:length])
        found: Found = find_series(tmp_path)
        # As long as its series is not known it can only be left out, with a note.
        reasons = [r.reason for r in found.refused] + list(found.notes)
        assert any(str(victim) in reason for reason in reasons), length


def test_a_file_deflated_as_a_whole_is_refused(tmp_path: Path) -> None:
    def deflate(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    with pytest.raises(ScanError, match="is deflated as a whole; convert it"):
        find_series(write(tmp_path, stack(ramp()), deflate))


def test_gaps_too_wide_and_slices_too_uneven_are_refused(tmp_path: Path) -> None:
    datasets = stack(ramp(20))
    (refused,) = find_series(write(tmp_path / "gap", datasets[:8] + datasets[15:])).refused
    assert "7 slices are missing (spacing 2 mm, widest gap 16 mm); export the series again" in refused.reason
    for dataset, z in zip(datasets, np.cumsum([1, 9] * 10), strict=True):
        dataset.ImagePositionPatient = [0, 0, float(z)]
    (refused,) = find_series(write(tmp_path / "uneven", datasets)).refused
    assert "slices are 1 to 9 mm apart; too uneven for one volume" in refused.reason


# --- zips -----------------------------------------------------------------------------------------


def test_names_in_a_zip_are_never_paths(tmp_path: Path) -> None:
    files = sorted(write(tmp_path / "files", stack(ramp())).iterdir())
    archive = tmp_path / "inner" / "evil.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        for number, file in enumerate(files):
            packed.write(file, f"../../escaped{number}.dcm" if number % 2 else f"/tmp/absolute{number}.dcm")
    before = set(tmp_path.rglob("*"))
    assert the_series(archive).series.grid.shape == (7, 6, 5)
    assert set(tmp_path.rglob("*")) == before


def test_zip_bombs_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(3):
            packed.writestr(f"{number}.dcm", bytes(100 * 1024**2))
    with pytest.raises(ScanError, match=r"bomb\.zip: inflates to \d+ times its size; scans do not"):
        find_series(bomb)
    monkeypatch.setattr("zoomseg.io.dicom.archive.MAX_TOTAL_BYTES", 10**8)
    with pytest.raises(ScanError, match="inflates to 314572800 bytes; at most 100000000 are read"):
        find_series(bomb)
    monkeypatch.setattr("zoomseg.io.dicom.archive.MAX_FILES", 2)
    with pytest.raises(ScanError, match="3 files in the zip; at most 2 are read"):
        find_series(bomb)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Many entries of one piece of compressed data (the construction of Fifield's bomb, at its simplest)."""
    packed_once = tmp_path / "once.zip"
    with zipfile.ZipFile(packed_once, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.dcm", np.random.default_rng(0).bytes(5000))
        again = packed.filelist[0]
        for number in range(5):
            copy = zipfile.ZipInfo(f"b{number}.dcm")
            for field in ("compress_size", "file_size", "CRC", "compress_type", "header_offset"):
                setattr(copy, field, getattr(again, field))
            packed.filelist.append(copy)
            packed._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ScanError, match="files in the zip overlap"):
        find_series(packed_once)


def test_damaged_encrypted_and_odd_zips(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ScanError, match="damaged, truncated or not a zip"):
        find_series(archive)
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.dcm", b"x")
        packed.filelist[0].flag_bits |= 1
    with pytest.raises(ScanError, match=r"'a\.dcm' is encrypted"):
        find_series(archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("a.dcm", b"x")
    with pytest.raises(ScanError, match="only deflate is read"), opening(archive):
        pass
