"""Invariants of every interpolation: a ramp stays a ramp, a constant stays constant, both algorithms agree,
numpy and torch agree, and gradients are correct."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from helpers.grids import (
    SIGNED_PERMUTATIONS,
    boxes_in,
    centre_mm,
    grids,
    interior,
    linear_weights,
    oriented,
    ramp,
    shapes,
    spacings,
)
from zoomseg.core.arrays import Array, to_numpy
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.resample import (
    affine_coordinates,
    coordinates_box,
    nearest_index,
    resample,
    resample_data,
    sample_linear,
    sample_nearest,
)
from zoomseg.core.volume import Volume

Make = Callable[[np.ndarray], Array]
both = pytest.mark.parametrize("make", [np.asarray, torch.asarray], ids=["numpy", "torch"])

RAMP_MM = 1e-3
"""Tolerance. Weights are float32, whose rounding error at 500 mm from the origin is about 1e-4 mm."""

POINTWISE_MM = 5e-3
"""Tolerance of sampling point by point, which uses float32 throughout, also for coordinates."""


def moved(make: Make, source: Grid, target: Grid, antialias: bool = True) -> Volume:
    """The source's ramp, resampled to another grid."""
    return resample(Volume(make(ramp(source).data), source), target, antialias)


def assert_ramp(volume: Volume, source: Grid, margin_vox: float, tolerance_mm: float = RAMP_MM) -> int:
    """Assert that every interior value is the voxel's own world coordinate; returns their number."""
    inside = interior(source, volume.grid, margin_vox)
    error = np.abs(to_numpy(volume.data) - ramp(volume.grid).data).max(axis=0)[inside]
    assert error.max(initial=0) < tolerance_mm
    return int(error.size)


def antialias_reach(source: Grid, target: Grid) -> float:
    """Half width of the widest kernel in source voxels."""
    return float(np.abs(target.to_index_of(source)[:3, :3]).sum(axis=1).max()) + 1


@both
@given(grids(low=4), spacings())
def test_ramp_on_another_spacing(make: Make, grid: Grid, spacing_mm: tuple[float, float, float]) -> None:
    target = grid.with_spacing(spacing_mm)
    assert_ramp(moved(make, grid, target), grid, antialias_reach(grid, target))
    assert_ramp(moved(make, grid, target, antialias=False), grid, 0)


@both
@given(grids(low=4), shapes(1, 20))
def test_ramp_on_another_shape(make: Make, grid: Grid, shape: tuple[int, int, int]) -> None:
    target = grid.with_shape(shape)
    assert_ramp(moved(make, grid, target), grid, antialias_reach(grid, target))
    assert_ramp(moved(make, grid, target, antialias=False), grid, 0)


@both
@pytest.mark.parametrize("factor", [1.25, 1.5, 1.9, 2.0, 2.6, 3.0, 4.3])
def test_ramp_downsampled_with_antialiasing(make: Make, factor: float) -> None:
    grid = Grid.from_spacing((40, 30, 35), (0.7, 1.1, 2.0), (-100.0, 50.0, 7.0))
    target = grid.downsampled((factor, 1.0, factor))
    looked_at = assert_ramp(moved(make, grid, target), grid, factor + 1)
    assert looked_at > 200


@both
@given(grids(low=3), st.sampled_from(SIGNED_PERMUTATIONS), spacings())
def test_ramp_on_a_reoriented_grid(
    make: Make,
    grid: Grid,
    turn: tuple[tuple[int, int, int], tuple[int, int, int]],
    spacing_mm: tuple[float, float, float],
) -> None:
    orientation = Orientation(turn[0], tuple(map(bool, turn[1])))
    exact = orientation.grid(grid)
    assert assert_ramp(moved(make, grid, exact), grid, 0) == np.prod(grid.shape)
    target = exact.with_spacing(spacing_mm)
    assert_ramp(moved(make, grid, target, antialias=False), grid, 0)


@both
@given(grids(low=3), st.data())
def test_ramp_on_a_box_that_reaches_outside(make: Make, grid: Grid, data: st.DataObject) -> None:
    box = data.draw(boxes_in(grid.shape)).expand((1, 2, 3))
    assert assert_ramp(moved(make, grid, grid.crop(box)), grid, 0) > 0


@both
@given(
    grids(low=5, oblique=True), st.tuples(*(st.floats(-30, 30) for _ in range(3))), spacings(), shapes(2, 9)
)
def test_ramp_on_an_oblique_grid(
    make: Make,
    grid: Grid,
    angles_deg: tuple[float, float, float],
    spacing_mm: tuple[float, float, float],
    shape: tuple[int, int, int],
) -> None:
    turned = oriented(shape, spacing_mm, angles_deg=angles_deg).affine.copy()
    middle = turned[:3, :3] @ ((np.array(shape) - 1) / 2)
    turned[:3, 3] = centre_mm(grid) - middle
    target = Grid(shape, turned)
    # antialias=False, because the axes are parallel if all angles are zero
    assert_ramp(moved(make, grid, target, antialias=False), grid, 0, POINTWISE_MM)


