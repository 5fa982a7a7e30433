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
from zoomseg.io import inflate
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


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_checksum_that_is_read_in_parts_is_compared(pack: object, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(DATA)  # type: ignore[operator]
    damaged = bytearray(packed)
    damaged[-8 if pack is gzip.compress else -4] ^= 1
    flag = igzip_lib.DECOMP_GZIP if pack is gzip.compress else igzip_lib.DECOMP_ZLIB
    place, dtype = Path("a.x"), np.dtype(np.uint8)
    for in_the_first in range(10):
        monkeypatch.setattr(inflate, "_PIECE_BYTES", len(packed) - in_the_first)
        found = voxels(place, (len(DATA),), dtype, Inflated(io.BytesIO(packed), flag))
        assert found.tobytes() == DATA
        with pytest.raises(ScanError, match="does not match its checksum"):
            voxels(place, (len(DATA),), dtype, Inflated(io.BytesIO(bytes(damaged)), flag))


def test_data_behind_the_voxels_are_not_inflated() -> None:
    stream = Inflated(io.BytesIO(gzip.compress(DATA + bytes(50_000_000))))
    assert voxels(Path("a.x"), (len(DATA),), np.dtype(np.uint8), stream).tobytes() == DATA


def test_voxels_are_in_the_machines_byte_order() -> None:
    stored = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    stream = io.BytesIO(stored.tobytes(order="F"))
    found = voxels(Path("a.x"), (2, 3, 4), stored.dtype, stream)
    assert found.dtype.isnative
    assert np.array_equal(found, stored)
    assert found.flags.f_contiguous
