from __future__ import annotations

import numpy as np
import pytest

from zoomseg.core.weights import linear_weights


def test_between_two_voxels() -> None:
    found = linear_weights(4, 3, 1.0, 0.25, antialias=True)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.75, 0.25, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0.75, 0.25]]


def test_shrinking_by_a_fraction_keeps_the_mean_position() -> None:
    found = linear_weights(40, 5, 2.3, 15.0, antialias=True).astype(np.float64)
    assert found.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert found @ np.arange(40) == pytest.approx(15.0 + 2.3 * np.arange(5), abs=1e-5)
