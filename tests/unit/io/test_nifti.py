"""Voxels of NIfTI files, against nibabel's own reading and writing."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from zoomseg.core.errors import ScanError
from zoomseg.io import nifti

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def values(kind: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(kind)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["uint8", "int16", ">i2", "<f4", ">f8"])
def test_what_nibabel_wrote_is_read_as_it_reads_it(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a{suffix}"
    image = nib.Nifti1Image(values(kind), AFFINE)
    image.header.set_data_dtype(np.dtype(kind))
    nib.save(image, path)
    raw, slope, intercept = nifti.voxels(path)
    assert raw.dtype == np.dtype(kind).newbyteorder("=")
    assert raw.flags.f_contiguous
    assert np.array_equal(raw, values(kind))
    assert (slope, intercept) == (1.0, 0.0)


def test_slope_and_intercept_are_not_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(values("int16"), AFFINE)
    image.header.set_slope_inter(2.0, -5.0)
    nib.save(image, path)
    raw, slope, intercept = nifti.voxels(path)
    assert np.array_equal(raw, values("int16"))
    assert (slope, intercept) == (2.0, -5.0)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", ["F", "C"])
def test_what_is_written_nibabel_reads(tmp_path: Path, compressed: bool, order: str) -> None:
    path = tmp_path / f"a.nii{'.gz' * compressed}"
    nifti.save(nib.Nifti1Image(np.asarray(values("uint8"), order=order), AFFINE), path, compressed)
    back = nib.load(path)
    assert np.array_equal(np.asarray(back.dataobj), values("uint8"))
    assert np.array_equal(back.affine, AFFINE)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == compressed


def test_voxels_that_are_not_there_are_missed(tmp_path: Path) -> None:
    whole = nib.Nifti1Image(values("int16"), AFFINE).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(whole[:-100]))
    with pytest.raises(ScanError, match=r"a\.nii\.gz: truncated; 320 of 420 bytes of voxels are there"):
        nifti.voxels(path)


def test_what_a_file_holds_beyond_its_voxels_is_not_inflated(tmp_path: Path) -> None:
    """A bomb behind an honest image."""
    whole = nib.Nifti1Image(values("int16"), AFFINE).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(whole + bytes(1 << 28)))
    before = nifti.voxels(path)[0]
    assert np.array_equal(before, values("int16"))


def test_a_header_is_read_without_correction(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values("uint8"), AFFINE)
    data = bytearray(image.to_bytes())
    data[80:84] = bytes(4)  # pixdim[1] = 0, which nibabel makes 1
    path = tmp_path / "a.nii"
    path.write_bytes(bytes(data))
    assert float(nifti.unchecked_header(path)["pixdim"][1]) == 0.0
    assert float(nifti.load(path).header["pixdim"][1]) != 0.0
