"""Limits on headers are checked before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Grid
from zoomseg.io.header_limits import check_grid, check_size, check_spacing, implausible

PATH = Path("a.nii")


def test_sizes() -> None:
    check_size(PATH, (10, 10, 10), 2, compression=1, stored=2352, offset=352)
    with pytest.raises(
        ScanError, match=r"a\.nii: truncated; header promises 2000 bytes of voxels from byte 352"
    ):
        check_size(PATH, (10, 10, 10), 2, compression=1, stored=2351, offset=352)
    check_size(PATH, (10, 10, 10), 2, compression=1100, stored=2)
    with pytest.raises(ScanError, match=r"promises 2000 bytes of voxels, the file has 1$"):
        check_size(PATH, (10, 10, 10), 2, compression=1100, stored=1)
    with pytest.raises(ScanError, match="every size must be at least 1"):
        check_size(PATH, (10, 0, 10), 2, compression=1100, stored=1)


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, np.inf])
def test_spacings(spacing: float) -> None:
    check_spacing(PATH, (1, 2, 3))
    with pytest.raises(ScanError, match="voxel spacing must be positive and finite"):
        check_spacing(PATH, (1, spacing, 3))


@pytest.mark.parametrize("edge", [5e-5, 1e-3, 1.0, 99.0])
def test_voxels_that_scanners_make(edge: float) -> None:
    check_grid(PATH, Grid.from_spacing((5, 5, 5), (edge, 1, 1)))


@pytest.mark.parametrize("edge", [1e-30, 1e-6, 101.0, 1e30])
def test_voxels_that_none_makes(edge: float) -> None:
    with pytest.raises(ScanError, match=r"a\.nii: voxels of 1 x \S+ x 1 mm; 1e-05 to 100 mm are read"):
        check_grid(PATH, Grid.from_spacing((5, 5, 5), (1, edge, 1)))


def test_a_place_out_of_this_world() -> None:
    check_grid(PATH, Grid.from_spacing((5, 5, 5), (1, 1, 1), (0, 9e5, 0)))
    assert implausible(Grid.from_spacing((5, 5, 5), (1, 1, 1), (0, 9e5, 0))) == ""
    with pytest.raises(ScanError, match=r"a\.nii: lies 1e\+12 mm from the world's origin"):
        check_grid(PATH, Grid.from_spacing((5, 5, 5), (1, 1, 1), (0, 1e12, 0)))
