"""Write label maps and images as files, in the format given by the suffix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zoomseg.core.errors import OutputError
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io import metaimage, nifti, nifti_header, nrrd
from zoomseg.io.files import atomic_path, reading
from zoomseg.io.nifti_header import AnyArray
from zoomseg.io.scan_files import SCAN_SUFFIXES, scan_suffix
from zoomseg.io.voxel_checks import check_same_grid


def write_labels(path: Path, labels: LabelMap, like: Path | None = None) -> None:
    """Write a label map with the schema's file values, in the format given by the suffix.

    Args:
        like: the corresponding scan. If both are NIfTI, its geometry fields are copied verbatim, so that
            every other program reads exactly the same grid, by any rules.

    Raises:
        OutputError: unsupported suffix, or the file cannot be written.
        ScanError: ``like`` is on another grid.
    """
    write_array(path, labels.schema.decode(labels.data), labels.grid, like)


def write_image(path: Path, image: Volume) -> None:
    """Write intensities as float32: 3-D for one channel, 4-D NIfTI with channels last for several."""
    data = image.data.astype(np.float32)
    write_array(path, data[0] if image.channels == 1 else np.moveaxis(data, 0, -1), image.grid)


def write_array(
    path: Path, array: AnyArray, grid: Grid, like: Path | None = None, scale: float | None = None
) -> None:
    """Write ``[I, J, K]`` (NIfTI also ``[I, J, K, C]``) on ``grid``, atomically, by suffix.

    Args:
        scale: meaning of a stored value of one, for the header of NIfTI only.
    """
    path = Path(path)
    suffix = written_suffix(path, array.ndim == 3)
    if suffix in (".nii", ".nii.gz"):
        image = nifti_header.image(array, grid, None if like is None else _geometry_of(Path(like), grid))
        if scale is not None:
            image.header.set_slope_inter(scale, 0)  # type: ignore[no-untyped-call]
        with atomic_path(path) as partial:
            nifti.save(image, partial, compressed=suffix == ".nii.gz")
        return
    with atomic_path(path) as partial:
        (nrrd if suffix == ".nrrd" else metaimage).save(partial, array, grid)


def written_suffix(path: Path, one_channel: bool = True) -> str:
    """The suffix of a file to be written.

    Raises:
        OutputError: it is not supported for writing, or not with several channels.
    """
    suffix = scan_suffix(path)
    if suffix is None or suffix == ".mhd":
        allowed = ", ".join(s for s in SCAN_SUFFIXES if s != ".mhd")
        raise OutputError(f"{path}: cannot write this format; supported are {allowed}")
    if not one_channel and suffix not in (".nii", ".nii.gz"):
        raise OutputError(f"{path}: several channels can only be written as .nii or .nii.gz")
    return suffix


def _geometry_of(scan: Path, grid: Grid) -> Any:
    """The header fields of a NIfTI scan, whose geometry is copied to its label map; None for other
    formats, as of a folder of DICOM files, whatever its name."""
    if scan_suffix(scan) not in (".nii", ".nii.gz") or scan.is_dir():
        return None
    with reading(scan, "an image"):
        header = nifti.header(scan, axes=4)
    check_same_grid(header.grid, grid, scan, Path("the result"))
    return header.fields
