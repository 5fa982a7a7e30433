"""NIfTI files: nibabel reads and writes their headers, the voxels go through the fastest safe gzip.

ISA-L inflates twice as fast as zlib, and deflates label maps twenty times as fast.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.imageglobals import LoggingOutputSuppressor

from zoomseg.core.errors import ScanError

AnyArray = npt.NDArray[Any]

HEADER_BYTES = 540
"""Of NIfTI-2, the longer of the two."""

COMPRESSION = 1
"""Label maps of level 1 are a third larger than of the highest, and written in a tenth of the time."""

PIECE_BYTES = 1 << 24


def unchecked_header(path: Path) -> Any:
    """The header's fields as stored: nibabel's own checks silently turn a spacing of zero into one."""
    with _open(path, "rb") as stream:
        block = stream.read(HEADER_BYTES)
    is_second = block[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    kind = nib.Nifti2Header if is_second else nib.Nifti1Header
    return kind(block[: kind.sizeof_hdr], check=False)


def load(path: Path) -> Any:
    """nibabel's image; its voxels are not read yet."""
    with LoggingOutputSuppressor():  # its remarks about harmless header fields are not for our users
        image = nib.load(path, mmap=False)
    if not isinstance(image, nib.Nifti1Image):
        raise ScanError(f"{path}: not a NIfTI image")
    return image


def voxels(path: Path) -> tuple[AnyArray, float, float]:
    """Voxels as stored, in the machine's byte order, first axis fastest; slope and intercept. No more is
    inflated than the header promises, whatever else the file holds."""
    proxy = load(path).dataobj
    raw = np.empty(proxy.shape, proxy.dtype, order="F")
    view = raw.reshape(-1, order="F").view(np.uint8).data
    with _open(path, "rb") as stream:
        stream.seek(proxy.offset)
        done = 0
        while done < len(view):
            count = stream.readinto(view[done : done + PIECE_BYTES])
            if not count:
                raise ScanError(f"{path}: truncated; {done} of {len(view)} bytes of voxels are there")
            done += count
    return raw.astype(raw.dtype.newbyteorder("="), copy=False), float(proxy.slope), float(proxy.inter)


def save(image: nib.Nifti1Image, path: Path, compressed: bool) -> None:
    """Write an image; its array in memory with the first axis fastest is written as it lies."""
    with _open(path, "wb", compressed) as stream:
        image.to_stream(stream)


def _open(path: Path, mode: str, compressed: bool | None = None) -> Any:
    if compressed is None:
        compressed = path.name.lower().endswith(".gz")
    return igzip.open(path, mode, compresslevel=COMPRESSION) if compressed else path.open(mode)
