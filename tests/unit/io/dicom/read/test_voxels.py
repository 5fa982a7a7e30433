"""Values of synthetic series, each special case compared with numbers computed by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from helpers.dicom_series import AXIAL, CORONAL, SAGITTAL, Array, image, item, multi_frame, ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.core.volume import Volume
from zoomseg.io.dicom.read import pixel_storage
from zoomseg.io.dicom.read.series_discovery import find_series, the_series
from zoomseg.io.dicom.read.voxels import read_volume, reading_bytes


def read(folder: Path) -> Volume:
    return read_volume(the_series(folder))


def values(folder: Path) -> Array:
    """``[k, row, column]``."""
    data = read(folder).data
    assert data.shape[0] == 1
    return data[0].transpose(2, 1, 0)


def test_values_grid_and_order(tmp_path: Path) -> None:
    volume = read(write(tmp_path, stack(ramp())))
    assert volume.data.dtype == np.int16
    assert volume.data.shape == (1, 7, 6, 5)
    # Column 2, row 3, slice 4.
    assert int(volume.data[0, 2, 3, 4]) == 4 * 42 + 3 * 7 + 2 - 1024
    # LPS (-10 + 2 * 0.75, -20 + 3 * 0.5, 30 + 4 * 2) is RAS (8.5, 18.5, 38).
    assert volume.grid.world((2, 3, 4)).tolist() == [8.5, 18.5, 38]


@pytest.mark.parametrize(
    ("orientation", "step", "lps"),
    [
        (SAGITTAL, (2.0, 0, 0), (-10 + 2 * 4, -20 + 0.75 * 2, 30 - 0.5 * 3)),
        (CORONAL, (0, 2.0, 0), (-10 + 0.75 * 2, -20 + 2 * 4, 30 - 0.5 * 3)),
        (AXIAL, (0, 0, -2.0), (-10 + 0.75 * 2, -20 + 0.5 * 3, 30 - 2 * 4)),
        # Feet first, prone: columns to the left still, rows to the front.
        ((-1.0, 0, 0, 0, 1.0, 0), (0, 0, 2.0), (-10 - 0.75 * 2, -20 + 0.5 * 3, 30 + 2 * 4)),
        ((0.8, 0.6, 0, -0.6, 0.8, 0), (0, 0, 2.0), (-10 + 1.2 - 0.9, -20 + 0.9 + 1.2, 30 + 8)),
        ((0.8, 0, 0.6, 0, 1.0, 0), (-1.2, 0, 1.6), (-10 + 1.2 - 4.8, -20 + 1.5, 30 + 0.9 + 6.4)),
    ],
)
def test_any_orientation(tmp_path: Path, orientation: Any, step: Any, lps: Any) -> None:
    """Voxel (column 2, row 3) of the fifth file is at the position of its own header."""
    volume = read(write(tmp_path, stack(ramp(), step, ImageOrientationPatient=list(orientation))))
    ras = np.array([-lps[0], -lps[1], lps[2]])
    index = volume.grid.index(ras)
    assert index == pytest.approx(np.rint(index), abs=1e-6)
    i, j, k = np.rint(index).astype(int)
    assert (i, j) == (2, 3)
    assert int(volume.data[0, i, j, k]) == 4 * 42 + 3 * 7 + 2 - 1024


def test_slices_are_rescaled_each_by_its_own(tmp_path: Path) -> None:
    datasets = stack(ramp())
    for k, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * (k + 1), 10 * k
    found = values(write(tmp_path, datasets))
    assert found.dtype == np.float32
    for k in range(5):
        assert (found[k] == ramp()[k] * 0.5 * (k + 1) + 10 * k).all()


def test_whole_slopes_stay_integers_while_they_fit(tmp_path: Path) -> None:
    found = values(write(tmp_path / "small", stack(ramp(), RescaleSlope=-3)))
    assert found.dtype == np.int16
    assert (found == -3 * ramp().astype(int) - 1024).all()
    wide = ramp() * 300  # to 62700
    found = values(write(tmp_path / "wide", stack(wide, RescaleIntercept=0)))
    assert found.dtype == np.float32
    assert (found == wide).all()
    found = values(write(tmp_path / "shifted", stack(wide, RescaleIntercept=-31000)))
    assert found.dtype == np.int16
    assert (found == wide.astype(int) - 31000).all()


@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (10, 12)])
@pytest.mark.parametrize("signed", [False, True])
def test_other_bits_are_ignored(tmp_path: Path, stored: int, high: int, signed: bool) -> None:
    meant = ramp().astype(int) - (100 if signed else 0)
    around = np.random.default_rng(0).integers(0, 2**16, ramp().shape)
    mask = ((1 << stored) - 1) << (high + 1 - stored)
    raw = ((meant << (high + 1 - stored)) & mask) | (around & ~mask & 0xFFFF)
    tags: dict[str, Any] = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
    found = values(write(tmp_path, stack(raw.astype(np.uint16), **tags)))
    assert (found == meant - 1024).all()


def test_signed_and_byte_orders(tmp_path: Path) -> None:
    signed = (ramp().astype(np.int16) - 100) * 5

    def big(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.PixelData = np.frombuffer(dataset.PixelData, np.int16).byteswap().tobytes()

    def implicit(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

    for name, change in (("plain", None), ("big", big), ("implicit", implicit)):
        found = values(write(tmp_path / name, stack(signed, RescaleIntercept=0), change))
        assert found.dtype == np.int16
        assert (found == signed).all()


def test_bytes_as_big_endian_words_are_refused_and_read_otherwise(tmp_path: Path) -> None:
    """In a word of two values, the second one comes first."""
    meant = (ramp() % 200).astype(np.uint8)

    def as_words(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian

    def as_bytes(dataset: Dataset) -> None:
        as_words(dataset)
        dataset["PixelData"].VR = "OB"

    (refused,) = find_series(write(tmp_path / "words", stack(meant), as_words)).refused
    assert "holds values of 8 bits as big-endian words, which are not read" in refused.reason
    assert (values(write(tmp_path / "bytes", stack(meant), as_bytes)) == meant.astype(int) - 1024).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint8])
def test_compressed(tmp_path: Path, syntax: str, dtype: Any) -> None:
    meant = np.random.default_rng(1).integers(0, 200, (3, 32, 40)).astype(dtype)
    if dtype == np.int16:
        meant -= 100
    folder = write(tmp_path, stack(meant), lambda dataset: dataset.compress(syntax))
    assert (values(folder) == meant.astype(int) - 1024).all()


def test_padding_becomes_the_lowest_value(tmp_path: Path) -> None:
    raw = ramp().astype(np.int16) + 30
    raw[:, 0, :] = -2000
    datasets = stack(raw, RescaleIntercept=-1000)
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
    found = values(write(tmp_path, datasets))
    assert (found[:, 0, :] == 7 + 30 - 1000).all()  # row 1 of the first slice begins at 7
    assert (found[:, 1:, :] == raw[:, 1:, :].astype(int) - 1000).all()


def _padded(raw: Array, padding: int, **tags: Any) -> list[Dataset]:
    datasets = stack(raw, **tags)
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", padding)
    return datasets


def test_padding_of_a_value_that_tissue_has_is_padding_at_the_edge_only(tmp_path: Path) -> None:
    """Signed CT, padded by 0, which is 0 HU: the corners become air, water inside stays water."""
    raw = np.full((4, 9, 9), 40, np.int16)
    raw[:, 1:8, 1] = -1000
    raw[:, 0, :3] = raw[:, :3, 0] = 0  # a corner that was not scanned
    raw[:, 4:6, 4:6] = 0  # water
    folder = write(tmp_path, _padded(raw, 0, RescaleIntercept=0))
    (note,) = the_series(folder).series.notes
    assert note.startswith("pixel padding has a value that tissue may have")
    expected = raw.astype(int)
    expected[:, 0, :3] = expected[:, :3, 0] = -1000
    assert (values(folder) == expected).all()


@pytest.mark.parametrize(("padding", "intercept"), [(-2000, 0), (0, -1024), (32000, 0)])
def test_padding_that_no_tissue_has_is_padding_everywhere(
    tmp_path: Path, padding: int, intercept: int
) -> None:
    raw = np.full((4, 9, 9), 1040, np.int16)
    raw[:, 1, 1], raw[:, 4:6, 4:6] = 30, padding
    folder = write(tmp_path, _padded(raw, padding, RescaleIntercept=intercept))
    assert the_series(folder).series.notes == ()
    expected = raw.astype(int) + intercept
    expected[:, 4:6, 4:6] = 30 + intercept
    assert (values(folder) == expected).all()


def test_signed_mr_may_have_tissue_of_its_padding(tmp_path: Path) -> None:
    raw = np.full((4, 9, 9), 40, np.int16)
    raw[:, 1, 1], raw[:, 4, 4], raw[:, 0, 0] = -50, 0, 0
    tags: dict[str, Any] = {"SOPClassUID": MRImageStorage, "RescaleSlope": None, "RescaleIntercept": None}
    found = values(write(tmp_path, _padded(raw, 0, **tags)))
    assert (found[:, 4, 4] == 0).all()
    assert (found[:, 0, 0] == -50).all()


def test_inverted_greys_of_mr_only(tmp_path: Path) -> None:
    tags: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1", "RescaleIntercept": 0}
    mr = stack(ramp(), SOPClassUID=MRImageStorage, BitsStored=12, HighBit=11, **tags)
    assert (values(write(tmp_path / "mr", mr)) == 4095 - ramp().astype(int)).all()
    assert (values(write(tmp_path / "ct", stack(ramp(), **tags))) == ramp()).all()


def test_missing_slices_lie_between_their_neighbours(tmp_path: Path) -> None:
    datasets = stack(ramp(12))
    series = the_series(write(tmp_path, datasets[:4] + datasets[6:])).series
    assert series.notes == ("2 slices are missing and interpolated from the neighbours: 5, 6 of 12",)
    assert [s is None for s in series.slices] == [k in (4, 5) for k in range(12)]
    found = values(tmp_path)
    # Values rise by 42 from slice to slice.
    assert (found == ramp(12).astype(int) - 1024).all()


def test_gantry_tilt_is_sheared_back(tmp_path: Path) -> None:
    """Slices that climb along y by a voxel and a half each: a voxel of the grid is the mean of two rows."""
    datasets = stack(ramp(), (0, 0.75, 2.0))
    stack_ = the_series(write(tmp_path, datasets))
    assert stack_.series.notes == ("gantry tilt of 20.6 degrees corrected by shear resampling",)
    volume = read_volume(stack_)
    assert volume.grid.shape == (7, 12, 5)
    axes = volume.grid.affine[:3, :3]
    assert axes.T @ axes == pytest.approx(np.diag(np.square(volume.grid.spacing_mm)))
    found = volume.data[0].transpose(2, 1, 0)
    raw = ramp().astype(int) - 1024
    assert (found[0, :6] == raw[0]).all()
    assert (found[0, 6:] == -1024).all()  # nothing was scanned there: the lowest value
    assert (found[2, 3:9] == raw[2]).all()
    # Slice 1 lies half a row lower than row 1: row 3 of the grid is midway between its rows 1 and 2, in rint.
    assert (found[1, 3] == np.rint((raw[1, 1] + raw[1, 2]) / 2)).all()


def test_uneven_slices_are_resampled(tmp_path: Path) -> None:
    datasets = stack(ramp(7))
    z = [0, 2, 4.6, 6.4, 8, 10, 12]
    for dataset, at in zip(datasets, z, strict=True):
        dataset.ImagePositionPatient = [-10, -20, at]
    found = the_series(write(tmp_path, datasets))
    assert found.series.notes == ("slices are 1.6 to 2.6 mm apart; resampled to 2 mm",)
    assert found.series.grid.shape == (7, 6, 7)
    volume = values(tmp_path)
    raw = ramp(7).astype(float) - 1024
    assert (volume[1] == raw[1]).all()
    assert volume[2] == pytest.approx(np.rint(raw[1] + (raw[2] - raw[1]) * 2 / 2.6))


def test_resampling_may_leave_a_slice_out(tmp_path: Path) -> None:
    """A slice between others that all lie on the even lattice belongs to no plane of it."""
    z = [0, 2, 4, 6, 8, 8.7, 10, 12, 14]
    datasets = [image(ramp(9)[k], (0, 0, at)) for k, at in enumerate(z)]
    found = the_series(write(tmp_path, datasets))
    assert found.series.notes == ("slices are 0.7 to 2 mm apart; resampled to 2 mm",)
    assert not found.placement.as_stored
    assert (values(tmp_path) == np.delete(ramp(9), 5, axis=0).astype(int) - 1024).all()


def enhanced(slices: Array, **groups: list[Any]) -> Dataset:
    frames = [
        {"PlanePositionSequence": item(ImagePositionPatient=[0.0, 0.0, 3.0 * k])} for k in range(len(slices))
    ]
    for name, of in groups.items():
        for frame, one in zip(frames, of, strict=True):
            frame[name] = one
    shared = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=list(AXIAL)),
        "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.75]),
    }
    return multi_frame(slices, frames, shared)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_enhanced_multi_frame(tmp_path: Path, syntax: str | None) -> None:
    slopes = [item(RescaleSlope=2.0, RescaleIntercept=float(k), RescaleType="US") for k in range(5)]
    dataset = enhanced(ramp(5, 32, 36), PixelValueTransformationSequence=slopes)
    folder = write(tmp_path, [dataset], None if syntax is None else lambda d: d.compress(syntax))
    series = the_series(folder).series
    assert series.modality == "MR"
    assert [s.frame for s in series.slices if s is not None] == [1, 2, 3, 4, 5]
    assert len(set(series.slice_uids)) == 1
    assert series.grid.spacing_mm == pytest.approx((0.75, 0.5, 3))
    assert (values(folder) == 2 * ramp(5, 32, 36).astype(int) + np.arange(5)[:, None, None]).all()


def test_from_a_zip_and_by_one_path(tmp_path: Path) -> None:
    folder = write(tmp_path / "scan" / "deep", stack(ramp()))
    expected = values(folder)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "scan"))
    assert (values(archive) == expected).all()


def test_memory_is_told_beforehand(tmp_path: Path) -> None:
    small = write(tmp_path / "small", stack(ramp(), BitsStored=12, HighBit=11))
    assert reading_bytes(the_series(small)) == 2 * 5 * 6 * 7
    tilted = write(tmp_path / "tilted", stack(ramp(), (0, 0.75, 2.0), BitsStored=12, HighBit=11))
    assert reading_bytes(the_series(tilted)) == 2 * 5 * 6 * 7 + 2 * 5 * 12 * 7


def test_memory_of_compressed_objects_is_told(tmp_path: Path) -> None:
    """Each is read as a whole, whatever follows its voxels."""
    noise = np.random.default_rng(0).integers(0, 4096, (3, 64, 64)).astype(np.uint16)
    datasets = stack(noise, BitsStored=12, HighBit=11)
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    datasets[1].add_new("DataSetTrailingPadding", "OB", bytes(1_000_000))
    folder = write(tmp_path, datasets)
    found = the_series(folder)
    largest = max(file.stat().st_size for file in folder.iterdir())
    told = reading_bytes(found) - 2 * 3 * 64 * 64
    assert 2 * 1_000_000 < told <= 2 * largest
    assert (values(folder) == noise.astype(int) - 1024).all()


def test_compressed_objects_that_are_larger_than_their_voxels_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_storage, "MAX_ENCODING_BYTES", 1000)
    datasets = stack(ramp(3, 32, 36))
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    datasets[1].add_new("DataSetTrailingPadding", "OB", bytes(100_000))
    (refused,) = find_series(write(tmp_path, datasets)).refused
    assert "header promises 2304 bytes of voxels, but 10" in refused.reason


def test_damaged_voxels_name_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(ramp(3, 32, 36)), lambda dataset: dataset.compress(JPEG2000Lossless))
    found = the_series(folder)
    victim = sorted(folder.iterdir())[1]
    content = victim.read_bytes()
    start = content.index(b"\xff\x4f\xff\x51")
    victim.write_bytes(content[: start + 60] + bytes(len(content) - start - 60))
    with pytest.raises(ScanError, match=f"{victim}: voxels cannot be decoded"):
        read_volume(found)
    wide = content[: start + 8] + (2**31 - 1).to_bytes(4, "big") + content[start + 12 :]
    victim.write_bytes(wide)
    with pytest.raises(ScanError, match=f"{victim}: compressed frame of 32x2147483647, but its header"):
        read_volume(found)
    victim.unlink()
    with pytest.raises(ScanError, match=f"{victim}: cannot be read"):
        read_volume(found)
