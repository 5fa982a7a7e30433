"""Grids in DICOM's terms: LPS+ millimetres, positions of planes, directions along rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoomseg.core.geometry import LPS_TO_RAS, FloatArray, Grid


def lps(points_ras: FloatArray) -> FloatArray:
    """RAS+ millimetres ``[..., 3]`` to DICOM's LPS+, and back."""
    return points_ras * LPS_TO_RAS.diagonal()[:3]


def plane_positions(grid: Grid) -> FloatArray:
    """``[K, 3]``: centre of each plane's first voxel, LPS+ millimetres."""
    return lps(grid.world([(0, 0, k) for k in range(grid.shape[2])]))


def in_plane_directions(grid: Grid) -> tuple[float, ...]:
    """Image Orientation (Patient): unit vectors along a row (axis i) and down a column (axis j), LPS+."""
    columns = lps(grid.affine[:3, :2].T) / np.array(grid.spacing_mm[:2])[:, None]
    return tuple(float(c) for c in columns.ravel())


def slice_affine(
    orientation: Sequence[float], spacing: Sequence[float], position: Sequence[float]
) -> FloatArray:
    """``[4, 3]``: from (column, row, 1) of a slice to RAS+ millimetres, from Image Orientation and Position
    (Patient) and Pixel Spacing (which has the distance between rows first)."""
    affine = np.zeros((4, 3))
    directions = np.array(orientation, dtype=np.float64).reshape(2, 3)
    affine[:3, 0] = lps(directions[0] * float(spacing[1]))
    affine[:3, 1] = lps(directions[1] * float(spacing[0]))
    affine[:3, 2] = lps(np.array(position, dtype=np.float64))
    affine[3, 2] = 1
    return affine
