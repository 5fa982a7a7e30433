"""Label maps on a stage's grid, compared with scipy's interpolation, which nnU-Net uses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.resample import AxisInterpolations
from zoomseg.core.volume import LabelMap
from zoomseg.pipeline import label_priors
from zoomseg.pipeline.label_priors import numbers_on, one_hot

SCHEMA = LabelSchema(("b", "a", "c"), (2, 1, 3))
NAMES = ("a", "b", "c")


def drawn(shape: Index3, labels: int = 4) -> npt.NDArray[np.uint8]:
    """Blobs, so that edges are straight here and there."""
    noise = np.random.default_rng(5).random(tuple(-(-n // 4) for n in shape))
    whole = np.floor(labels * np.kron(noise, np.ones((4, 4, 4))))
    return whole[: shape[0], : shape[1], : shape[2]].astype(np.uint8)


def resized(data: npt.NDArray[np.uint8], shape: Index3, apart: bool) -> npt.NDArray[np.int64]:
    """As nnU-Net does, whose first axis is the last one here: by ``skimage.transform.resize``, which is
    scipy's zoom; ``apart``: slice by slice, and the nearest slice."""

    def zoomed(values: npt.NDArray[np.float64], order: int) -> npt.NDArray[np.float64]:
        zooms = [after / before for before, after in zip(data.shape, shape, strict=True)]
        if not apart:
            return ndimage.zoom(values.T, zooms[::-1], order=order, mode="nearest", grid_mode=True).T
        at = (np.arange(shape[2]) + 0.5) * (data.shape[2] / shape[2]) - 0.5
        slices = np.floor(at + 0.5).astype(int).clip(0, data.shape[2] - 1)
        planes = [
            ndimage.zoom(values[:, :, k].T, zooms[1::-1], order=order, mode="nearest", grid_mode=True).T
            for k in slices
        ]
        return np.stack(planes, axis=2)

    # Classes in the order of their values, which is that of the names.
    shares = np.stack([zoomed((data == c).astype(np.float64), 1) for c in (0, 2, 1, 3)])
    nearest = np.array([0, 2, 1, 3])[zoomed(data.astype(np.float64), 0).astype(int)]
    tied = np.take_along_axis(shares, nearest[None], axis=0)[0] == shares.max(axis=0)
    return np.where(tied, nearest, shares.argmax(axis=0))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("shape", "other"), [((9, 8, 6), (18, 12, 9)), ((256, 64, 12), (224, 56, 20)), ((30, 21, 10), (9, 14, 7))]
)
def test_the_label_with_the_largest_share_wins_as_in_nnunet(
    shape: Index3, other: Index3, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = drawn(shape)
    source = Grid.from_spacing(data.shape, (1.3, 1.237, 5.0))
    target = source.with_shape(other)
    kernels: AxisInterpolations = ("linear", "linear", "nearest" if apart else "linear")
    found = numbers_on(LabelMap(data, source, SCHEMA), NAMES, target, target.box, kernels)
    expected = resized(data, other, apart)
    assert np.array_equal(found, expected)
    assert (expected > 0).sum() > 100
    monkeypatch.setattr(label_priors, "PIECE_VOXELS", 3 * other[1] * other[2])
    assert np.array_equal(
        numbers_on(LabelMap(data, source, SCHEMA), NAMES, target, target.box, kernels), expected
    )
    # A part of it, and beyond the edge, where the last voxel is repeated.
    box = Box((2, 3, 1), (other[0] + 2, 6, 4))
    part = numbers_on(LabelMap(data, source, SCHEMA), NAMES, target, box, kernels)
    padded = np.pad(expected, ((0, 2), (0, 0), (0, 0)), mode="edge")
    assert np.array_equal(part, padded[2:, 3:6, 1:4])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_of_the_grid_without_any_label_is_zero(axis: int) -> None:
    data = np.zeros((8, 8, 8), dtype=np.uint8)
    data[tuple(slice(0, 2) if a == axis else slice(None) for a in range(3))] = 1
    grid = Grid.from_spacing(data.shape, (1.0, 2.0, 3.0))
    labels = LabelMap(data, grid, LabelSchema.consecutive(["a", "b"]))
    start, stop = [0, 0, 0], [8, 8, 8]
    start[axis] = 5
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    assert not numbers_on(labels, ("a", "b"), grid, box, ("linear",) * 3).any()
    # A label that lies between the samples of a coarser grid.
    coarse = grid.with_shape((2, 2, 2))
    thin = np.where(data == 1, 0, data)
    thin[tuple(slice(0, 1) if a == axis else slice(None) for a in range(3))] = 2
    found = numbers_on(LabelMap(thin, grid, labels.schema), ("a", "b"), coarse, coarse.box, ("linear",) * 3)
    assert not found.any()


def test_labels_that_are_not_read_take_their_share() -> None:
    """Of the middle voxel, a has a half, b and the background a quarter each: without b, a has no more than
    the others together."""
    data = np.array([1, 1, 2, 0], dtype=np.uint8).reshape(4, 1, 1)
    grid = Grid.from_spacing(data.shape, (1.0, 1.0, 1.0))
    labels = LabelMap(data, grid, LabelSchema.consecutive(["a", "b"]))
    target = grid.with_shape((2, 1, 1))
    assert numbers_on(labels, ("a",), target, target.box, ("linear",) * 3).ravel().tolist() == [1, 0]
    assert numbers_on(labels, ("b",), target, target.box, ("linear",) * 3).ravel().tolist() == [0, 0]


def test_on_its_own_grid_a_label_map_stays_as_it_is() -> None:
    data = drawn((8, 8, 8), 3)
    grid = Grid.from_spacing(data.shape, (1.0, 2.0, 3.0))
    labels = LabelMap(data, grid, LabelSchema.consecutive(["a", "b"]))
    found = numbers_on(labels, ("b",), grid, grid.box, ("linear",) * 3)
    assert np.array_equal(found, data == 2)


def test_one_hot() -> None:
    numbers = np.array([0, 1, 2, 1], dtype=np.uint8).reshape(4, 1, 1)
    found = one_hot(numbers, 2)
    assert found.dtype == np.float32
    assert found[..., 0, 0].tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]


RESIZE = """
import sys, numpy as np
from batchgenerators.augmentations.utils import resize_segmentation
given, out, *shape = sys.argv[1:]
data = np.load(given).astype(np.float32)
np.save(out, resize_segmentation(data, tuple(map(int, shape)), 1))
"""


def test_it_is_what_batchgenerators_computes(tmp_path: Path) -> None:
    python = os.environ.get("ZOOMSEG_NNUNET_PYTHON")
    if not python:
        pytest.skip("ZOOMSEG_NNUNET_PYTHON names no Python that has nnunetv2")
    shape, other = (256, 64, 12), (224, 56, 20)
    data, schema = drawn(shape), LabelSchema.consecutive(["a", "b", "c"])
    source = Grid.from_spacing(shape, (1.3, 1.237, 5.0))
    target = source.with_shape(other)
    np.save(tmp_path / "given.npy", data.T)
    run = [python, "-c", RESIZE, tmp_path / "given.npy", tmp_path / "out.npy", *reversed(other)]
    subprocess.run([str(part) for part in run], check=True)
    found = numbers_on(LabelMap(data, source, schema), NAMES, target, target.box, ("linear",) * 3)
    assert np.array_equal(found, np.load(tmp_path / "out.npy").T)
