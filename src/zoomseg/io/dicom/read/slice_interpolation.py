"""Slices between the contoured ones of a structure: clinics often contour every second or third slice.

Shape-based interpolation (Raya and Udupa, IEEE Trans. Med. Imaging 9(1), 1990, 32-42): the signed distances
to the outlines on both sides are averaged, and the structure is where the mean lies inside. Only regular gaps
are filled, only within the structure's own range, and only over short distances: any other gap may be
intended.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import edt
import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import FloatArray

Mask = npt.NDArray[np.bool_]
InSlice = npt.NDArray[np.int64]
"""Voxels of a slice as sorted indices into its flattened (C order) array."""

MAX_STEP_MM = 10.0
"""Maximum distance of contours for interpolation."""

ROUNDING = 1e-6
"""Relative error of distances, which are float32; a mean of two lies inside if it exceeds this."""


@dataclass(frozen=True, eq=False)
class Between:
    """Voxels of interpolated slices, by k; and notes on these and on other gaps."""

    voxels: Mapping[int, InSlice]
    notes: tuple[str, ...] = ()


def between(
    name: str, drawn: Mapping[int, InSlice], shape: tuple[int, int], spacing_mm: FloatArray
) -> Between:
    """The slices between the contoured ones, for a structure contoured on every second, third ... slice.

    Args:
        name: of the structure, for notes.
        drawn: voxels of the slices with contours, by k.
        shape: of a slice, ``[I, J]``.
        spacing_mm: along i, j and k.

    Raises:
        ScanError: its contours are all so far apart that most of it is missing.
    """
    planes, thickness = sorted(drawn), float(spacing_mm[2])
    gaps = list(itertools.pairwise(planes))
    step, often = _commonest([after - before for before, after in gaps])
    if step * thickness > MAX_STEP_MM and often > 1:
        raise ScanError(
            f"'{name}' is drawn on slices {step * thickness:.3g} mm apart; at most {MAX_STEP_MM:g} mm are "
            "interpolated"
        )
    widest = min(step, int(MAX_STEP_MM / thickness))
    found = {
        k: _weighted(drawn[before], drawn[after], (k - before) / (after - before), shape, spacing_mm)
        for before, after in gaps
        if after - before <= widest
        for k in range(before + 1, after)
    }
    notes = [_note(name, step, found)] if found else []
    left = sum(b - a - 1 for a, b in gaps if b - a > max(widest, 1) and (b - a) * thickness <= MAX_STEP_MM)
    if left:
        notes.append(f"structure '{name}' has gaps between its contours; slices left empty: {left}")
    return Between({k: voxels for k, voxels in found.items() if voxels.size}, tuple(notes))


def _commonest(gaps: list[int]) -> tuple[int, int]:
    """The most frequent step between contoured slices, the smallest of several; and its frequency."""
    steps, counts = np.unique(np.array(gaps or [1]), return_counts=True)
    at = int(counts.argmax())
    return int(steps[at]), int(counts[at])


def _note(name: str, step: int, found: Mapping[int, InSlice]) -> str:
    empty = sum(not voxels.size for voxels in found.values())
    return (
        f"structure '{name}' is drawn on one slice in {step}; slices interpolated between: {len(found)}"
        + (f", of them empty, as the contours on both sides do not overlap: {empty}" if empty else "")
    )


def _weighted(
    before: InSlice, after: InSlice, weight: float, shape: tuple[int, int], spacing_mm: FloatArray
) -> InSlice:
    """Voxels where the mean of both signed distances, with ``weight`` for that of ``after``, lies inside."""
    if not (before.size and after.size):
        return np.empty(0, dtype=np.int64)
    i, j = np.unravel_index(np.concatenate([before, after]), shape)
    low, size = (int(i.min()), int(j.min())), (int(np.ptp(i)) + 1, int(np.ptp(j)) + 1)
    distances = [_signed_distance(voxels, shape, low, size, spacing_mm[:2]) for voxels in (before, after)]
    parts = (1 - weight) * distances[0], weight * distances[1]
    row, column = np.nonzero(sum(parts) > ROUNDING * sum(map(np.abs, parts)))
    return (row + low[0]) * shape[1] + column + low[1]


def _signed_distance(
    voxels: InSlice, shape: tuple[int, int], low: tuple[int, int], size: tuple[int, int], spacing: FloatArray
) -> FloatArray:
    """Millimetres from each voxel of a part of the slice to the nearest one on the other side of the outline,
    positive inside."""
    i, j = np.unravel_index(voxels, shape)
    mask = np.zeros((size[0] + 2, size[1] + 2), dtype=bool)
    mask[i - low[0] + 1, j - low[1] + 1] = True
    inside, outside = (edt.edt(part, anisotropy=tuple(spacing)) for part in (mask, ~mask))
    signed: FloatArray = (inside - outside)[1:-1, 1:-1]
    return signed
