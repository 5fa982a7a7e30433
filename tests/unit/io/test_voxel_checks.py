"""Refused voxels, and the messages."""

from pathlib import Path

import numpy as np
import pytest

from helpers.scan_files import SHAPE, noise, save
from zoomseg.core.errors import ScanError
from zoomseg.io.scans import (
    looks_like_labels,
    read_image,
    read_voxels,
)


def test_thin_structures_are_recognised_as_labels() -> None:
    vessels = np.zeros((20, 20, 20), dtype=np.float32)
    vessels[10, 10, :], vessels[5, :, 3] = 8, 9
    assert looks_like_labels(vessels)


def test_eight_bit_scans_are_not_taken_for_label_maps() -> None:
    body = np.zeros((20, 20, 20), dtype=np.float32)
    body[3:17, 3:17, 3:17] = np.random.default_rng(1).integers(1, 100, (14, 14, 14))
    assert not looks_like_labels(body)
    ct = np.full((20, 20, 20), -1000, dtype=np.float32)
    ct[5:10] = 40
    assert not looks_like_labels(ct)


def test_nan_constant_and_label_maps_are_no_images(tmp_path: Path) -> None:
    broken = noise()
    broken[0, 0, :2] = np.nan, np.inf
    path = save(tmp_path / "a.nii.gz", broken)
    with pytest.raises(ScanError, match="2 of 210 voxels are NaN or infinite"):
        read_image(path)
    assert np.isnan(read_voxels(path).data[0, 0, 0, 0])
    with pytest.raises(ScanError, match="all voxels are NaN"):
        read_image(save(tmp_path / "a.nii.gz", np.full(SHAPE, np.nan, dtype=np.float32)))
    with pytest.raises(ScanError, match="constant image, every voxel is -3"):
        read_image(save(tmp_path / "a.nii.gz", np.full(SHAPE, -3, dtype=np.int16)))
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[3:9, 2:15, 4:16], labels[9:15, 2:15, 4:16] = 1, 7
    with pytest.raises(ScanError, match="looks like a label map"):
        read_image(save(tmp_path / "a.nii.gz", labels))


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    one = save(tmp_path / "a_0000.nii.gz", noise())
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    with pytest.raises(ScanError, match=r"b\.nii\.gz: is up to 0\.5 mm off the grid of a_0000"):
        read_image([one, save(tmp_path / "b.nii.gz", noise(), shifted)])
    with pytest.raises(ScanError, match="shape"):
        read_image([one, save(tmp_path / "b.nii.gz", noise((5, 6, 8)))])
