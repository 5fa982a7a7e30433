"""Images that SimpleITK, the counterpart, reads and writes, in this package's terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from hypothesis import strategies as st

from zoomseg.core.geometry import Grid

NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def values(dtype: str, shape: tuple[int, int, int], seed: int) -> npt.NDArray[Any]:
    """Any bits that are finite numbers."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(size=shape).astype(kind)
    ends = np.iinfo(kind)
    return rng.integers(ends.min, ends.max, shape, kind, endpoint=True)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Small grids, turned in any way, also to the other hand."""
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
    """A file of SimpleITK's, little-endian."""
    image, spacing = sitk.GetImageFromArray(np.ascontiguousarray(array.T)), np.array(grid.spacing_mm)
    affine = FLIP @ grid.affine
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)


def swapped(path: Path, array: npt.NDArray[Any], little: bytes, big: bytes) -> Path:
    """The same file with its uncompressed voxels in the other byte order, as ``little`` and ``big`` say."""
    stored = array.astype(array.dtype.newbyteorder("<")).tobytes(order="F")
    head = path.read_bytes()
    assert head.endswith(stored)
    head = head[: len(head) - len(stored)]
    assert head.count(little) == 1
    other = array.astype(array.dtype.newbyteorder(">")).tobytes(order="F")
    path.write_bytes(head.replace(little, big) + other)
    return path
