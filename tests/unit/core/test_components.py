from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zoomseg.core.components import largest_component


@pytest.mark.parametrize(("connectivity", "order"), [(6, 1), (18, 2), (26, 3)])
def test_the_largest_component_as_scipy_finds_it(connectivity: int, order: int) -> None:
    rng = np.random.default_rng(0)
    sparse = rng.random((14, 12, 10)) < {6: 0.25, 18: 0.08, 26: 0.06}[connectivity]
    components, count = ndimage.label(sparse, ndimage.generate_binary_structure(3, order))
    sizes = np.bincount(components.ravel())[1:]
    assert count > 20
    assert np.sort(sizes)[-1] > np.sort(sizes)[-2]
    found = largest_component(sparse, connectivity)  # type: ignore[arg-type]
    assert np.array_equal(found, components == 1 + sizes.argmax())


def test_corners_connect_unless_faces_are_asked_for() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 0] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert largest_component(mask, connectivity=6).sum() == 1


def test_nothing_and_everything() -> None:
    assert not largest_component(np.zeros((3, 3, 3), dtype=bool)).any()
    assert largest_component(np.ones((3, 3, 3), dtype=bool)).all()
