"""Inflated data equal zlib's, no more is inflated than requested, and damage is reported."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from isal import igzip_lib

from zoomseg.core.errors import ScanError
from zoomseg.io.inflate import Inflated, voxels

DATA = np.random.default_rng(0).integers(0, 50, 100_000).astype(np.uint8).tobytes()


@pytest.mark.parametrize("form", ["gzip", "zlib"])
def test_forward_in_any_steps(form: str) -> None:
    packed, flag = (
        (gzip.compress(DATA), igzip_lib.DECOMP_GZIP)
        if form == "gzip"
        else (zlib.compress(DATA), igzip_lib.DECOMP_ZLIB)
    )
    stream = Inflated(io.BytesIO(packed), flag)
    assert stream.read(10) == DATA[:10]
    assert stream.seek(1000) == 1000
    assert stream.read(len(DATA)) == DATA[1000:]
    assert stream.read(1) == b""


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_voxels_with_another_checksum_are_refused(pack: object) -> None:
    packed = bytearray(pack(DATA))  # type: ignore[operator]
    end = 8 if pack is gzip.compress else 4
    packed[-end] ^= 1
    flag = igzip_lib.DECOMP_GZIP if pack is gzip.compress else igzip_lib.DECOMP_ZLIB
    with pytest.raises(ScanError, match=r"a\.x: damaged, what it holds does not match its checksum"):
        voxels(Path("a.x"), (len(DATA),), np.dtype(np.uint8), Inflated(io.BytesIO(packed), flag))


def test_voxels_are_in_the_machines_byte_order() -> None:
    stored = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    stream = io.BytesIO(stored.tobytes(order="F"))
    found = voxels(Path("a.x"), (2, 3, 4), stored.dtype, stream)
    assert found.dtype.isnative
    assert np.array_equal(found, stored)
    assert found.flags.f_contiguous
