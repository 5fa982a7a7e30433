"""Grids in DICOM's terms and back."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.dicom_annotations import ORIENTATIONS, grid_of
from zoomseg.io.dicom import coordinates


def test_left_and_back_are_positive_in_dicom() -> None:
    points = np.array([[1.0, 2.0, 3.0], [-4.0, 5.0, -6.0]])
    assert coordinates.lps(points).tolist() == [[-1, -2, 3], [4, -5, -6]]
    assert coordinates.lps(coordinates.lps(points)).tolist() == points.tolist()


def test_an_axial_grid_in_dicoms_words() -> None:
    grid = grid_of("axial")
    assert coordinates.in_plane_directions(grid) == (1, 0, 0, 0, 1, 0)
    positions = coordinates.plane_positions(grid)
    assert positions[:2].tolist() == [[-31.25, 17.5, 103.0], [-31.25, 17.5, 105.5]]
    assert len(positions) == 9


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_is_written_of_a_plane_leads_back_to_its_voxels(orientation: str) -> None:
    grid = grid_of(orientation)  # 0.8 mm between columns, 1.1 mm between rows
    position = coordinates.plane_positions(grid)[4]
    affine = coordinates.slice_affine(coordinates.in_plane_directions(grid), (1.1, 0.8), position.tolist())
    at = np.array([[0, 0, 1], [15, 0, 1], [0, 11, 1], [3.5, 7.25, 1]])
    assert (at @ affine.T)[:, 3].tolist() == [1, 1, 1, 1]
    expected = grid.world([(0, 0, 4), (15, 0, 4), (0, 11, 4), (3.5, 7.25, 4)])
    np.testing.assert_allclose((at @ affine.T)[:, :3], expected, atol=1e-12)
