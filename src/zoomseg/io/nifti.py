"""Read and write NIfTI files; ``io.nifti_header`` interprets their headers."""

# mypy: allow-untyped-calls

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
from isal import igzip

from zoomseg.io import inflate
from zoomseg.io.nifti_header import HEADER_BYTES, AnyArray, NiftiHeader, parse


def header(path: Path, axes: int = 3) -> NiftiHeader:
    """The header (see ``nifti_header.parse``); voxels are not read."""
    with _opened(path) as stream:
        return parse(path, stream.read(HEADER_BYTES), path.stat().st_size, _is_compressed(path), axes)


def voxels(path: Path, axes: int = 3) -> tuple[AnyArray, NiftiHeader]:
    """Voxels as stored, in the machine's byte order, first axis fastest; and the header."""
    found = header(path, axes)
    with _opened(path) as stream:
        stream.seek(found.offset)
        return inflate.voxels(path, found.shape, found.dtype, stream), found


def save(image: nib.Nifti1Image, path: Path, compressed: bool) -> None:
    """Write an image; an array with the first axis fastest in memory is written without a copy."""
    with path.open("wb") as stream:
        if not compressed:
            image.to_stream(stream)
            return
        # Without a name, which would be that of a temporary file, and a time: equal images are equal files.
        with igzip.IGzipFile("", "wb", inflate.COMPRESSION, stream, mtime=0) as packed:
            image.to_stream(packed)


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _opened(path: Path) -> Any:
    return inflate.Inflated(path.open("rb")) if _is_compressed(path) else path.open("rb")
