"""NIfTI scans in, label maps out, by nibabel. A file is hostile until checked: the header is read first, and
refused if it promises more voxels than the file can hold."""

# mypy: allow-untyped-calls

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from zoomseg.core.errors import OutputError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.export.runner.resample import AnyArray
from zoomseg.io.files import atomic_path, reading
from zoomseg.io.nifti_header import HEADER_BYTES, NiftiHeader, checksum_error, image, parse, read_voxels

SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True, eq=False)
class Loaded:
    """``voxels [C, I, J, K]`` (integers of at most 16 bits as stored, else float32) on ``grid``, the header
    that the result shall have, and what the user must know of how the grid was found."""

    voxels: AnyArray
    grid: Grid
    header: Any
    notes: tuple[str, ...]


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
    notes = tuple(dict.fromkeys(note for channel in channels for note in channel.notes))
    return Loaded(voxels, first.grid, first.header, notes)


def _suffix(path: Path) -> str:
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ScanError(f"{path}: not a NIfTI file; allowed are {' and '.join(SUFFIXES)}")
    return suffix


def _read_channel(path: Path) -> Loaded:
    packed = _suffix(path) == ".nii.gz"
    with reading(path, "an image"):
        with _opened(path, packed) as stream:
            header = parse(path, stream.read(HEADER_BYTES), path.stat().st_size, packed)
        with _opened(path, packed) as stream:
            voxels = _values(read_voxels(path, header, stream), header)
            if packed:
                _verify(path, stream)
    _check_voxels(voxels, path)
    return Loaded(voxels[None], header.grid, header.fields, header.notes)


def _opened(path: Path, packed: bool) -> Any:
    return gzip.open(path, "rb") if packed else path.open("rb")


def _verify(path: Path, stream: gzip.GzipFile) -> None:
    """Read on to the end of the gzip member, if it ends here: only then is its checksum compared. What lies
    behind it is passed over."""
    try:
        stream.read(1)
    except EOFError:  # of the checksum itself, or of bytes behind the member
        return
    except gzip.BadGzipFile as error:  # of bytes behind it, too
        if str(error).startswith(("CRC check failed", "Incorrect length")):
            raise checksum_error(path) from error


def _values(raw: AnyArray, header: NiftiHeader) -> AnyArray:
    """Real values: small integers as they are, everything else as float32."""
    small = raw.dtype.itemsize <= 2
    with np.errstate(over="ignore"):
        if not header.scaled:
            return raw if small and raw.dtype.kind in "iu" else raw.astype(np.float32)
        # Eight and sixteen bit values are exact in float32; wider ones are scaled before rounding.
        work = np.dtype(np.float32 if small else np.float64)
        scaled = raw.astype(work) * work.type(header.slope) + work.type(header.intercept)
        return scaled.astype(np.float32)


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
    made = image(values, like.grid, like.header)
    with atomic_path(path) as partial:
        nib.save(made, partial)
