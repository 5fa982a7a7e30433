"""Written objects are read by SimpleITK and highdicom; objects to be read were written by highdicom, or by
hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from helpers.dicom_annotations import ORGANS, ORIENTATIONS, drawn_on, grid_of, series_on, spoiled
from helpers.dicom_series import image
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Grid
from zoomseg.io.dicom.read import decoding, seg
from zoomseg.io.dicom.read import structures as structures_module
from zoomseg.io.dicom.read.seg import read_seg
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write.seg import write_seg


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_was_written_comes_back(orientation: str, tmp_path: Path) -> None:
    series = series_on(grid_of(orientation, shape=(13, 11, 9)))
    labels, path = drawn_on(series.grid), tmp_path / "case.seg.dcm"
    write_seg(path, labels, series, "abdomen-ct")
    structures = read_seg(path, series)
    assert structures.names == ("liver", "left kidney", "right_kidney", "my lesion")
    found, drawn = structures.label_map(ORGANS)
    assert (found.data == labels.data).all()
    assert found.grid == series.grid
    assert drawn == {"liver", "left kidney", "right_kidney", "my lesion"}


def by_highdicom(
    grid: Grid, kind: str, array: npt.NDArray[np.generic], **more: object
) -> hd.seg.Segmentation:
    """A SEG of two segments on the voxels of ``grid``, which may be the series' in another order."""
    described = [
        hd.seg.SegmentDescription(
            n, label, codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for n, label in ((1, "Liver"), (2, "KidneyLeft"))
    ]
    images = []
    for k in range(grid.shape[2]):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.4.1.{k + 1}"
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
        image.FrameOfReferenceUID, image.Modality = "1.2.3.4.6", "CT"
        image.PatientID = image.PatientName = image.PatientBirthDate = image.PatientSex = ""
        image.StudyDate = image.StudyTime = image.AccessionNumber = image.StudyID = ""
        image.ReferringPhysicianName = ""
        image.Columns, image.Rows = grid.shape[:2]
        columns = grid.affine[:3, :2].T * (-1, -1, 1)
        image.ImageOrientationPatient = [*columns[0] / grid.spacing_mm[0], *columns[1] / grid.spacing_mm[1]]
        image.ImagePositionPatient = list(grid.world((0, 0, k)) * (-1, -1, 1))
        image.PixelSpacing, image.SliceThickness = [*grid.spacing_mm[1::-1]], grid.spacing_mm[2]
        images.append(image)
    return hd.seg.Segmentation(
        images, array, kind, described, "1.2.9.1", 1, "1.2.9.2", 1, "M", "M", "1", "1", **more
    )


def turned(grid: Grid) -> tuple[Grid, Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]]:
    """The same voxels in sagittal slices, if the series is axial; with a function that reorders arrays in the
    same way."""
    matrix = np.array(
        [[0, 0, -1, grid.shape[0] - 1], [1, 0, 0, 0], [0, -1, 0, grid.shape[2] - 1], [0, 0, 0, 1]]
    )
    other = Grid((grid.shape[1], grid.shape[2], grid.shape[0]), grid.affine @ matrix)
    return other, lambda array: array[::-1, :, ::-1].transpose(1, 2, 0)


