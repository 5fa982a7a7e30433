"""Organs of known shape: size, position, intensity, and what the scan cuts off."""

from __future__ import annotations

import numpy as np
import pytest

from zoomseg.anatomy.measurements import OrganMeasurement, measure
from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume

GRID = Grid.from_spacing((8, 9, 10), (2.0, 2.5, 4.0), (10.0, 20.0, 30.0))
SCHEMA = LabelSchema(("liver", "spleen", "aorta"), (6, 1, 8))


def scan() -> tuple[LabelMap, Volume]:
    classes = np.zeros(GRID.shape, dtype=np.uint8)
    classes[2:4, 2:5, 2:7] = 1
    classes[5:7, 5:7, 8:] = 3
    image = np.arange(GRID.box.voxels, dtype=np.float32).reshape(1, *GRID.shape) ** 2
    return LabelMap(classes, GRID, SCHEMA), Volume(image, GRID)


def test_values() -> None:
    labels, image = scan()
    found = measure("a", labels, image, SCHEMA.names)
    assert list(found) == ["liver", "aorta"]
    liver = image.data[0, 2:4, 2:5, 2:7]
    assert found["liver"] == OrganMeasurement(
        voxels=30,
        volume_ml=pytest.approx(0.6),
        mean=pytest.approx(float(liver.mean(dtype=np.float64))),
        median=float(np.median(liver)),
        box=Box((2, 2, 2), (4, 5, 7)),
        corners_mm=(pytest.approx((13.0, 23.75, 36.0)), pytest.approx((17.0, 31.25, 56.0))),
        centroid_mm=pytest.approx((15.0, 27.5, 46.0)),
    )
    assert found["aorta"].touches_scan_border
    assert found["aorta"].cut == ((False, False), (False, False), (False, True))


@pytest.mark.parametrize("voxels", [1, 2, 5, 6])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_median_of_few(voxels: int, dtype: type) -> None:
    grid = Grid.from_spacing((1, 1, 8), (1.0, 1.0, 1.0))
    data = np.array([7, 1, 200, 3, 9, 4, 250, 251]).reshape(1, 1, 1, 8).astype(dtype)
    classes = (np.arange(8) < voxels).astype(np.uint8).reshape(1, 1, 8)
    found = measure("a", LabelMap(classes, grid, SCHEMA), Volume(data, grid), ["liver"])
    assert found["liver"].median == float(np.median(data.ravel()[:voxels]))
    assert found["liver"].mean == pytest.approx(float(data.astype(np.float64).ravel()[:voxels].mean()))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("flip", [(), (0,), (0, 1, 2)])
def test_every_side_is_told_apart_however_the_scan_is_stored(
    axis: int, side: int, flip: tuple[int, ...]
) -> None:
    """A voxel at one end of an axis that, stored in reverse, is the patient's other end."""
    affine = GRID.affine.copy()
    for a in flip:
        affine[a, a] *= -1
    grid = Grid(GRID.shape, affine)
    at = [4, 4, 4]
    at[axis] = -side
    classes = np.zeros(GRID.shape, dtype=np.uint8)
    classes[tuple(at)] = 2
    found = measure("a", LabelMap(classes, grid, SCHEMA), Volume(scan()[1].data, grid), ["spleen"])["spleen"]
    expected = [[False, False] for _ in range(3)]
    expected[axis][side if axis not in flip else 1 - side] = True
    assert found.cut == tuple(tuple(pair) for pair in expected)
    assert found.centroid_mm == pytest.approx(grid.world(np.array(at) % GRID.shape))


def test_turned_axes() -> None:
    """A scan stored with its axes in another order gives the same measurements."""
    labels, image = scan()
    turn = np.eye(4)[[2, 0, 1, 3]]  # new axes k, i, j
    grid = Grid((10, 8, 9), GRID.affine @ turn.T)
    other = (
        LabelMap(labels.data.transpose(2, 0, 1), grid, SCHEMA),
        Volume(image.data.transpose(0, 3, 1, 2), grid),
    )
    here, there = (measure("a", *both, SCHEMA.names) for both in ((labels, image), other))
    for organ in here:
        a, b = here[organ], there[organ]
        assert (a.mean, a.median, a.cut) == (pytest.approx(b.mean), b.median, b.cut)
        assert a.centroid_mm == pytest.approx(b.centroid_mm)
        assert np.array(a.corners_mm) == pytest.approx(np.array(b.corners_mm))
    assert there["liver"].box == Box((2, 2, 2), (7, 4, 5))


@pytest.mark.parametrize("lying", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("image_too", [False, True])
def test_how_arrays_lie_in_memory_does_not_matter(lying: tuple[int, int, int], image_too: bool) -> None:
    labels, image = scan()
    back = tuple(np.argsort(lying))
    turned = LabelMap(np.ascontiguousarray(labels.data.transpose(lying)).transpose(back), GRID, SCHEMA)
    intensities = image.data
    if image_too:
        intensities = np.ascontiguousarray(image.data[0].transpose(lying)).transpose(back)[None]
    assert turned.data.strides != labels.data.strides
    expected = measure("a", labels, image, SCHEMA.names)
    assert measure("a", turned, Volume(intensities, GRID), SCHEMA.names) == expected


def test_the_scan_is_left_as_it_is() -> None:
    """The median reorders values: those of its own copy, not the scan's."""
    image = scan()[1]
    before = image.data.copy()
    whole = LabelMap(np.ones(GRID.shape, dtype=np.uint8), GRID, SCHEMA)
    measure("a", whole, image, ["liver"])
    assert np.array_equal(image.data, before)


def test_sums_do_not_lose_precision() -> None:
    """A million voxels of 1000.1 summed in float32 would be off in the fourth digit."""
    grid = Grid.from_spacing((100, 100, 100), (1.0, 1.0, 1.0))
    labels = LabelMap(np.ones(grid.shape, dtype=np.uint8), grid, SCHEMA)
    found = measure(
        "a", labels, Volume(np.full((1, *grid.shape), 1000.1, dtype=np.float32), grid), ["liver"]
    )["liver"]
    assert found.mean == pytest.approx(float(np.float32(1000.1)), abs=1e-6)


def test_an_oblique_box_holds_its_corners() -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    grid = Grid((10, 10, 10), turn)
    classes = np.zeros(grid.shape, dtype=np.uint8)
    classes[0, 0, 0] = 1
    found = measure(
        "a",
        LabelMap(classes, grid, SCHEMA),
        Volume(np.zeros((1, 10, 10, 10), dtype=np.float32), grid),
        ["liver"],
    )
    assert np.array(found["liver"].corners_mm) == pytest.approx(
        np.array([[-0.7, -0.7, -0.5], [0.7, 0.7, 0.5]])
    )


def test_other_grid_is_refused() -> None:
    labels, image = scan()
    shifted = Volume(image.data, Grid.from_spacing(GRID.shape, GRID.spacing_mm, (5.0, 0.0, 0.0)))
    with pytest.raises(GeometryError, match="case a: labels and image lie on different grids"):
        measure("a", labels, shifted, ["liver"])
