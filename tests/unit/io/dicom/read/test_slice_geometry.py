"""Grids from positions of slices, computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.dicom_series import ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.series_discovery import find_series, the_series
from zoomseg.io.dicom.read.slice_geometry import Plane, place, same_place_mm


def test_gaps_too_wide_and_slices_too_uneven_are_refused(tmp_path: Path) -> None:
    datasets = stack(ramp(20))
    (refused,) = find_series(write(tmp_path / "gap", datasets[:8] + datasets[15:])).refused
    assert "7 slices are missing (spacing 2 mm, widest gap 16 mm); export the series again" in refused.reason
    for dataset, z in zip(datasets, np.cumsum([1, 9] * 10), strict=True):
        dataset.ImagePositionPatient = [0, 0, float(z)]
    (refused,) = find_series(write(tmp_path / "uneven", datasets)).refused
    assert "slices are 1 to 9 mm apart; too uneven for one volume" in refused.reason


def test_planes_between_slices(tmp_path: Path) -> None:
    """Slices at 0, 2, 6 and 8 mm: plane 2 lies halfway between the second and the third."""
    datasets = stack(ramp())
    stored = the_series(write(tmp_path, datasets[:2] + datasets[3:])).stored
    found = place(stored[::-1])
    assert found.order == (3, 2, 1, 0)
    assert found.planes == (Plane(0), Plane(1), Plane(1, 0.5), Plane(2), Plane(3))
    assert found.shifts_vox is None
    assert found.grid.spacing_mm == pytest.approx((0.75, 0.5, 2))


def test_positions_that_are_rounded_are_taken_as_even(tmp_path: Path) -> None:
    datasets = stack(ramp())
    datasets[2].ImagePositionPatient = [-10, -20, 34.08]
    found = the_series(write(tmp_path, datasets))
    assert found.series.notes == ("slices lie up to 0.08 mm from an even spacing of 2 mm; taken as even",)
    assert found.placement.planes == tuple(map(Plane, range(5)))


def test_single_and_coinciding_slices_have_no_grid(tmp_path: Path) -> None:
    stored = the_series(write(tmp_path, stack(ramp()))).stored
    with pytest.raises(ScanError, match="a single slice; a volume needs at least two"):
        place(stored[:1])
    with pytest.raises(ScanError, match="several slices lie at one place"):
        place([*stored, stored[0]])


@pytest.mark.parametrize("edge", [25e-6, 4e-3, 0.02])
def test_slices_of_a_micro_ct_are_at_different_places(tmp_path: Path, edge: float) -> None:
    series = the_series(write(tmp_path, stack(ramp(), (0, 0, edge), PixelSpacing=[edge, edge]))).series
    assert series.grid.shape == (7, 6, 5)
    assert series.grid.spacing_mm == pytest.approx([edge] * 3, rel=1e-6)
    assert series.notes == ()


def test_slices_a_hundredth_of_a_millimetre_apart_are_at_one_place(tmp_path: Path) -> None:
    stored = the_series(write(tmp_path, stack(ramp()))).stored
    assert same_place_mm(stored) == 0.01
    x, y, z = stored[0].position_lps_mm
    with pytest.raises(ScanError, match="several slices lie at one place"):
        place([*stored, replace(stored[0], position_lps_mm=(x, y, z + 0.009))])


def test_slices_that_slide_apart_are_no_volume(tmp_path: Path) -> None:
    (refused,) = find_series(write(tmp_path, stack(ramp(), (0, 5, 2.0)))).refused
    assert "slices are shifted in their planes by up to 20 mm; this is no volume" in refused.reason
