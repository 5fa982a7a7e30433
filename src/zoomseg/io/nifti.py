"""NIfTI files; what their headers mean is in ``io.nifti_header``."""

# mypy: allow-untyped-calls

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
from isal import igzip

from zoomseg.io import inflate
from zoomseg.io.nifti_header import HEADER_BYTES, AnyArray, NiftiHeader, parse


def header(path: Path, axes: int = 3) -> NiftiHeader:
    """Only the header is read (see ``nifti_header.parse``)."""
    with _opened(path) as stream:
        return parse(path, stream.read(HEADER_BYTES), path.stat().st_size, _is_compressed(path), axes)


def voxels(path: Path, axes: int = 3) -> tuple[AnyArray, NiftiHeader]:
    """Voxels as stored, in the machine's byte order, first axis fastest; and the header."""
    found = header(path, axes)
    with _opened(path) as stream:
        stream.seek(found.offset)
        return inflate.voxels(path, found.shape, found.dtype, stream), found


def save(image: nib.Nifti1Image, path: Path, compressed: bool) -> None:
    """Write an image; its array in memory with the first axis fastest is written as it lies."""
    with path.open("wb") as stream:
        if not compressed:
            image.to_stream(stream)
            return
        # Without a name, which is that of a temporary file, and a time: equal images are equal files.
        with igzip.IGzipFile("", "wb", inflate.COMPRESSION, stream, mtime=0) as packed:
            image.to_stream(packed)


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _opened(path: Path) -> Any:
    return inflate.Inflated(path.open("rb")) if _is_compressed(path) else path.open("rb")
