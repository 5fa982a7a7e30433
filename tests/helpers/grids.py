"""Grids, boxes and fields for tests of geometry and interpolation.

A ramp is a volume whose three channels hold each voxel's own world coordinates (mm): whatever
resampling does to it, the values must still be the new voxels' coordinates.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from zoomseg.core import resample
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.volume import Volume

SIGNED_PERMUTATIONS = [
    (order, flip)
    for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for flip in np.ndindex(2, 2, 2)
]


def indices(grid: Grid) -> np.ndarray:
    """``[I, J, K, 3]`` voxel indices."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)


def centre_mm(grid: Grid) -> np.ndarray:
    """World coordinates of the field of view's centre."""
    return grid.world((np.array(grid.shape) - 1) / 2)


def ramp(grid: Grid) -> Volume:
    """Float64, so that the interpolation is measured and not the storage."""
    return Volume(np.moveaxis(grid.world(indices(grid)), -1, 0).copy(), grid)


def rotation(angles_deg: tuple[float, float, float]) -> np.ndarray:
    out = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def oriented(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    order: tuple[int, int, int] = (0, 1, 2),
    flip: tuple[int, int, int] = (0, 0, 0),
    angles_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Grid:
    """Voxel axis ``a`` runs along world axis ``order[a]``, backwards if ``flip[a]``, then rotated."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for a in range(3):
        affine[order[a], a] = spacing_mm[a] * (-1 if flip[a] else 1)
    affine[:3, :3] = rotation(angles_deg) @ affine[:3, :3]
    affine[:3, 3] = origin_mm
    return Grid(shape, affine)


def interior(source: Grid, target: Grid, margin_vox: float = 0.0) -> np.ndarray:
    """Bool ``[I, J, K]``: target voxels at least ``margin_vox`` source voxels inside the outermost
    source centres, where no edge value is repeated."""
    at = source.index(target.world(indices(target)))
    return ((at >= margin_vox - 1e-9) & (at <= np.array(source.shape) - 1 - margin_vox + 1e-9)).all(axis=-1)


def shapes(low: int = 1, high: int = 9) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(*(st.integers(low, high) for _ in range(3)))


def spacings() -> st.SearchStrategy[tuple[float, float, float]]:
    return st.tuples(*(st.floats(0.4, 6.0) for _ in range(3)))


@st.composite
def grids(draw: st.DrawFn, low: int = 1, high: int = 9, oblique: bool = False) -> Grid:
    """Any orientation and spacing; ``oblique`` also rotates the axes relative to the world's."""
    order, flip = draw(st.sampled_from(SIGNED_PERMUTATIONS))
    angle = st.floats(-40.0, 40.0) if oblique else st.just(0.0)
    return oriented(
        draw(shapes(low, high)),
        draw(spacings()),
        draw(st.tuples(*(st.floats(-300.0, 300.0) for _ in range(3)))),
        order,
        flip,
        draw(st.tuples(angle, angle, angle)),
    )


@st.composite
def boxes_in(draw: st.DrawFn, shape: tuple[int, int, int]) -> Box:
    """A non-empty box inside an array of ``shape``."""
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    return Box(start, stop)


def masks(shape: tuple[int, int, int]) -> st.SearchStrategy[np.ndarray]:
    """A bool mask with at least one set voxel."""
    return st.integers(0, 2**32 - 1).map(lambda seed: _mask(shape, seed))


def _mask(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < rng.choice([0.02, 0.3, 0.9])
    mask[tuple(rng.integers(n) for n in shape)] = True
    return mask


def linear_weights(size_in: int, size_out: int, scale: float, offset: float, antialias: bool) -> np.ndarray:
    return as_matrix(resample.linear_weights(size_in, size_out, scale, offset, antialias), size_in)


def as_matrix(weights: resample.AxisWeights, size_in: int) -> np.ndarray:
    """The weights of one axis as a matrix ``[size_out, size_in]``."""
    read, part = weights.part(0, len(weights))
    return np.pad(part, ((0, 0), (read.start, size_in - read.stop)))
