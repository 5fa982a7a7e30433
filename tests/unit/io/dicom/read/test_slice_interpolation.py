"""Slices between contoured ones: which are interpolated, and how."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.slice_interpolation import MAX_STEP_MM, Between, between

Mask = npt.NDArray[np.bool_]
SHAPE = (60, 50)
SPACING = np.array([0.5, 0.8, 2.0])


def disc(radius_mm: float, centre_mm: tuple[float, float] = (15.0, 20.0)) -> npt.NDArray[np.int64]:
    i, j = np.mgrid[: SHAPE[0], : SHAPE[1]]
    inside = np.hypot(i * SPACING[0] - centre_mm[0], j * SPACING[1] - centre_mm[1]) < radius_mm
    return np.flatnonzero(inside)


def found(drawn: Mapping[int, npt.NDArray[np.int64]], slice_mm: float = 2.0) -> Between:
    return between("A", drawn, SHAPE, np.array([*SPACING[:2], slice_mm]))


def area_mm2(voxels: npt.NDArray[np.int64]) -> float:
    return float(voxels.size * SPACING[0] * SPACING[1])


def test_equal_discs_give_the_same_disc() -> None:
    result = found({k: disc(8) for k in (4, 6, 8)})
    assert set(result.voxels) == {5, 7}
    for voxels in result.voxels.values():
        assert np.array_equal(voxels, disc(8))
    assert result.notes == ("structure 'A' is drawn on one slice in 2; slices interpolated between: 2",)


def test_a_cone_s_radius_grows_evenly() -> None:
    result = found({0: disc(4), 4: disc(12), 8: disc(4)})
    for k, radius in ((1, 6), (2, 8), (3, 10), (5, 10), (6, 8), (7, 6)):
        measured = np.sqrt(area_mm2(result.voxels[k]) / np.pi)
        assert measured == pytest.approx(radius, abs=0.35), k  # less than a voxel


def test_a_slanted_tube_is_followed() -> None:
    result = found({k: disc(6, (12.0 + k, 20.0)) for k in (0, 3, 6)})
    for k in (1, 2, 4, 5):
        i, j = np.unravel_index(result.voxels[k], SHAPE)
        assert i.mean() * SPACING[0] == pytest.approx(12 + k, abs=0.5)
        assert j.mean() * SPACING[1] == pytest.approx(20, abs=0.1)


def test_a_ring_stays_a_ring() -> None:
    ring = np.setdiff1d(disc(10), disc(4))
    assert np.array_equal(found({1: ring, 3: ring, 5: ring}).voxels[2], ring)


@pytest.mark.parametrize(
    ("planes", "filled", "left"),
    [
        ((3, 4, 5), set(), 0),
        ((3,), set(), 0),
        ((3, 5), {4}, 0),
        ((3, 4, 5, 7, 8), set(), 1),  # contoured in every slice: the gap may be intended
        ((3, 5, 7, 8), {4, 6}, 0),
        ((3, 5, 7, 10, 12), {4, 6, 11}, 2),
        ((3, 5, 7, 30, 32), {4, 6, 31}, 0),  # two parts
        ((0, 5, 10), {1, 2, 3, 4, 6, 7, 8, 9}, 0),  # 10 mm
    ],
)
def test_only_gaps_that_repeat_are_filled(planes: tuple[int, ...], filled: set[int], left: int) -> None:
    result = found({k: disc(8) for k in planes})
    assert set(result.voxels) == filled
    told = f"structure 'A' has gaps between its contours; slices left empty: {left}"
    assert (told in result.notes) == bool(left)
    assert len(result.notes) == bool(filled) + bool(left)


def test_contours_too_far_apart_throughout_are_refused() -> None:
    with pytest.raises(ScanError, match=f"'A' is drawn on slices 10.5 mm apart; at most {MAX_STEP_MM:g} mm"):
        found({0: disc(8), 7: disc(8), 14: disc(8)}, slice_mm=1.5)
    assert not found({0: disc(8), 7: disc(8)}, slice_mm=1.5).voxels, "two lesions"


def test_where_neighbours_lie_apart_nothing_is_made_up() -> None:
    result = found({k: disc(3, (5.0 + 10 * (k // 2), 20.0)) for k in (0, 2, 4)})
    assert not result.voxels
    assert result.notes == (
        "structure 'A' is drawn on one slice in 2; slices interpolated between: 2, of them empty, as the "
        "contours on both sides do not overlap: 2",
    )
    nothing = np.empty(0, dtype=np.int64)
    assert not found({0: disc(8), 2: nothing, 4: disc(8)}).voxels


def signed_distance(voxels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """In double precision."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask.flat[voxels] = True
    spacing = tuple(SPACING[:2])
    inside: npt.NDArray[np.float64] = ndimage.distance_transform_edt(mask, spacing)
    return inside - ndimage.distance_transform_edt(~mask, spacing)


@pytest.mark.parametrize("step", [2, 3, 5])
def test_single_precision_decides_as_double_precision_does(step: int) -> None:
    """Including positions where the mean of two distances is zero, which is outside."""
    ties = 0
    for radius in (3.0, 4.5, 6.0, 7.25):
        before, after = disc(radius, (15.0, 16.0)), disc(radius, (15.0, 16.0 + 0.8 * 4))
        result = found({0: before, step: after, 2 * step: before})
        for k in range(1, step):
            mean = (1 - k / step) * signed_distance(before) + k / step * signed_distance(after)
            ties += int((np.abs(mean) < 1e-9).sum())
            assert np.array_equal(result.voxels[k], np.flatnonzero(mean > 1e-9))
    assert ties > 10