KINDS = {
    "binary": ("BINARY", {}),
    "fractional": ("FRACTIONAL", {"max_fractional_value": 200}),
    "compressed": ("FRACTIONAL", {"transfer_syntax_uid": RLELossless}),
    "label map": ("LABELMAP", {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other_way", [False, True])
def test_what_others_wrote_is_read(kind: str, other_way: bool, tmp_path: Path, series: DicomSeries) -> None:
    labels = drawn_on(series.grid).data
    labels = np.where(labels <= 2, labels, 0).astype(np.uint8)
    grid, turn = turned(series.grid) if other_way else (series.grid, lambda array: array)
    name, more = KINDS[kind]
    frames = np.ascontiguousarray(turn(labels).transpose(2, 1, 0))
    by_highdicom(grid, name, frames, **more).save_as(tmp_path / "other.dcm")
    found, drawn = read_seg(tmp_path / "other.dcm", series).label_map(ORGANS)
    assert (found.data == labels).all()
    assert drawn == {"liver", "left kidney"}


def test_half_a_voxel_and_more_of_a_fractional_segment_is_the_organ(
    tmp_path: Path, series: DicomSeries
) -> None:
    share = np.random.default_rng(0).random((*series.grid.shape[::-1], 2)) / 2  # the two add up to 1 at most
    share *= 0.9
    share[..., 0] += 0.2
    by_highdicom(series.grid, "FRACTIONAL", share, max_fractional_value=100).save_as(tmp_path / "other.dcm")
    found = read_seg(tmp_path / "other.dcm", series)
    assert found.notes == ("segment 'KidneyLeft' is empty",)
    mask = np.zeros(series.grid.shape, dtype=bool)
    mask.reshape(-1)[found.voxels["Liver"]] = True
    assert (mask == (np.around(share[..., 0] * 100) >= 50).transpose(2, 1, 0)).all()


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_compressed_frames_are_read(tmp_path: Path, syntax: str) -> None:
    series = series_on(grid_of("axial", shape=(40, 36, 9)))
    labels = drawn_on(series.grid).data
    labels = np.where(labels <= 2, labels, 0).astype(np.uint8)
    made = by_highdicom(series.grid, "FRACTIONAL", np.ascontiguousarray(labels.transpose(2, 1, 0)))
    made.compress(syntax, generate_instance_uid=False)
    made.save_as(tmp_path / "other.dcm")
    found, _ = read_seg(tmp_path / "other.dcm", series).label_map(ORGANS)
    assert (found.data == labels).all()


def test_smaller_structures_lie_on_top_of_larger_ones(tmp_path: Path, series: DicomSeries) -> None:
    both = np.zeros((*series.grid.shape[::-1], 2), dtype=np.uint8)
    both[2:7, 2:9, 2:9, 0] = 1
    both[3, 4:6, 4:6, 1] = 1
    by_highdicom(series.grid, "BINARY", both).save_as(tmp_path / "other.dcm")
    found, _ = read_seg(tmp_path / "other.dcm", series).label_map(ORGANS)
    expected = np.where(both[..., 1], 2, both[..., 0]).transpose(2, 1, 0)
    assert (found.data == expected).all()


# --- refused --------------------------------------------------------------------------------------


def _no_position(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


def _shifted(dataset: Dataset) -> None:
    position = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    position.ImagePositionPatient[0] += 0.3


def _beyond(dataset: Dataset) -> None:
    position = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    position.ImagePositionPatient[2] += 100 * 2.5


def _unknown_segment(dataset: Dataset) -> None:
    frame = dataset.PerFrameFunctionalGroupsSequence[0]
    frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 77


def _same_number(dataset: Dataset) -> None:
    dataset.SegmentSequence[1].SegmentNumber = 1


def _set(**values: object) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_position, "no PlanePositionSequence"),
        (_shifted, "do not lie on the voxels of the series"),
        (_beyond, "reaches beyond the series"),
        (_unknown_segment, "is of segment 77, which is not described"),
        (_same_number, "describes several segments of number 1;"),
        (_set(FrameOfReferenceUID="1.2.99"), "drawn in frame of reference 1.2.99"),
        (_set(PixelData=b"\0" * 20), "truncated; promises"),
        (_set(NumberOfFrames=2_000_000_000), "promises 2000000000 frames and describes"),
        (_set(Rows=65535, Columns=65535), "reaches beyond the series"),
        (_set(SegmentationType="PAINTED"), "type PAINTED with 1 bits"),
        (_set(BitsAllocated=8), "type BINARY with 8 bits"),
        (_set(SegmentSequence=[]), "describes 0 segments"),
        (_set(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), "is CT Image Storage; a DICOM SEG or"),
        (_set(Rows=None), "damaged, truncated or not DICOM"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    change: Callable[[Dataset], None], message: str, written_seg: Path, series: DicomSeries
) -> None:
    path = spoiled(written_seg, change)
    with pytest.raises(ScanError, match=message) as error:
        read_seg(path, series)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("syntax", "way", "why"),
    [
        (
            "1.2.840.10008.1.2.4.100",
            "MPEG2 Main Profile / Main Level (1.2.840.10008.1.2.4.100)",
            "is not read",
        ),
        ("1.2.3.4", "1.2.3.4", "is not read"),
        (RLELossless, "RLE Lossless (1.2.840.10008.1.2.5)", "cannot be decoded ("),
    ],
)
def test_frames_stored_in_a_way_that_is_not_read_are_refused_by_its_name(
    syntax: str, way: str, why: str, written_seg: Path, series: DicomSeries
) -> None:
    def change(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate([b"\1\2" * 40] * int(dataset.NumberOfFrames))
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = UID(syntax)

    dataset = pydicom.dcmread(written_seg)
    change(dataset)
    dataset.save_as(written_seg, implicit_vr=False, little_endian=True)
    with pytest.raises(ScanError) as error:
        read_seg(written_seg, series)
    text = str(error.value)
    assert text.startswith(f"{written_seg}: its frames")
    assert all(part in text for part in (f"stored as {way}", why, "convert it to an uncompressed file"))
    assert "damaged, truncated" not in text


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_frames_of_another_size_than_the_header_states_are_not_decoded(
    syntax: str, tmp_path: Path, series: DicomSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes can hold a frame of gigabytes, and one of another size would be read as another mask."""
    labels = np.ones(series.grid.shape[::-1], dtype=np.uint8)
    made = by_highdicom(series.grid, "FRACTIONAL", labels)
    large = image(np.zeros((64, 64), np.uint8), (0, 0, 0))
    large.compress(syntax)
    (frame,) = generate_frames(large.PixelData, number_of_frames=1)
    made.PixelData = encapsulate([frame] * made.NumberOfFrames)
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.save_as(tmp_path / "other.dcm")
    monkeypatch.setattr(decoding, "get_decoder", lambda uid: pytest.fail("decoded"))
    size = f"{made.Rows}x{made.Columns}"
    with pytest.raises(ScanError, match=f"compressed frame of 64x64, but its header says {size}"):
        read_seg(tmp_path / "other.dcm", series)


def test_nothing_beyond_the_series_is_decoded(
    tmp_path: Path, series: DicomSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.ones(series.grid.shape[::-1], dtype=np.uint8)
    made = by_highdicom(series.grid, "FRACTIONAL", labels, transfer_syntax_uid=RLELossless)
    made.Rows = made.Columns = 60_000
    made.save_as(tmp_path / "other.dcm")
    monkeypatch.setattr(seg, "decoded", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ScanError, match="reaches beyond the series"):
        read_seg(tmp_path / "other.dcm", series)


@pytest.mark.parametrize("most", [0, -1, 256])
def test_an_impossible_value_of_whole_voxels_is_refused(
    most: int, tmp_path: Path, series: DicomSeries
) -> None:
    """With half of 0 as the threshold, all voxels would be the organ."""
    share = np.zeros((*series.grid.shape[::-1], 2))
    share[3:6, 3:6, 3:6, 0] = 1
    made = by_highdicom(series.grid, "FRACTIONAL", share)
    made["MaximumFractionalValue"]._value = most
    made["MaximumFractionalValue"].VR = "SS"
    made.save_as(tmp_path / "other.dcm")
    with pytest.raises(ScanError, match=f"MaximumFractionalValue is {most}; a number from 1 to 255"):
        read_seg(tmp_path / "other.dcm", series)


def test_without_gdcm_its_extra_is_named(
    written_seg: Path, series: DicomSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossless(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.PixelData = encapsulate([b"x"] * dataset.NumberOfFrames)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    path = spoiled(written_seg, lossless)
    monkeypatch.delitem(JPEGLosslessSV1Decoder._available, "gdcm")
    todo = r"pip install '\.\[dicom-extra\]' in a clone of ZoomSeg, or convert it"
    with pytest.raises(ScanError, match=f"is not read; {todo}"):
        read_seg(path, series)


def test_the_order_of_bytes_is_not_guessed(written_seg: Path, series: DicomSeries) -> None:
    dataset = pydicom.dcmread(written_seg)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(written_seg, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    with pytest.raises(ScanError, match=r"stored as Explicit VR Big Endian \(.*\), which is not read"):
        read_seg(written_seg, series)


def test_files_that_are_no_dicom_are_refused(tmp_path: Path, series: DicomSeries, written_seg: Path) -> None:
    text, cut, deflated = (tmp_path / name for name in ("text.dcm", "cut.dcm", "deflated.dcm"))
    text.write_text("segments")
    cut.write_bytes(written_seg.read_bytes()[:3000])
    dataset = pydicom.dcmread(written_seg)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(deflated)
    for path, message in (
        (text, "not DICOM"),
        (cut, "truncated"),
        (deflated, "deflated as a whole"),
        (tmp_path / "none.dcm", "no such file"),
    ):
        with pytest.raises(ScanError, match=message):
            read_seg(path, series)


def test_more_voxels_than_memory_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = series_on(grid_of("axial", shape=(13, 11, 9)))
    labels, path = drawn_on(series.grid), tmp_path / "case.seg.dcm"
    write_seg(path, labels, series, "abdomen-ct")
    monkeypatch.setattr(structures_module, "MAX_VOXELS", int((labels.data > 0).sum()))
    assert len(read_seg(path, series).names) == 4
    monkeypatch.setattr(structures_module, "MAX_VOXELS", int((labels.data > 0).sum()) - 1)
    with pytest.raises(ScanError, match="structures have more than"):
        read_seg(path, series)
