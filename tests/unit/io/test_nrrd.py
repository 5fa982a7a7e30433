"""NRRD: SimpleITK reads written files, and its files are read: equal voxels at equal positions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.itk_images import ANY_VOXELS, STORED, Drawn, Format
from zoomseg.io import nrrd

NRRD = Format(".nrrd", nrrd.save, nrrd.header, b"endian: little", b"endian: big")


@settings(max_examples=60, deadline=None)
@given(ANY_VOXELS)
def test_simpleitk_reads_what_is_written(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> None:
    NRRD.check_written(tmp_path_factory.mktemp("a"), drawn)


@settings(max_examples=60, deadline=None)
@given(ANY_VOXELS, st.sampled_from(STORED))
def test_what_simpleitk_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, drawn: Drawn, stored: str
) -> None:
    NRRD.check_read(tmp_path_factory.mktemp("a"), drawn, stored)


def test_equal_images_are_equal_files(tmp_path: Path) -> None:
    NRRD.check_equal_files(tmp_path)


@pytest.mark.parametrize("dtype", ["bool", "float16", "complex64"])
def test_other_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    NRRD.check_refused(tmp_path, dtype)
