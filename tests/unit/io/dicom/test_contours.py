"""Outlines are filled by a rasteriser of another library, matplotlib's paths, and must give the mask back."""

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.path import Path as Polygon

from zoomseg.io.dicom.contours import filled, outlines

Mask = npt.NDArray[np.bool_]


def filled_by_matplotlib(polygons: list[npt.NDArray[np.float64]], shape: tuple[int, int]) -> Mask:
    points = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 2)
    inside = np.zeros(len(points), dtype=bool)
    for polygon in polygons:
        inside ^= Polygon(np.concatenate([polygon, polygon[:1]]), closed=True).contains_points(points)
    return inside.reshape(shape)


def area(polygon: npt.NDArray[np.float64]) -> float:
    x, y = polygon.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def mask_of(text: str) -> Mask:
    return np.array([[c == "#" for c in line] for line in text.split()]).T


SHAPES = {
    "one voxel": "#",
    "at the border": "### #.. ###",
    "hole": "##### #...# #.#.# #...# #####",
    "two holes in a row": "####### #.#.#.# #######",
    "holes one above the other": "##### ##.## ##### ##.## #####",
    "hole touching a corner of the outside": "#### #.## ##.# ####",
    "diagonal": "#.. .#. ..#",
    "island in a hole": "####### #.....# #.###.# #.#.#.# #.###.# #.....# #######",
}


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES.keys())
def test_filling_the_outlines_gives_the_mask_back(text: str) -> None:
    mask = mask_of(text)
    polygons = list(outlines(mask))
    assert (filled_by_matplotlib(polygons, mask.shape) == mask).all()
    assert (filled(polygons, mask.shape) == mask).all()


@pytest.mark.parametrize("seed", range(30))
def test_random_masks_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((23, 17)) < rng.uniform(0.1, 0.9)
    polygons = list(outlines(mask))
    assert (filled_by_matplotlib(polygons, mask.shape) == mask).all()
    assert (filled(polygons, mask.shape) == mask).all()


def test_nothing_has_no_outline() -> None:
    assert list(outlines(np.zeros((4, 5), dtype=bool))) == []
    assert not filled([], (4, 5)).any()


def test_a_rectangle_has_eight_corners_half_a_voxel_outside() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:6, 3:5] = True
    (polygon,) = outlines(mask)
    assert len(polygon) == 8
    assert (polygon.min(axis=0) == [1.5, 2.5]).all()
    assert (polygon.max(axis=0) == [5.5, 4.5]).all()
    assert area(polygon) == 4 * 2 - 0.5


def test_a_hole_is_part_of_its_outlines_polygon() -> None:
    mask = mask_of(SHAPES["hole"])
    mask[2, 2] = False
    (polygon,) = outlines(mask)
    assert area(polygon) == (25 - 0.5) - (9 - 0.5)


def test_a_polygon_in_another_is_a_hole_and_beyond_the_slice_is_cut() -> None:
    square = np.array([[-3.0, -3.0], [20.0, -3.0], [20.0, 20.0], [-3.0, 20.0]])
    inner = np.array([[1.5, 1.5], [3.5, 1.5], [3.5, 4.5], [1.5, 4.5]])
    mask = filled([square, inner], (6, 7))
    expected = np.ones((6, 7), dtype=bool)
    expected[2:4, 2:5] = False
    assert (mask == expected).all()


def test_polygons_of_many_points_are_filled_in_shares_alike() -> None:
    angles = np.linspace(0, 2 * np.pi, 30_000, endpoint=False)
    circle = np.stack([20 + 12.3 * np.cos(angles), 21 + 12.3 * np.sin(angles)], axis=1)
    i, j = np.mgrid[:40, :40]
    assert (filled([circle], (40, 40)) == (np.hypot(i - 20, j - 21) < 12.3)).all()
