"""Images read and written by SimpleITK, the reference implementation, in this package's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import strategies as st

from zoomseg.core.errors import OutputError
from zoomseg.core.geometry import Grid
from zoomseg.io.itk_header import ItkHeader
from zoomseg.io.itk_voxels import read_voxels

NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def values(dtype: str, shape: tuple[int, int, int], seed: int) -> npt.NDArray[Any]:
    """Random bits that are finite numbers."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(size=shape).astype(kind)
    ends = np.iinfo(kind)
    return rng.integers(ends.min, ends.max, shape, kind, endpoint=True)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Small grids, in any orientation and handedness."""
    number = st.floats(-1, 1)
    turned, _ = np.linalg.qr(np.array([draw(number) for _ in range(9)]).reshape(3, 3) + 3 * np.eye(3))
    spacing = np.array([draw(st.floats(0.01, 20)) for _ in range(3)])
    affine = np.eye(4)
    affine[:3, :3] = turned[:, draw(st.permutations(range(3)))] * spacing
    affine[:3, 3] = [draw(st.floats(-1000, 1000)) for _ in range(3)]
    shape = tuple(draw(st.integers(1, 6)) for _ in range(3))
    return Grid(shape, affine)


def read(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Voxels ``[I, J, K]`` and the affine to RAS+ of a file, by SimpleITK."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, FLIP @ affine


def write(path: Path, array: npt.NDArray[Any], grid: Grid, compressed: bool) -> None:
    """A file written by SimpleITK, little-endian."""
    image, spacing = sitk.GetImageFromArray(np.ascontiguousarray(array.T)), np.array(grid.spacing_mm)
    affine = FLIP @ grid.affine
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)


def swapped(path: Path, array: npt.NDArray[Any], little: bytes, big: bytes) -> Path:
    """The same file with its uncompressed voxels in the other byte order, which replaces ``little`` by
    ``big`` in the header."""
    stored = array.astype(array.dtype.newbyteorder("<")).tobytes(order="F")
    head = path.read_bytes()
    assert head.endswith(stored)
    head = head[: len(head) - len(stored)]
    assert head.count(little) == 1
    other = array.astype(array.dtype.newbyteorder(">")).tobytes(order="F")
    path.write_bytes(head.replace(little, big) + other)
    return path


Drawn = tuple[str, Grid, int]
"""Type of the voxels, their grid, and the seed that draws them."""
ANY_VOXELS = st.tuples(st.sampled_from(NUMBERS), grids(), st.integers(0, 2**32 - 1))
STORED = ("raw", "packed", "big")


@dataclass(frozen=True)
class Format:
    """One of the formats that ITK and this package support, with the functions under test."""

    suffix: str
    save: Callable[[Path, npt.NDArray[Any], Grid], None]
    header: Callable[[Path], ItkHeader]
    little: bytes
    big: bytes
    """The byte order in its header."""

    def check_written(self, folder: Path, drawn: Drawn) -> None:
        """SimpleITK and this package read what was written."""
        dtype, grid, seed = drawn
        path, array = folder / f"a{self.suffix}", values(dtype, grid.shape, seed)
        self.save(path, array, grid)
        voxels, affine = read(path)
        assert voxels.dtype == array.dtype
        assert np.array_equal(voxels, array)
        assert np.allclose(affine, grid.affine, rtol=0, atol=1e-9)
        header = self.header(path)
        assert np.array_equal(read_voxels(path, header), array)
        assert np.allclose(header.grid.affine, grid.affine, rtol=0, atol=1e-12)

    def check_read(self, folder: Path, drawn: Drawn, stored: str) -> None:
        """Files of SimpleITK are read, in all storage forms of ``STORED``."""
        dtype, grid, seed = drawn
        path, array = folder / f"a{self.suffix}", values(dtype, grid.shape, seed)
        write(path, array, grid, stored == "packed")
        if stored == "big" and array.itemsize > 1:
            swapped(path, array, self.little, self.big)
        theirs, affine = read(path)
        header = self.header(path)
        voxels = read_voxels(path, header)
        assert voxels.dtype == array.dtype
        assert voxels.dtype.isnative
        assert np.array_equal(voxels, array)
        assert np.array_equal(voxels, theirs)
        assert header.shape == grid.shape
        assert np.allclose(header.grid.affine, affine, rtol=0, atol=1e-9)

    def check_equal_files(self, folder: Path) -> None:
        """Equal images give equal files, for any memory order and byte order of their voxels."""
        array, grid = values("int16", (3, 4, 5), 0), Grid.from_spacing((3, 4, 5), (1.0, 2.0, 3.0))
        a, b = (folder / f"{name}{self.suffix}" for name in "ab")
        self.save(a, array, grid)
        self.save(b, np.asfortranarray(array).astype(">i2"), grid)
        assert a.read_bytes() == b.read_bytes()

    def check_refused(self, folder: Path, dtype: str) -> None:
        """Types that the format does not support are refused by name."""
        grid = Grid.from_spacing((3, 4, 5), (1.0, 1.0, 1.0))
        told = rf"a\{self.suffix}: the format has no numbers of type {dtype}"
        with pytest.raises(OutputError, match=told):
            self.save(folder / f"a{self.suffix}", np.zeros((3, 4, 5), dtype), grid)
