"""Voxels of NIfTI files, against nibabel's own reading and writing."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import Volume
from zoomseg.io import nifti
from zoomseg.io.scans import read_voxels, write_image

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
    raw, header = nifti.voxels(path)
    assert raw.dtype == np.dtype(kind).newbyteorder("=")
    assert raw.flags.f_contiguous
    assert np.array_equal(raw, values(kind))
    assert (header.slope, header.intercept, header.scaled) == (1.0, 0.0, False)


def test_slope_and_intercept_are_not_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(values("int16"), AFFINE)
    image.header.set_slope_inter(2.0, -5.0)
    nib.save(image, path)
    raw, header = nifti.voxels(path)
    assert np.array_equal(raw, values("int16"))
    assert (header.slope, header.intercept, header.scaled) == (2.0, -5.0, True)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", ["F", "C"])
def test_what_is_written_nibabel_reads(tmp_path: Path, compressed: bool, order: str) -> None:
    path = tmp_path / f"a.nii{'.gz' * compressed}"
    nifti.save(nib.Nifti1Image(np.asarray(values("uint8"), order=order), AFFINE), path, compressed)
    back = nib.load(path)
    assert np.array_equal(np.asarray(back.dataobj), values("uint8"))
    assert np.array_equal(back.affine, AFFINE)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == compressed


def test_a_compressed_file_says_nothing_of_its_name_and_time(tmp_path: Path) -> None:
    """RFC 1952, 2.3: flags (none) in byte 3, the time (none) in bytes 4 to 7."""
    image = Volume(values("int16")[None], Grid((5, 6, 7), AFFINE))
    paths = [tmp_path / name for name in ("a.nii.gz", "another.nii.gz")]
    for path in paths:
        write_image(path, image)
    first, second = (path.read_bytes() for path in paths)
    assert first[3:8] == bytes(5)
    assert first == second
    assert np.array_equal(read_voxels(paths[0]).data[0], values("int16"))


def test_voxels_that_are_not_there_are_missed(tmp_path: Path) -> None:
    whole = nib.Nifti1Image(values("int16"), AFFINE).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(whole[:-100]))
    with pytest.raises(ScanError, match=r"a\.nii\.gz: truncated; 320 of 420 bytes of voxels are there"):
        nifti.voxels(path)


def test_what_a_file_holds_beyond_its_voxels_is_not_inflated(tmp_path: Path) -> None:
    """A bomb after a valid image."""
    whole = nib.Nifti1Image(values("int16"), AFFINE).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(whole + bytes(1 << 28)))
    before = nifti.voxels(path)[0]
    assert np.array_equal(before, values("int16"))


@pytest.mark.parametrize("behind", [b"", b"garbage" * 60, bytes(1000), b"\x1f\x8bgarbage" * 9])
def test_bytes_behind_a_gzip_file_are_passed_over(tmp_path: Path, behind: bytes) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nib.Nifti1Image(values("int16"), AFFINE).to_bytes()) + behind)
    assert np.array_equal(nifti.voxels(path)[0], values("int16"))


def test_a_gzip_file_may_have_members(tmp_path: Path) -> None:
    whole = nib.Nifti1Image(values("int16"), AFFINE).to_bytes()
    path = tmp_path / "a.nii.gz"
    parts = (whole[:1], whole[1:300], whole[300:400], b"", whole[400:])
    path.write_bytes(b"".join(gzip.compress(part) + bytes(n) for n, part in enumerate(parts)))
    assert np.array_equal(nifti.voxels(path)[0], values("int16"))


def test_voxels_that_do_not_match_the_checksum_are_refused(tmp_path: Path) -> None:
    """Stored, not deflated, so that one wrong bit is one wrong voxel that only the checksum reveals."""
    path = tmp_path / "a.nii.gz"
    content = bytearray(gzip.compress(nib.Nifti1Image(values("int16"), AFFINE).to_bytes(), compresslevel=0))
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ScanError, match=r"a\.nii\.gz: damaged, what it holds does not match its checksum; obtain"
    ):
        read_voxels(path)
