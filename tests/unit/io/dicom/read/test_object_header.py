"""Impossible or truncated headers: one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, MRImageStorage, RLELossless

from helpers.dicom_series import AXIAL, Array, image, item, multi_frame, ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.series_discovery import Found, find_series, holds_dicom, the_series
from zoomseg.io.dicom.read.voxels import read_volume


def _values(folder: Path) -> Array:
    """``[k, row, column]``."""
    return read_volume(the_series(folder)).data[0].transpose(2, 1, 0)


def _without(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def _with(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def _no_rescale(dataset: Dataset) -> None:
    del dataset.RescaleSlope, dataset.RescaleIntercept


def _float_pixels(dataset: Dataset) -> None:
    del dataset.PixelData
    dataset.FloatPixelData = bytes(4 * 42)


def _in_syntax(uid: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = UID(uid)
        dataset.PixelData = encapsulate([dataset.PixelData])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    return change


LUT = item(LUTDescriptor=[2, 0, 16], ModalityLUTType="HU", LUTData=bytes(4))


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
        (_without("RescaleSlope"), "RescaleSlope is missing; what its values mean is not known"),
        (_without("RescaleIntercept"), "RescaleIntercept is missing"),
        (_no_rescale, "CT without RescaleSlope and RescaleIntercept, so that its values are not known to be"),
        (_with("RescaleType", "MGML"), "RescaleType is MGML; Hounsfield units are needed"),
        (_with("ModalityLUTSequence", [LUT]), "its values need a Modality LUT, which is not read"),
        (_with("Modality", "MR"), "Modality is MR, but it is CT Image Storage; one of them is wrong"),
        (_with("NumberOfFrames", 2), "2 frames in an object of a single-frame class, of which one place is"),
        (_with("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "is a mosaic, all slices of one time"),
        (_without("ImagePositionPatient"), "is an image without a place in the patient, but belongs to"),
        (_without("ImageOrientationPatient"), "is an image without a place in the patient, but belongs to"),
        (_float_pixels, "holds floating point pixel data; only whole numbers are read"),
        (_in_syntax("1.2.840.10008.1.2.4.94"), "its transfer syntax JPIP Referenced is not read; convert"),
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
        # As long as its series is not known, it can only be ignored, with a note.
        reasons = [r.reason for r in found.refused] + list(found.notes)
        assert any(str(victim) in reason for reason in reasons), length


def test_a_file_deflated_as_a_whole_is_refused(tmp_path: Path) -> None:
    def deflate(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    with pytest.raises(ScanError, match="is deflated as a whole; convert it"):
        find_series(write(tmp_path, stack(ramp()), deflate))


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["HU", "hu", None])
def test_hounsfield_units_need_no_word(tmp_path: Path, unit: str | None) -> None:
    assert the_series(write(tmp_path, stack(ramp(), RescaleType=unit))).series.notes == ()


@pytest.mark.parametrize("unit", ["US", "HU_MOD", "counts"])
def test_other_units_are_said(tmp_path: Path, unit: str) -> None:
    series = the_series(write(tmp_path, stack(ramp(), RescaleType=unit))).series
    assert series.notes == (f"RescaleType is {unit.upper()}, not HU; taken as Hounsfield units",)


def test_mr_needs_no_rescale_but_all_slices_alike(tmp_path: Path) -> None:
    tags = {"SOPClassUID": MRImageStorage, "RescaleSlope": None, "RescaleIntercept": None}
    datasets = stack(ramp(), **tags)
    assert (_values(write(tmp_path, datasets)) == ramp()).all()
    datasets[1].RescaleSlope, datasets[1].RescaleIntercept = 2, 0
    (refused,) = find_series(write(tmp_path, datasets)).refused
    assert "some of its slices have a RescaleSlope and some have none" in refused.reason


# --- identity -------------------------------------------------------------------------------------

MEANING = {
    "PatientID": "images of several patients could not be distinguished",
    "StudyInstanceUID": "images of several studies could not be distinguished",
    "SeriesInstanceUID": "images of several series could not be distinguished",
    "FrameOfReferenceUID": "whether the patient was moved between its images is not known",
    "Modality": "it was derived from the SOP class",
}


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("keyword", MEANING)
def test_what_identity_lacks_is_said(tmp_path: Path, keyword: str, value: str | None) -> None:
    series = the_series(write(tmp_path, stack(ramp(), **{keyword: value}))).series
    assert series.notes[0] == f"its headers lack {keyword}; {MEANING[keyword]}"
    assert len(series.notes) == 1 + keyword.endswith("UID")  # objects derived from it lack it, too


def test_the_uid_may_be_in_the_header_of_the_file(tmp_path: Path) -> None:
    datasets = stack(ramp())
    uids = tuple(d.SOPInstanceUID for d in datasets)

    def move(dataset: Dataset) -> None:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        del dataset.SOPInstanceUID

    folder = tmp_path / "files"
    folder.mkdir()
    for number, dataset in enumerate(datasets):
        move(dataset)
        dataset.save_as(folder / f"{number}.dcm", implicit_vr=False, little_endian=True)
    series = the_series(folder).series
    assert (series.slice_uids, series.notes) == (uids, ())


def test_what_results_repeat_of_the_patient_is_read(tmp_path: Path) -> None:
    tags = {
        "IssuerOfPatientID": "hospital",
        "PatientAge": "044Y",
        "PatientSize": "1.71",
        "PatientWeight": "66",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "by hand",
        "ReferringPhysicianName": "Roe^Richard",
        "AccessionNumber": "a1",
    }
    patient = dict(the_series(write(tmp_path, stack(ramp(), **tags))).series.patient)
    assert patient == {"PatientID": "p1", "PatientName": "Doe^Jane", **tags}


# --- frames ---------------------------------------------------------------------------------------


def test_frames_of_a_single_frame_class_are_read_where_each_has_a_place(tmp_path: Path) -> None:
    frames = [{"PlanePositionSequence": item(ImagePositionPatient=[0.0, 0.0, 3.0 * k])} for k in range(5)]
    shared = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=list(AXIAL)),
        "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.75]),
    }
    dataset = multi_frame(ramp(), frames, shared)
    dataset.SOPClassUID, dataset.RescaleSlope, dataset.RescaleIntercept = MRImageStorage, 2, 1
    folder = write(tmp_path, [dataset])
    assert (_values(folder) == 2 * ramp().astype(int) + 1).all()
    assert the_series(folder).series.grid.world((0, 0, 4)).tolist() == [0, 0, 12]


@pytest.mark.parametrize("tags", [{"NumberOfFrames": 5}, {"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]}])
def test_one_object_that_would_be_a_scan_is_refused_not_left_out(
    tmp_path: Path, tags: dict[str, Any]
) -> None:
    write(tmp_path, [image(ramp(), (0, 0, 0), SOPClassUID=MRImageStorage, **tags)])
    found = find_series(tmp_path)
    assert (found.stacks, found.notes, len(found.refused)) == ((), (), 1)


def test_pictures_without_a_place_do_not_stop_their_series(tmp_path: Path) -> None:
    picture = image(ramp()[0] + 9, (0, 0, 0), ImagePositionPatient=None, ImageType=["DERIVED", "SECONDARY"])
    found = find_series(write(tmp_path, [*stack(ramp()), picture]))
    assert [s.series.grid.shape for s in found.stacks] == [(7, 6, 5)]
    assert found.notes == (f"{tmp_path}: image without a place in the patient left out",)


# --- files without a preamble ---------------------------------------------------------------------


def _cut(folder: Path, start: int) -> None:
    for file in sorted(folder.iterdir())[1:3]:
        file.write_bytes(file.read_bytes()[start:])


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(ramp()))
    _cut(folder, 132)
    assert (_values(folder) == ramp().astype(int) - 1024).all()
    assert the_series(folder).series.notes == ()


@pytest.mark.parametrize("big", [False, True])
def test_files_without_any_header_of_their_own_are_read(tmp_path: Path, big: bool) -> None:
    def change(dataset: Dataset) -> None:
        if big:
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            dataset.PixelData = np.frombuffer(dataset.PixelData, np.int16).byteswap().tobytes()

    folder = write(tmp_path, stack(ramp()), change)
    content = sorted(folder.iterdir())[0].read_bytes()
    _cut(folder, content.index(b"\x00\x08\x00\x08" if big else b"\x08\x00\x08\x00"))
    assert (_values(folder) == ramp().astype(int) - 1024).all()


def test_compressed_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(ramp(3, 32, 36)), lambda d: d.compress(RLELossless))
    _cut(folder, 132)
    assert (_values(folder) == ramp(3, 32, 36).astype(int) - 1024).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02\x00\x00\x00UL\x04\x00",
        b"\x02\x00" + bytes(300),
        b"\x02\x00\x00\x01UL" + bytes(300),
        b"\x08\x00" + bytes(300),
        b"\x08\x00\x05\x00" + b"\xff" * 300,
        b"\x00\x08\x00\x05AB" + b"\xff" * 300,
        b"\x00\x08\x00\x05" + bytes(300),
    ],
)
def test_files_that_begin_alike_are_no_dicom(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, stack(ramp()))
    (tmp_path / "other").write_bytes(content)
    assert not holds_dicom(tmp_path / "other")
    found = find_series(tmp_path)
    assert (len(found.stacks), found.notes, found.refused) == (1, (), ())


def test_a_file_that_ends_in_its_own_header_is_damaged(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(ramp()))
    victim = sorted(folder.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[132:290])
    (note,) = find_series(folder).notes
    assert note.startswith(f"{victim}: ")


def test_a_file_with_the_magic_word_alone_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(ramp()))
    _cut(folder, 128)
    first, second = find_series(folder).notes
    assert "DICOM without its preamble; put 128 zero bytes before it; left out" in first
    assert str(sorted(folder.iterdir())[2]) in second


def test_no_preamble_hides_no_deflated_file(tmp_path: Path) -> None:
    def deflate(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    folder = write(tmp_path, stack(ramp()), deflate)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[132:])
    with pytest.raises(ScanError, match="is deflated as a whole; convert it"):
        find_series(folder)


def test_a_syntax_newer_than_the_library_is_named(tmp_path: Path) -> None:
    """Deflated Image Frame Compression: its voxels are not read as uncompressed ones."""
    folder = write(tmp_path, stack(ramp(5, 60, 70)), _in_syntax("1.2.840.10008.1.2.4.94"))
    for file in folder.iterdir():
        known, newer = b"1.2.840.10008.1.2.4.94", b"1.2.840.10008.1.2.8.1\x00"
        file.write_bytes(file.read_bytes().replace(known, newer))
    (refused,) = find_series(folder).refused
    name = UID("1.2.840.10008.1.2.8.1").name  # pynetdicom adds it when it is imported
    assert f"its transfer syntax {name} is not read; convert it" in refused.reason


def test_an_object_in_an_unknown_syntax_is_not_called_damaged(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(ramp()))
    victim = sorted(folder.iterdir())[0]
    content = victim.read_bytes()
    known = b"1.2.840.10008.1.2.1\x00"
    start = content.index(known) + len(known)
    victim.write_bytes(content[:start].replace(known, b"1.2.840.99999.1.2.1\x00") + b"\xff" * 200)
    (note,) = find_series(folder).notes
    assert "its transfer syntax 1.2.840.99999.1.2.1 is not read; convert it" in note
