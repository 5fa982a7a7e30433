"""Limits on headers: nothing larger is allocated, and no geometry beyond them is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Grid

MAX_VOXELS = 4 * 1024**3
"""Maximum number of voxels (all channels together)."""

MAX_DEFLATION = 1100
"""Deflate compresses at most 1032 bytes into one; headers that claim more are wrong."""

MAX_BZIP2 = 2_000_000
"""Likewise of bzip2, which compresses a block of 46 million zeros to fewer than 50 bytes."""

MIN_VOXEL_MM = 1e-5
MAX_VOXEL_MM = 1e2
"""Maximum edge of voxels. Synchrotrons resolve 25 nanometres, and clinical slices are about 10 mm thick;
values outside are in a wrong unit, or not intended."""

MAX_DISTANCE_MM = 1e6
"""Maximum distance of a voxel from the world's origin: no scanner's coordinates reach as far; values beyond
are in a wrong unit, or not intended."""


def check_size(
    path: Path, shape: tuple[int, ...], voxel_bytes: int, compression: int, stored: int, offset: int = 0
) -> None:
    """Refuse headers that claim more than the file can contain, before anything is allocated.

    Args:
        compression: maximum number of bytes in one byte of the file; 1 if it is not compressed.
        stored: bytes of the file.
        offset: start of its voxels; in the inflated data, if it is compressed.

    Raises:
        ScanError: a size below 1, too many voxels, or more than the file contains.
    """
    if min(shape) < 1:
        raise ScanError(f"{path}: header gives the shape {shape}; every size must be at least 1")
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise ScanError(f"{path}: header promises {voxels} voxels; at most {MAX_VOXELS} are read")
    needed = voxels * voxel_bytes
    if offset + needed > stored * compression:
        declared = f"{needed} bytes of voxels" + f" from byte {offset} on" * bool(offset)
        raise ScanError(f"{path}: truncated; header promises {declared}, the file has {stored}")


def check_spacing(path: Path, spacing_mm: Sequence[float]) -> None:
    """Refuse edges of voxels that are not positive numbers.

    Raises:
        ScanError: zero, negative, NaN or infinite.
    """
    if not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        got = [float(s) for s in spacing_mm]
        raise ScanError(f"{path}: voxel spacing must be positive and finite, got {got} mm")


def check_grid(path: Path, grid: Grid) -> None:
    """Refuse an implausible grid.

    Raises:
        ScanError: as ``implausible`` says.
    """
    wrong = implausible(grid)
    if wrong:
        raise ScanError(f"{path}: {wrong}")


def implausible(grid: Grid) -> str:
    """The reason why a grid is not read: an edge of its voxels is not within ``MIN_VOXEL_MM`` and
    ``MAX_VOXEL_MM``, or a corner is farther away than ``MAX_DISTANCE_MM``; empty if there is none."""
    edges = grid.spacing_mm
    if not MIN_VOXEL_MM <= min(edges) <= max(edges) <= MAX_VOXEL_MM:
        got = " x ".join(f"{edge:.6g}" for edge in edges)
        allowed = f"{MIN_VOXEL_MM:g} to {MAX_VOXEL_MM:g} mm are read"
        return f"voxels of {got} mm; {allowed}; are the unit and the spacing right?"
    corners = grid.world(np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1))
    if np.abs(corners).max() > MAX_DISTANCE_MM:
        far = f"{np.abs(corners).max():.6g} mm from the world's origin"
        return f"lies {far}; up to {MAX_DISTANCE_MM:g} mm are read; is its position right?"
    return ""
