"""Storage of voxels, from their headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import RLELossless

from helpers.dicom_series import image, ramp, stack, write
from zoomseg.io.dicom.read.pixel_storage import Pixels
from zoomseg.io.dicom.read.series_discovery import find_series, the_series


def pixels(folder: Path) -> Pixels:
    return the_series(folder).stored[0].pixels


def test_where_values_begin(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(ramp(), BitsStored=12, HighBit=13))
    found = the_series(folder).stored[2]
    content = found.source.path.read_bytes()
    one = found.pixels
    assert content[one.offset : one.offset + one.frame_bytes] == ramp()[2].tobytes()
    assert (one.rows, one.columns, one.frames, one.frame_bytes) == (6, 7, 1, 84)
    assert (one.allocated, one.stored, one.high_bit, one.signed, one.syntax) == (16, 12, 13, False, "")


@pytest.mark.parametrize(("signed", "written", "means"), [(True, 63536, -2000), (False, 63536, 63536)])
def test_padding_has_the_sign_of_the_voxels(tmp_path: Path, signed: bool, written: int, means: int) -> None:
    datasets = stack(ramp(), PixelRepresentation=int(signed))
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "US", written)
    assert pixels(write(tmp_path, datasets)).padding == (means, means)


def test_a_range_of_padding(tmp_path: Path) -> None:
    datasets = stack(ramp())
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "US", 9)
        dataset.add_new("PixelPaddingRangeLimit", "US", 4)
    assert pixels(write(tmp_path, datasets)).padding == (4, 9)


def test_promises_that_no_compression_keeps(tmp_path: Path) -> None:
    datasets = [image(np.full((8, 8), k, np.uint16), (0, 0, 2 * k)) for k in range(3)]
    for dataset in datasets:
        dataset.compress(RLELossless)
        dataset.Rows = dataset.Columns = 30000
    (refused,) = find_series(write(tmp_path, datasets)).refused
    assert "header promises 1800000000 bytes of voxels from a file of" in refused.reason
