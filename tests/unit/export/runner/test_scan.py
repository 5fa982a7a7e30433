"""NIfTI in and out of the runner; hostile files are refused in one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.grids import oriented
from zoomseg.core.errors import OutputError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.export.runner import scan
from zoomseg.io.scans import header_notes, read_image

GRID = oriented((5, 4, 3), (1, 2, 3), (7, -8, 9), flip=(1, 0, 0), angles_deg=(5, 0, 0))


def save(path: Path, values: np.ndarray, grid: Grid = GRID, **scaling: float) -> Path:
    image = nib.Nifti1Image(values, grid.affine, dtype=values.dtype)
    if scaling:
        image.header.set_slope_inter(**scaling)
    nib.save(image, path)
    return path


def values(dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 120, GRID.shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_reads_what_the_package_reads(tmp_path: Path, dtype: type, name: str) -> None:
    path = save(tmp_path / name, values(dtype))
    found, expected = scan.read([path]), read_image(path)
    assert np.array_equal(found.voxels, expected.data)
    assert found.voxels.dtype.isnative
    assert found.grid.same_as(expected.grid, tolerance_vox=1e-9)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_scaled_values(tmp_path: Path, dtype: type) -> None:
    path = save(tmp_path / "a.nii", values(dtype))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([2.5, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    assert np.array_equal(scan.read([path]).voxels[0], values() * np.float32(2.5) - 1024)


def test_one_file_per_channel(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{n}.nii", values() + n) for n in range(2)]
    assert np.array_equal(scan.read(files).voxels, np.stack([values(), values() + 1]))
    shifted = Grid(GRID.shape, GRID.affine + np.diag([0, 0, 0, 0]) + 0.1 * np.eye(4, k=3))
    other = save(tmp_path / "other.nii", values(), shifted)
    with pytest.raises(ScanError, match=r"other\.nii: does not lie on the grid of 0\.nii"):
        scan.read([files[0], other])


def damaged(path: Path, at: int, content: bytes) -> Path:
    whole = bytearray(save(path, values()).read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)
    return path


def test_hostile_files_are_refused(tmp_path: Path) -> None:
    nan = values(np.float32)
    nan[1, 1, 1] = np.nan
    int16 = np.dtype("<i2")
    cases = {
        "no such file": tmp_path / "none.nii",
        "not a NIfTI file": tmp_path / "a.mha",
        "1 of 60 voxels are NaN or infinite": save(tmp_path / "nan.nii", nan),
        "constant image, every voxel is 0": save(tmp_path / "flat.nii", 0 * values()),
        "give one 3-D file per channel": save(tmp_path / "4d.nii", np.stack([values()] * 2, axis=-1)),
        "truncated; header promises": damaged(
            tmp_path / "big.nii", 42, np.array([9999, 9999, 30], int16).tobytes()
        ),
        "every size|3-D": damaged(tmp_path / "zero.nii", 42, np.array([0], int16).tobytes()),
        "spacing must be positive": damaged(tmp_path / "thin.nii", 80, np.zeros(1, "<f4").tobytes()),
        "voxels of type": damaged(tmp_path / "rgb.nii", 70, np.array([128, 24], int16).tobytes()),
        "damaged, truncated or not an image": tmp_path / "text.nii.gz",
        "affine is singular": damaged(tmp_path / "singular.nii", 280, np.zeros(12, "<f4").tobytes()),
    }
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"hello"))
    for reason, path in cases.items():
        with pytest.raises(ScanError, match=reason) as error:
            scan.read([path])
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 9999, (40, 40, 40)).astype(np.int16)
    )
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(ScanError, match="damaged, truncated or not an image"):
        scan.read([path])


def one_bit_wrong(content: bytearray) -> bytes:
    """Of a voxel; it is stored, not deflated, so that nothing but the checksum notices."""
    content[-100] ^= 1
    return bytes(content)


@pytest.mark.parametrize("damage", [one_bit_wrong, lambda content: bytes(content[:-1]) + b"\x07"])
def test_voxels_that_do_not_match_the_checksum_are_refused_as_by_the_package(
    tmp_path: Path, damage: Callable[[bytearray], bytes]
) -> None:
    path = tmp_path / "a.nii.gz"
    whole = nib.Nifti1Image(values(np.float64), GRID.affine).to_bytes()
    path.write_bytes(damage(bytearray(gzip.compress(whole, compresslevel=0))))
    message = f"{path}: damaged, what it holds does not match its checksum; get the file anew"
    for read in (lambda: scan.read([path]), lambda: read_image(path)):
        with pytest.raises(ScanError) as error:
            read()
        assert str(error.value) == message


@pytest.mark.parametrize("behind", [b"", b"garbage" * 60, bytes(1000), b"\x1f\x8bgarbage" * 9])
def test_bytes_behind_a_gzip_file_are_passed_over(tmp_path: Path, behind: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    whole = nib.Nifti1Image(values(np.float64), GRID.affine).to_bytes()
    path.write_bytes(gzip.compress(whole) + behind)
    assert np.array_equal(scan.read([path]).voxels[0], values())


def test_notes_on_the_header_are_carried_once(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{n}.nii.gz", values() + n) for n in range(2)]
    assert scan.read(files).notes == ()
    for file in files:
        content = bytearray(gzip.decompress(file.read_bytes()))
        content[123] = 5  # xyzt_units
        file.write_bytes(gzip.compress(content))
    told = ("unit code 5 is not defined; lengths are taken as millimetres",)
    assert scan.read(files).notes == header_notes(files[0]) == told


def test_the_result_has_the_scans_geometry(tmp_path: Path) -> None:
    source = nib.Nifti1Image(values(), None)
    source.set_qform(GRID.affine, code="aligned")
    source.set_sform(None, code="unknown")
    nib.save(source, tmp_path / "a.nii.gz")
    labels = (values() % 3).astype(np.uint16) * 300
    scan.write(tmp_path / "out.nii.gz", labels, scan.read([tmp_path / "a.nii.gz"]))
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), labels)
    assert written.get_data_dtype() == np.uint16
    again = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(written.header.get_qform(), again.header.get_qform())
    assert np.abs(written.affine - again.affine).max() < 1e-6
    assert int(written.header["qform_code"]) == 2


def test_where_the_result_cannot_go(tmp_path: Path) -> None:
    scan.check_out(tmp_path / "a.nii")
    with pytest.raises(OutputError, match="cannot write this format"):
        scan.check_out(tmp_path / "a.mha")
    with pytest.raises(OutputError, match="there is no folder"):
        scan.check_out(tmp_path / "none" / "a.nii.gz")