@both
@given(
    grids(oblique=True),
    grids(oblique=True),
    st.floats(-1000, 1000, width=32),
    st.booleans(),
)
def test_a_constant_stays_constant_on_every_grid(
    make: Make, source: Grid, target: Grid, value: float, antialias: bool
) -> None:
    data = make(np.full((1, *source.shape), value, dtype=np.float32))
    out = resample_data(data, source, target, antialias)
    assert out.shape == (1, *target.shape)
    assert np.allclose(out, value, rtol=1e-5, atol=1e-5)


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(-6, 6).filter(lambda s: abs(s) > 0.05),
    st.floats(-40, 40),
    st.booleans(),
)
def test_rows_of_weights_are_means(
    size_in: int, size_out: int, scale: float, offset: float, anti: bool
) -> None:
    weights = linear_weights(size_in, size_out, scale, offset, anti)
    assert weights.shape == (size_out, size_in)
    assert float(weights.min()) >= 0
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)


@given(
    st.integers(40, 60),
    st.floats(-5, 5).filter(lambda s: abs(s) > 0.05),
    st.floats(15, 20),
    st.booleans(),
)
def test_rows_of_weights_are_centred_where_they_sample(
    size_in: int, scale: float, offset: float, anti: bool
) -> None:
    centre = offset + scale * np.arange(3)
    weights = linear_weights(size_in, 3, scale, offset, anti).astype(np.float64)
    found = weights @ np.arange(size_in)
    fits = (centre > abs(scale) + 1) & (centre < size_in - abs(scale) - 2)
    assert np.abs(found - centre)[fits].max(initial=0) < 1e-5


@both
@given(grids(low=2), grids(low=2), st.integers(0, 1000))
def test_axis_by_axis_and_point_by_point_agree(make: Make, source: Grid, target: Grid, seed: int) -> None:
    data = make(np.random.default_rng(seed).random((2, *source.shape), dtype=np.float32))
    # Move the target close to the source; otherwise only edge values would be compared.
    affine = target.affine.copy()
    affine[:3, 3] += centre_mm(source) - centre_mm(target)
    target = Grid(target.shape, affine)
    points = affine_coordinates(target.to_index_of(source), target.shape)
    fast = resample_data(data, source, target, antialias=False)
    assert np.allclose(fast, sample_linear(data, make(points)), atol=2e-4)


@both
@given(grids(low=2), grids(low=2), st.integers(0, 1000), st.sampled_from([None, 0, 255]))
def test_nearest_axis_by_axis_and_point_by_point_agree(
    make: Make, source: Grid, target: Grid, seed: int, outside: int | None
) -> None:
    labels = make(np.random.default_rng(seed).integers(1, 9, source.shape).astype(np.uint8))
    affine = target.affine.copy()
    affine[:3, 3] += centre_mm(source) - centre_mm(target)
    target = Grid(target.shape, affine)
    points = affine_coordinates(target.to_index_of(source), target.shape)
    # Near the points where rounding changes, float32 errors decide; these are excluded.
    fraction = (points + 0.5001) % 1
    clear = ((fraction > 1e-4) & (fraction < 1 - 1e-4)).all(axis=-1)
    fast = nearest_index(labels, source, target, outside)
    slow = sample_nearest(labels[None], make(points), outside)[0]
    assert np.array_equal(to_numpy(fast)[clear], to_numpy(slow)[clear])


@both
@given(
    shapes(1, 8),
    st.integers(0, 1000),
    st.tuples(*(st.floats(-12, 12, width=16) for _ in range(3))),
    st.floats(0.125, 6, width=16),
    st.sampled_from([None, 0, 255]),
)
def test_reading_only_what_is_sampled_changes_nothing(
    make: Make,
    shape: tuple[int, int, int],
    seed: int,
    centre: tuple[float, float, float],
    reach: float,
    outside: int | None,
) -> None:
    rng = np.random.default_rng(seed)
    data = make(rng.random((1, *shape), dtype=np.float32))
    points = np.float32(centre) + np.float32(reach) * (rng.random((3, 3, 3, 3), dtype=np.float32) - 0.5)
    box = coordinates_box(make(points), shape)
    part = data[(slice(None), *box.slices)]
    local = make(points - np.array(box.start, dtype=np.float32))
    assert np.allclose(sample_linear(part, local), sample_linear(data, make(points)), atol=1e-4)
    nearest = sample_nearest(data, make(points), outside)
    assert np.allclose(sample_nearest(part, local, outside), nearest, atol=1e-4)


