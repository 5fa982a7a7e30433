"""NIfTI scans in, label maps out, by nibabel. A file is hostile until checked: the header is read first, and
refused if it promises more voxels than the file can hold."""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.openers import ImageOpener

from zoomseg.core.errors import OutputError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.export.runner.resample import AnyArray
from zoomseg.io.files import atomic_path, reading

SUFFIXES = (".nii.gz", ".nii")
MAX_VOXELS = 4 * 1024**3
MAX_COMPRESSION = 1100
"""Deflate cannot pack more than 1032 bytes into one; a header promising more is lying."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """``voxels [C, I, J, K]`` (integers of at most 16 bits as stored, else float32) on ``grid``, and the
    header that the result shall have."""

    voxels: AnyArray
    grid: Grid
    header: Any


def read(paths: Sequence[Path]) -> Loaded:
    """A scan, one file per channel.

    Raises:
        ScanError: unreadable, not 3-D, impossible geometry, NaN or infinite voxels, a constant image, or
            channels on different grids.
    """
    channels = [_read_channel(path) for path in paths]
    first = channels[0]
    for path, channel in zip(paths, channels, strict=True):
        if not first.grid.same_as(channel.grid):
            raise ScanError(f"{path}: does not lie on the grid of {paths[0].name}; channels must")
    voxels = first.voxels if len(channels) == 1 else np.concatenate([c.voxels for c in channels])
    return Loaded(voxels, first.grid, first.header)


def _suffix(path: Path) -> str:
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ScanError(f"{path}: not a NIfTI file; allowed are {' and '.join(SUFFIXES)}")
    return suffix


def _read_channel(path: Path) -> Loaded:
    packed = _suffix(path) == ".nii.gz"
    with reading(path, "an image"):
        shape = _checked_shape(path, packed)
        with LoggingOutputSuppressor():
            image: Any = nib.load(path, mmap=False)
        grid = Grid(shape, image.affine)
        voxels = _values(image.dataobj).reshape(shape, order="F")
    _check_voxels(voxels, path)
    return Loaded(voxels[None], grid, image.header)


def _checked_shape(path: Path, packed: bool) -> tuple[int, int, int]:
    with ImageOpener(str(path)) as stream:
        block = stream.read(540)
    kind = nib.Nifti2Header if block[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header
    # Unchecked, as nibabel's own checks silently turn a spacing of zero into one.
    header = kind(block[: kind.sizeof_hdr], check=False)
    sizes = [int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1]]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3 or min(sizes) < 1:
        raise ScanError(f"{path}: image of shape {tuple(sizes)}; a 3-D scan is needed, one file per channel")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxels of type {dtype}; grey values are needed, one real number per voxel")
    needed, stored = math.prod(sizes) * dtype.itemsize, path.stat().st_size
    if math.prod(sizes) > MAX_VOXELS or needed > stored * (MAX_COMPRESSION if packed else 1):
        raise ScanError(f"{path}: truncated; header promises {needed} bytes of voxels, the file has {stored}")
    spacing = [float(s) for s in header["pixdim"][1:4]]
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ScanError(f"{path}: voxel spacing must be positive and finite, got {spacing} mm")
    return (sizes[0], sizes[1], sizes[2])


def _values(proxy: Any) -> AnyArray:
    """Real values: small integers as they are, everything else as float32."""
    raw: AnyArray = np.asarray(proxy.get_unscaled())
    slope, intercept = float(proxy.slope), float(proxy.inter)
    small = raw.dtype.itemsize <= 2
    if (slope, intercept) == (1.0, 0.0):
        kept = raw.dtype.newbyteorder("=") if small and raw.dtype.kind in "iu" else np.dtype(np.float32)
        with np.errstate(over="ignore"):
            return raw.astype(kept)
    # Eight and sixteen bit values are exact in float32; wider ones are scaled before rounding.
    work = np.dtype(np.float32 if small else np.float64)
    with np.errstate(over="ignore"):
        return (raw.astype(work) * work.type(slope) + work.type(intercept)).astype(np.float32)


def _check_voxels(voxels: AnyArray, path: Path) -> None:
    low, high = voxels.min(), voxels.max()  # NaN wins both
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise ScanError(f"{path}: {bad} of {voxels.size} voxels are NaN or infinite; repair the scan")
    if low == high:
        raise ScanError(f"{path}: constant image, every voxel is {float(low):g}")


def check_out(path: Path) -> None:
    """Refuse a place for the result before anything is computed.

    Raises:
        OutputError: not a NIfTI name, or no such folder.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise OutputError(f"{path}: cannot write this format; allowed are {' and '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; make it first")


def write(path: Path, values: AnyArray, like: Loaded) -> None:
    """Write label values ``[I, J, K]`` with the scan's geometry, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    image = nib.Nifti1Image(values, like.grid.affine, dtype=values.dtype)
    source = like.header
    sform, qform = int(source["sform_code"]), int(source["qform_code"])
    # Verbatim where the scan has them, so that other programs see exactly the same grid.
    image.set_sform(source.get_sform() if sform > 0 else like.grid.affine, code=sform or "scanner")
    image.set_qform(source.get_qform() if qform > 0 else like.grid.affine, code=qform or "scanner")
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as partial:
        nib.save(image, partial)
