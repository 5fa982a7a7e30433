from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.errors import GeometryError
from zoomseg.core.weights import MAX_TAPS, linear_weights


def test_between_two_voxels() -> None:
    found = linear_weights(4, 3, 1.0, 0.25, antialias=True)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.75, 0.25, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0.75, 0.25]]


def test_shrinking_by_a_fraction_keeps_the_mean_position() -> None:
    found = linear_weights(40, 5, 2.3, 15.0, antialias=True).astype(np.float64)
    assert found.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert found @ np.arange(40) == pytest.approx(15.0 + 2.3 * np.arange(5), abs=1e-5)


@pytest.mark.parametrize("voxel_mm", [1e-6, 1e-7, 1e-30])
def test_a_source_far_smaller_than_a_voxel_of_the_target_is_refused_unallocated(voxel_mm: float) -> None:
    """Gigabytes for a scan of 24 voxels otherwise."""
    with pytest.raises(
        GeometryError, match=r"too small for the model's grid: one voxel .* covers 4e\+.* of its 24"
    ):
        linear_weights(24, 2, 4 / voxel_mm, 0.0, antialias=True)


@pytest.mark.parametrize("size", [1, 24, 4096])
def test_sources_of_any_size_that_fill_a_voxel_of_the_target_are_none_of_these(size: int) -> None:
    """Taps are at most four for each voxel of either grid."""
    for scale in (1 / 8, 1.0, 7.3, float(size)):
        count = -(-size // max(1, int(scale))) if scale >= 1 else size * 8
        assert count * (2 * scale + 4) < MAX_TAPS
        assert linear_weights(size, min(count, 64), scale, 0.0, antialias=True).sum() == pytest.approx(
            min(count, 64)
        )
