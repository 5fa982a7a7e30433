"""Voxels of NRRD and MetaImage files, in every storage form that their headers can specify."""

from __future__ import annotations

import bz2
import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import igzip_lib

from zoomseg.core.errors import ScanError
from zoomseg.io import inflate
from zoomseg.io.itk_header import ItkHeader, VoxelStorage
from zoomseg.io.nifti_header import AnyArray

_PIECE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


def read_voxels(path: Path, header: ItkHeader) -> AnyArray:
    """Voxels as stored, in the machine's byte order, first axis fastest. No more data are inflated than the
    header specifies.

    Raises:
        ScanError: there are fewer, or they are damaged.
    """
    place, size = header.place, math.prod(header.shape) * header.dtype.itemsize
    with place.file.open("rb") as file:
        file.seek(place.begin)
        _skip_lines(file, place.skip_lines)
        match place.packing:
            case "text":
                file.seek(place.skip_bytes, os.SEEK_CUR)
                return _from_text(path, header, file)
            case "hex":
                file.seek(place.skip_bytes, os.SEEK_CUR)
                stream: Any = io.BytesIO(bytes.fromhex(file.read().decode("ascii")))
            case "raw":
                from_end = place.skip_bytes < 0
                file.seek(-size if from_end else place.skip_bytes, os.SEEK_END if from_end else os.SEEK_CUR)
                stream = file
            case _:
                stream = _inflated(file, place)
                stream.seek(place.skip_bytes)
        return inflate.voxels(path, header.shape, header.dtype, stream)


def text_bytes(header: ItkHeader) -> int:
    """Memory that reading needs in addition to the voxels, if they are stored as text."""
    match header.place.packing:
        case "text":
            return 8 * math.prod(header.shape)
        case "hex":
            return 2 * header.place.file.stat().st_size
        case _:
            return 0


def _skip_lines(file: BinaryIO, count: int) -> None:
    for _ in range(count):
        piece = file.readline(_PIECE_BYTES)
        while piece and not piece.endswith(b"\n"):
            piece = file.readline(_PIECE_BYTES)
        if not piece:
            return


def _inflated(file: BinaryIO, place: VoxelStorage) -> Any:
    if place.packing == "bzip2":
        return bz2.BZ2File(file)
    start = file.read(len(_GZIP))
    file.seek(-len(start), os.SEEK_CUR)
    # Some writers of MetaImages write gzip for zlib.
    zlib = place.packing == "zlib" and start != _GZIP
    return inflate.Inflated(file, igzip_lib.DECOMP_ZLIB if zlib else igzip_lib.DECOMP_GZIP)


def _from_text(path: Path, header: ItkHeader, file: BinaryIO) -> AnyArray:
    """Numbers separated by white space."""
    count, dtype = math.prod(header.shape), header.dtype.newbyteorder("=")
    found = np.fromfile(file, f"{dtype.kind}8", count, sep=" ")
    if found.size < count:
        raise ScanError(f"{path}: truncated; {found.size} of {count} voxels are there")
    values = found.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(values, found):
        raise ScanError(f"{path}: damaged; it holds numbers that do not fit into {dtype}")
    return values.reshape(header.shape, order="F")
