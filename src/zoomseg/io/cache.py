"""The training cache: compressed arrays on disk, read in boxes, so that a random crop of a large scan only
costs the blocks it touches.

A cached array is one contiguous Blosc2 frame (``.b2nd``). Blosc2 can also store expressions, proxies and
Python objects under the same suffix, so a file's header is checked here, byte by byte, before Blosc2 reads
it: only a plain array of an allowed type passes. Frame layout:
https://github.com/Blosc/c-blosc2/blob/main/README_CFRAME_FORMAT.rst
"""

from __future__ import annotations

import math
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

import blosc2
import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import DatasetError
from zoomseg.core.geometry import Box, Index3
from zoomseg.io.files import write_bytes_atomic
from zoomseg.io.header_limits import MAX_VOXELS

SUFFIX = ".b2nd"
DTYPES = ("uint8", "int16", "float16", "float32")
BLOCK_VOX = 32
"""Edge of a block, the smallest piece that is decompressed; a chunk contains several."""

_MAGIC = b"\x9e\xa8b2frame\x00"
_FIXED_HEADER = 87
"""Bytes before the list of metalayers."""
_PLAIN_ARRAY_METALAYERS = (b"b2nd",)


def write_array(path: Path, array: npt.NDArray[np.generic], chunks: Index3 = (64, 64, 64)) -> None:
    """Write ``[I, J, K]`` or ``[C, I, J, K]`` losslessly compressed; all channels share a chunk.

    Raises:
        DatasetError: wrong suffix, type or number of axes, or an empty array.
        OutputError: no permission, full disk.
    """
    if path.suffix != SUFFIX:
        raise DatasetError(f"cached arrays end in {SUFFIX}, got {path.name}")
    if array.dtype.name not in DTYPES:
        raise DatasetError(f"cannot cache {array.dtype.name} voxels; allowed: {', '.join(DTYPES)}")
    if array.ndim not in (3, 4) or array.size == 0:
        raise DatasetError(f"cannot cache an array of shape {array.shape}; needs [I, J, K] or [C, I, J, K]")
    lead = array.shape[:-3]
    chunk = tuple(min(n, c) for n, c in zip(array.shape[-3:], chunks, strict=True))
    frame = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(*lead, *chunk),
        blocks=(*lead, *(min(n, BLOCK_VOX) for n in chunk)),
        cparams={
            "codec": blosc2.Codec.ZSTD,
            "clevel": 1,
            # Groups the high bits of neighbours, which rarely change: on CT, reads 3 times as fast as
            # SHUFFLE.
            "filters": [blosc2.Filter.BITSHUFFLE],
            "nthreads": 1,
        },
    )
    write_bytes_atomic(path, frame.to_cframe())


@dataclass(frozen=True, eq=False)
class ChunkedArray:
    """A cached array, open for reading boxes; voxels stay on disk. Can be shared between threads."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    _array: blosc2.NDArray = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Blosc2 decompresses into one context per open array."""

    @classmethod
    def open(cls, path: Path) -> ChunkedArray:
        """Open a file written by ``write_array``.

        Raises:
            DatasetError: missing, truncated, not a plain array, of another type or shape.
        """
        _check_header(path)
        try:
            # One thread: crops are small, and the training loop reads several arrays at once.
            array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        except Exception as error:  # Blosc2 raises RuntimeError, ValueError and others for damaged files
            raise _damaged(path, str(error)) from error
        if type(array) is not blosc2.NDArray or array.dtype.name not in DTYPES or array.ndim not in (3, 4):
            raise _damaged(path, "not an array of a cached type")
        if math.prod(array.shape[-3:]) > MAX_VOXELS:
            raise _damaged(path, f"its header promises the shape {array.shape}")
        return cls(path, tuple(array.shape), np.dtype(array.dtype), array)

    def read(self, box: Box) -> npt.NDArray[np.generic]:
        """The voxels of ``box``, all channels, decompressing only the blocks that it touches. There are no
        checksums: damage of compressed voxels may only change their values.

        Raises:
            DatasetError: the box is empty or extends outside the array, or it cannot be decompressed.
        """
        spatial = self.shape[-3:]
        inside = all(0 <= a < b <= n for a, b, n in zip(box.start, box.stop, spatial, strict=True))
        if not inside:
            raise DatasetError(
                f"box {box.start}..{box.stop} is not inside {self.path.name} of shape {spatial}"
            )
        key = (*(slice(0, n) for n in self.shape[:-3]), *box.slices)
        try:
            with self._lock:
                voxels: npt.NDArray[np.generic] = self._array[key]
        except (RuntimeError, ValueError, MemoryError) as error:
            raise _damaged(self.path, str(error)) from error
        return voxels


def _check_header(path: Path) -> None:
    """Refuse any file that is not a complete frame with a plain array's metalayer alone."""
    if path.suffix != SUFFIX or not path.is_file():
        raise DatasetError(f"no cached array at {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    try:
        if not head.startswith(_MAGIC) or head[10] != 0xD2 or head[15] != 0xCF:
            raise ValueError("not a Blosc2 frame")
        (frame_size,) = struct.unpack_from(">Q", head, 16)
        if frame_size != size:
            raise ValueError(f"{size} bytes, its header says {frame_size}")
        if _metalayers(head) != _PLAIN_ARRAY_METALAYERS:
            raise ValueError("holds something else than a plain array")
    except (ValueError, struct.error, IndexError) as error:
        raise _damaged(path, str(error)) from error


def _metalayers(head: bytes) -> tuple[bytes, ...]:
    """Names of a frame's metalayers (msgpack: array, index size, map of fixed strings to int32)."""
    mark, index_mark, _, map_mark, count = struct.unpack_from(">BBHBH", head, _FIXED_HEADER)
    if (mark, index_mark, map_mark) != (0x93, 0xCD, 0xDE):
        raise ValueError("header is malformed")
    names, at = [], _FIXED_HEADER + 7
    for _ in range(count):
        length = head[at] & 0x1F
        names.append(head[at + 1 : at + 1 + length])
        at += 1 + length + 5
    return tuple(names)


def _damaged(path: Path, reason: str) -> DatasetError:
    return DatasetError(f"cached array {path} cannot be used ({reason}); delete it and start again")
