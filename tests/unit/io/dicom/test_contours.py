"""Outlines are filled by a rasteriser of another library, matplotlib's paths, which must recover the mask."""

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.path import Path as Polygon

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom import contours
from zoomseg.io.dicom.contours import fill_contours, outlines, xor_mask

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
    assert (xor_mask(polygons, mask.shape) == mask).all()
    found = fill_contours(polygons, mask.shape)
    assert (found.mask == mask).all()
    assert (found.copies, found.overlapping) == (0, False)


@pytest.mark.parametrize("seed", range(30))
def test_random_masks_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((23, 17)) < rng.uniform(0.1, 0.9)
    polygons = list(outlines(mask))
    assert (filled_by_matplotlib(polygons, mask.shape) == mask).all()
    assert (xor_mask(polygons, mask.shape) == mask).all()
    found = fill_contours(polygons, mask.shape)
    assert (found.mask == mask).all()
    assert (found.copies, found.overlapping) == (0, False)


def test_nothing_has_no_outline() -> None:
    assert list(outlines(np.zeros((4, 5), dtype=bool))) == []
    assert not xor_mask([], (4, 5)).any()


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
    mask = xor_mask([square, inner], (6, 7))
    expected = np.ones((6, 7), dtype=bool)
    expected[2:4, 2:5] = False
    assert (mask == expected).all()


def test_polygons_of_many_points_are_filled_in_shares_alike() -> None:
    angles = np.linspace(0, 2 * np.pi, 30_000, endpoint=False)
    circle = np.stack([20 + 12.3 * np.cos(angles), 21 + 12.3 * np.sin(angles)], axis=1)
    i, j = np.mgrid[:40, :40]
    assert (xor_mask([circle], (40, 40)) == (np.hypot(i - 20, j - 21) < 12.3)).all()


# --- what others drew -----------------------------------------------------------------------------

SHAPE = (14, 13)


def box(i: tuple[float, float], j: tuple[float, float]) -> npt.NDArray[np.float64]:
    return np.array([(i[0], j[0]), (i[1], j[0]), (i[1], j[1]), (i[0], j[1])])


def voxels(*parts: tuple[slice, slice]) -> Mask:
    mask = np.zeros(SHAPE, dtype=bool)
    for part in parts:
        mask[part] = True
    return mask


WIDE = box((0.5, 10.5), (0.5, 10.5))
WIDE_VOXELS = voxels((slice(1, 11), slice(1, 11)))
INNER = box((2.5, 8.5), (2.5, 8.5))
INNER_VOXELS = voxels((slice(3, 9), slice(3, 9)))
CORE = box((4.5, 6.5), (4.5, 6.5))
CORE_VOXELS = voxels((slice(5, 7), slice(5, 7)))
RIGHT = box((6.6, 12.4), (0.6, 10.4))
RIGHT_VOXELS = voxels((slice(7, 13), slice(1, 11)))
SHORT = box((0.5, 10.5), (0.5, 8.5))

DRAWINGS: dict[str, tuple[list[npt.NDArray[np.float64]], Mask, int, bool]] = {
    "one": ([WIDE], WIDE_VOXELS, 0, False),
    "ring": ([INNER, WIDE], WIDE_VOXELS & ~INNER_VOXELS, 0, False),
    "island in a ring": ([CORE, WIDE, INNER], WIDE_VOXELS & ~INNER_VOXELS | CORE_VOXELS, 0, False),
    "twice": ([WIDE, WIDE[::-1]], WIDE_VOXELS, 1, False),
    "ring, all of it twice": ([WIDE, INNER, INNER, WIDE], WIDE_VOXELS & ~INNER_VOXELS, 2, False),
    "partly over each other": ([WIDE, RIGHT], WIDE_VOXELS | RIGHT_VOXELS, 0, True),
    "hole in one, and another over it": (
        [WIDE, INNER, RIGHT],
        WIDE_VOXELS & ~INNER_VOXELS | RIGHT_VOXELS,
        0,
        True,
    ),
    "hole in two that overlap": (
        [WIDE, box((0.5, 11.5), (0.5, 9.5)), CORE],
        voxels((slice(1, 11), slice(1, 11)), (slice(1, 12), slice(1, 10))) & ~CORE_VOXELS,
        0,
        True,
    ),
    "touching from within": ([WIDE, SHORT], WIDE_VOXELS, 0, True),
    "side by side": (
        [box((0.5, 4.5), (0.5, 4.5)), box((4.5, 8.5), (0.5, 4.5))],
        voxels((slice(1, 9), slice(1, 5))),
        0,
        False,
    ),
    "thin wall": (
        [WIDE, box((0.6, 10.4), (1.5, 9.5))],
        voxels((slice(1, 11), slice(1, 2)), (slice(1, 11), slice(10, 11))),
        0,
        False,
    ),
    "between the voxels": ([WIDE, box((3.1, 3.9), (3.1, 3.9))], WIDE_VOXELS, 0, False),
    "far beyond": ([box((-99.0, 99.0), (-99.0, 99.0)), INNER], ~INNER_VOXELS, 0, False),
}


@pytest.mark.parametrize(
    ("polygons", "mask", "copies", "overlapping"), DRAWINGS.values(), ids=DRAWINGS.keys()
)
def test_several_contours_in_a_slice(
    polygons: list[npt.NDArray[np.float64]], mask: Mask, copies: int, overlapping: bool
) -> None:
    for ordered in (polygons, polygons[::-1]):
        found = fill_contours(ordered, SHAPE)
        assert (found.mask == mask).all()
        assert (found.copies, found.overlapping) == (copies, overlapping)


def test_contours_wholly_within_the_next_alternate_however_many() -> None:
    squares = [box((n + 0.5, 24.5 - n), (n + 0.5, 24.5 - n)) for n in range(12)]
    i, j = np.mgrid[:26, :26]
    depth = np.minimum(np.minimum(i, j), np.minimum(25 - i, 25 - j))
    assert (fill_contours(squares, (26, 26)).mask == ((depth > 0) & (depth % 2 == 1))).all()
    assert (xor_mask(squares, (26, 26)) == ((depth > 0) & (depth % 2 == 1))).all()


def test_a_contour_of_too_many_crossings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contours, "MAX_CROSSINGS", 19)
    with pytest.raises(ScanError, match="crosses the rows of its slice over 19 times"):
        fill_contours([WIDE], SHAPE)
    monkeypatch.setattr(contours, "MAX_CROSSINGS", 20)
    assert (fill_contours([WIDE], SHAPE).mask == WIDE_VOXELS).all()
