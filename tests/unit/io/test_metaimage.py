"""MetaImage: SimpleITK reads what is written, and what it writes is read: equal voxels in equal places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import itk_images
from zoomseg.core.errors import OutputError
from zoomseg.core.geometry import Grid
from zoomseg.io import metaimage
from zoomseg.io.itk_voxels import read_voxels

ANY_VOXELS = st.tuples(st.sampled_from(itk_images.NUMBERS), itk_images.grids(), st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(ANY_VOXELS)
def test_simpleitk_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, Grid, int]
) -> None:
    dtype, grid, seed = drawn
    path, array = tmp_path_factory.mktemp("a") / "a.mha", itk_images.values(dtype, grid.shape, seed)
    metaimage.save(path, array, grid)
    voxels, affine = itk_images.read(path)
    assert voxels.dtype == array.dtype
    assert np.array_equal(voxels, array)
    assert np.allclose(affine, grid.affine, rtol=0, atol=1e-9)
    header = metaimage.header(path)
    assert np.array_equal(read_voxels(path, header), array)
    assert np.allclose(header.grid.affine, grid.affine, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(ANY_VOXELS, st.sampled_from(["raw", "packed", "big"]))
def test_what_simpleitk_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, Grid, int], form: str
) -> None:
    dtype, grid, seed = drawn
    path, array = tmp_path_factory.mktemp("a") / "a.mha", itk_images.values(dtype, grid.shape, seed)
    itk_images.write(path, array, grid, form == "packed")
    if form == "big" and array.itemsize > 1:
        itk_images.swapped(path, array, b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True")
    theirs, affine = itk_images.read(path)
    header = metaimage.header(path)
    voxels = read_voxels(path, header)
    assert voxels.dtype == array.dtype
    assert voxels.dtype.isnative
    assert np.array_equal(voxels, array)
    assert np.array_equal(voxels, theirs)
    assert header.shape == grid.shape
    assert np.allclose(header.grid.affine, affine, rtol=0, atol=1e-9)


def test_equal_images_are_equal_files(tmp_path: Path) -> None:
    array, grid = itk_images.values("int16", (3, 4, 5), 0), Grid.from_spacing((3, 4, 5), (1.0, 2.0, 3.0))
    metaimage.save(tmp_path / "a.mha", array, grid)
    metaimage.save(tmp_path / "b.mha", np.asfortranarray(array).astype(">i2"), grid)
    assert (tmp_path / "a.mha").read_bytes() == (tmp_path / "b.mha").read_bytes()


@pytest.mark.parametrize("dtype", ["bool", "float16", "complex64"])
def test_other_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    grid = Grid.from_spacing((3, 4, 5), (1.0, 1.0, 1.0))
    with pytest.raises(OutputError, match=rf"a\.mha: the format has no numbers of type {dtype}"):
        metaimage.save(tmp_path / "a.mha", np.zeros((3, 4, 5), dtype), grid)
