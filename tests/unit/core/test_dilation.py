"""Masks grown by a ball, beside exact distances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zoomseg.core.dilation import dilated


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5, 3.0, 4.29])
def test_dilation_is_by_a_ball(radius: float) -> None:
    mask = np.random.default_rng(0).random((15, 12, 9)) < 0.01
    assert mask.any()
    expected = ndimage.distance_transform_edt(~mask) <= radius
    assert np.array_equal(dilated(mask, radius), expected)