@given(
    grids(low=2, oblique=True),
    grids(low=2, oblique=True),
    st.booleans(),
    st.sampled_from([None, 0, 255]),
    st.integers(0, 1000),
)
def test_numpy_and_torch_agree(
    source: Grid, target: Grid, antialias: bool, outside: int | None, seed: int
) -> None:
    affine = target.affine.copy()
    affine[:3, 3] += centre_mm(source) - centre_mm(target)
    target = Grid(target.shape, affine)
    data = np.random.default_rng(seed).integers(0, 200, (2, *source.shape)).astype(np.uint8)
    tensor = torch.from_numpy(data)
    linear = resample_data(data, source, target, antialias)
    assert np.allclose(linear, resample_data(tensor, source, target, antialias), rtol=1e-6, atol=1e-4)
    nearest = nearest_index(data[0], source, target, outside)
    assert np.array_equal(nearest, nearest_index(tensor[0], source, target, outside))


@given(shapes(1, 8), st.integers(0, 1000), st.floats(-3, 3), st.floats(0.125, 12))
def test_points_are_sampled_as_scipy_samples_them(
    shape: tuple[int, int, int], seed: int, start: float, reach: float
) -> None:
    rng = np.random.default_rng(seed)
    data = rng.random(shape)
    points = (start + reach * rng.random((3, 4, 5, 3))).astype(np.float32)
    expected = ndimage.map_coordinates(data, np.moveaxis(points, -1, 0), order=1, mode="nearest")
    assert np.allclose(sample_linear(data[None], points)[0], expected, atol=1e-5)


@given(grids(low=2), shapes(2, 6), st.booleans(), st.integers(0, 1000))
def test_gradient_along_parallel_axes(
    source: Grid, shape: tuple[int, int, int], antialias: bool, seed: int
) -> None:
    assert_gradient(source, source.with_shape(shape), antialias, seed, torch.float64, 1e-3, 1e-6)


@given(grids(low=3, high=5, oblique=True), shapes(2, 4), st.integers(0, 1000))
def test_gradient_on_an_oblique_grid(source: Grid, shape: tuple[int, int, int], seed: int) -> None:
    affine = oriented(shape, (1.3, 0.9, 2.0), angles_deg=(11.0, 23.0, -17.0)).affine.copy()
    affine[:3, 3] = centre_mm(source) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    assert_gradient(source, Grid(shape, affine), False, seed, torch.float32, 0.5, 1e-3)


def assert_gradient(
    source: Grid, target: Grid, antialias: bool, seed: int, dtype: torch.dtype, step: float, tolerance: float
) -> None:
    """Compare the derivative of a randomly weighted sum of the output with central differences in one voxel.
    As interpolation is linear in the data, a large step is as accurate as a small one."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand((1, *source.shape), generator=generator, dtype=dtype)
    weight = torch.rand((1, *target.shape), generator=generator, dtype=dtype)
    at = tuple(int(torch.randint(n, (1,), generator=generator)) for n in data.shape)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (resample_data(x, source, target, antialias) * weight).sum()

    leaf = data.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    up, down = data.clone(), data.clone()
    up[at] += step
    down[at] -= step
    difference = float(value(up) - value(down)) / (2 * step)
    assert float(gradient[at]) == pytest.approx(difference, abs=tolerance, rel=1e-3)
    # Each output is a weighted mean, so the gradients add up to the sum of the outputs' weights.
    assert float(gradient.sum()) == pytest.approx(float(weight.sum()), rel=1e-4)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_shrink_keeps_the_mean_in_the_interior(factor: int) -> None:
    grid = Grid.from_spacing((12 * factor, 8, 8), (1.0, 1.0, 1.0))
    data = torch.zeros(1, *grid.shape, dtype=torch.float64)
    # Noise in the middle, and zeros near the edges, within the width of the kernel: the mean is conserved.
    generator = torch.Generator().manual_seed(factor)
    middle = torch.rand((8 * factor, 8, 8), generator=generator, dtype=torch.float64)
    data[0, 2 * factor : -2 * factor] = middle
    out = resample_data(data, grid, grid.downsampled((factor, 1, 1)))
    assert float(out.mean()) == pytest.approx(float(data.mean()), rel=1e-6)
    skipped = resample_data(data, grid, grid.downsampled((factor, 1, 1)), antialias=False)
    assert float(out.std()) < float(skipped.std())


@pytest.mark.parametrize("factor", [1.3, 1.5, 2.5, 3.7])
def test_a_fractional_shrink_almost_keeps_the_mean(factor: float) -> None:
    grid = Grid.from_spacing((200, 1, 1), (1.0, 1.0, 1.0))
    weights = linear_weights(200, grid.downsampled((factor, 1, 1)).shape[0], factor, (factor - 1) / 2, True)
    share = weights.sum(axis=0)[10:-10] * factor
    assert float(share.mean()) == pytest.approx(1, abs=5e-3)


def test_antialiasing_removes_what_the_coarse_grid_cannot_show() -> None:
    grid = Grid.from_spacing((40, 1, 1), (1.0, 1.0, 1.0))
    stripes = (torch.arange(40) % 2).double().reshape(1, 40, 1, 1)
    coarse = resample_data(stripes, grid, grid.with_spacing((4.0, 1.0, 1.0)))[:, 1:-1]
    assert torch.allclose(coarse, torch.full_like(coarse, 0.5), atol=0.02)
