"""The slices of a series, including interpolated ones."""

from __future__ import annotations

from pathlib import Path

from helpers.dicom_series import ramp, stack, uneven, write
from zoomseg.io.dicom.read.series_discovery import the_series


def test_an_interpolated_plane_has_no_slice(tmp_path: Path) -> None:
    datasets = stack(ramp())
    series = the_series(write(tmp_path, datasets[:2] + datasets[3:])).series
    uids = [d.SOPInstanceUID for d in datasets]
    assert series.slice_uids == (uids[0], uids[1], None, uids[3], uids[4])
    assert set(series.paths) == set(tmp_path.iterdir())


def test_slices_in_no_plane_are_of_the_series(tmp_path: Path) -> None:
    datasets = uneven()
    series = the_series(write(tmp_path, datasets)).series
    uids = [d.SOPInstanceUID for d in datasets]
    assert series.slice_uids == (uids[0], *[None] * 7, uids[8])
    assert [s.sop_uid for s in series.between] == uids[1:8]
    assert series.image_uids == set(uids)
    assert set(series.paths) == set(tmp_path.iterdir())
