"""Read scans and label maps from files: the interface for the other packages, for all formats.

Arrays are ``[I, J, K]`` in the file's own orientation, affines map voxel indices to RAS+ millimetres. A file
is hostile until checked: the header is read first and refused if it specifies more voxels than the file can
contain, and every exception of a reading library becomes one ``ScanError`` that names the file.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoomseg.core.case import Case
from zoomseg.core.errors import LabelError, ScanError, listed
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.memory import require_ram
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io import itk_voxels, metaimage, nifti, nrrd
from zoomseg.io.files import reading
from zoomseg.io.itk_header import ItkHeader
from zoomseg.io.nifti_header import AnyArray, NiftiHeader
from zoomseg.io.scan_files import (
    SCAN_SUFFIXES,
    ScanInput,
    as_channels,
    files_by_case,
    find_scans,
    require_suffix,
    scan_files,
    scan_name,
    scan_suffix,
    split_channel,
    the_scan,
)
from zoomseg.io.scan_writing import write_array, write_image, write_labels, written_suffix
from zoomseg.io.voxel_checks import KEPT_TYPES, check_same_grid, check_scan, looks_like_labels

if TYPE_CHECKING:
    from zoomseg.io.dicom.read.series_discovery import Stack
# Imported where they are needed: they take a tenth of a second, and most scans are NIfTI.

__all__ = [
    "SCAN_SUFFIXES",
    "ScanInput",
    "as_channels",
    "check_same_grid",
    "files_by_case",
    "find_scans",
    "header_notes",
    "header_notes_by_case",
    "looks_like_labels",
    "notes_on",
    "read_grid",
    "read_image",
    "read_label_values",
    "read_labels",
    "read_rounded_labels",
    "read_scan",
    "read_voxels",
    "reading_bytes",
    "scan_files",
    "scan_name",
    "scan_suffix",
    "source_files",
    "split_channel",
    "the_scan",
    "write_array",
    "write_image",
    "write_labels",
    "written_suffix",
]

WHOLE_NUMBER_TOLERANCE = 1e-3
"""Label values this close to a whole number are that number: 32-bit floats and slopes such as 1/255 are
inexact."""

_PIECE_VOXELS = 1 << 20
"""Number of label values that are rounded at a time."""

_NUMBER = re.compile(r"[\d.]+(e[+-]\d+)?")

_Header = NiftiHeader | ItkHeader


def _header(path: Path, channels_last: bool = False) -> _Header:
    suffix, axes = require_suffix(path), 4 if channels_last else 3
    with reading(path, "an image"):
        match suffix:
            case ".nrrd":
                return nrrd.header(path, axes)
            case ".mha" | ".mhd":
                return metaimage.header(path, axes)
            case _:
                return nifti.header(path, axes)


def _stored(path: Path, header: _Header) -> AnyArray:
    """Voxels as stored; the real value is ``raw * slope + intercept``."""
    _require_room(path, header)
    with reading(path, "an image"):
        if isinstance(header, ItkHeader):
            return itk_voxels.read_voxels(path, header)
        return nifti.voxels(path, axes=len(header.shape))[0]


def header_notes(path: Path, channels_last: bool = False) -> tuple[str, ...]:
    """What the user must know about how the header of a non-DICOM file was read; usually empty."""
    return _header(Path(path), channels_last).notes


def read_grid(path: Path) -> Grid:
    """Shape and affine of a 3-D scan; only the header is read."""
    stack = _dicom_stack(path)
    return _header(Path(path)).grid if stack is None else stack.series.grid


def _dicom_stack(path: Path) -> Stack | None:
    """The series in a folder, zip or DICOM file; None if it is a file of another format."""
    path = Path(path)
    if not os.path.exists(path) or (os.path.isfile(path) and scan_suffix(path) is not None):
        return None
    from zoomseg.io.dicom.read.series_discovery import holds_dicom, the_series

    return the_series(path) if os.path.isdir(path) or holds_dicom(path) else None


def reading_bytes(scan: ScanInput, channels_last: bool = False) -> tuple[Grid, int]:
    """The grid of a scan, and the memory needed to read it; only headers are read."""
    stack = _dicom_stack(scan.paths[0]) if scan.dicom is None else scan.dicom.usable()
    if stack is not None:
        from zoomseg.io.dicom.read.voxels import reading_bytes as of_dicom

        return stack.series.grid, of_dicom(stack)
    headers = [_header(path, channels_last) for path in scan.paths]
    total = sum(_voxel_bytes(path, h) for path, h in zip(scan.paths, headers, strict=True))
    # Channels of several files are joined after all are read.
    return headers[0].grid, total if len(headers) == 1 else 2 * total


def _voxel_bytes(path: Path, header: _Header) -> int:
    """Memory of a file's voxels while they are read and converted to intensities; label values take no
    more."""
    voxels, size = math.prod(header.shape), header.dtype.itemsize
    kept = header.dtype in KEPT_TYPES and not header.scaled
    work = _work_type(header.dtype).itemsize if header.scaled else 0
    made = 0 if kept else max(work, 4) if work <= 4 else work + 4
    text = itk_voxels.text_bytes(header) if isinstance(header, ItkHeader) else 0
    return voxels * (size + made) + text


def _require_room(path: Path, header: _Header) -> None:
    """Refuse a file that would not fit into the free memory, before its voxels are read.

    Raises:
        MemoryLimitError: it would not.
    """
    require_ram(_voxel_bytes(path, header), f"{path}: reading {math.prod(header.shape)} voxels")


def _work_type(stored: np.dtype[Any]) -> np.dtype[Any]:
    """Type for applying slope and intercept: values of eight and sixteen bits are exact in float32; wider
    ones are scaled before rounding."""
    return np.dtype(np.float32 if stored.itemsize <= 2 else np.float64)


def read_voxels(path: Path, channels_last: bool = False) -> Volume:
    """Intensities of one file without checks, including NaN: ``[C, I, J, K]``, float32, or integers of up to
    16 bits if the file contains such: a large scan is then half the size.

    Args:
        channels_last: a 4-D file contains one channel per volume (as in the Medical Segmentation Decathlon).

    Raises:
        ScanError: unreadable, not 3-D, impossible geometry.
    """
    path = Path(path)
    stack = _dicom_stack(path)
    if stack is not None:
        return _dicom_voxels(path, stack)
    header = _header(path, channels_last)
    stored = _stored(path, header)
    with reading(path, "an image"), np.errstate(over="ignore"):
        values = _intensities(stored, header)
        four = values if values.ndim == 4 else values[..., None]
        return Volume(np.moveaxis(four, -1, 0), header.grid)


def _dicom_voxels(path: Path, stack: Stack) -> Volume:
    from zoomseg.io.dicom.read.voxels import read_volume
    from zoomseg.io.dicom.read.voxels import reading_bytes as of_dicom

    require_ram(of_dicom(stack), f"{path}: reading the series")
    with reading(path, "an image"):
        return read_volume(stack)


def _intensities(raw: AnyArray, header: _Header) -> AnyArray:
    if header.scaled:
        work = _work_type(raw.dtype)
        values = raw.astype(work)
        values *= work.type(header.slope)
        values += work.type(header.intercept)
        return values.astype(np.float32, copy=False)
    return raw if raw.dtype in KEPT_TYPES else raw.astype(np.float32)


def read_image(paths: Path | str | Sequence[Path], channels_last: bool = False) -> Volume:
    """Read a scan: ``[C, I, J, K]``, float32 or small integers (see ``read_voxels``), one channel per file
    (or per volume of one 4-D file). A folder or zip must contain one DICOM series.

    Slope and intercept are applied. Grids of several files must agree within ``GEOMETRY_TOLERANCE_VOX``; the
    first one is used.

    Raises:
        ScanError: unreadable, wrong shape or geometry, NaN or infinite voxels, a constant image, a label map,
            or channels on different grids.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(p) for p in paths]
    if not files:
        raise ScanError("a scan needs at least one file")
    return _checked(files, [read_voxels(file, channels_last) for file in files])


def read_scan(scan: ScanInput, channels_last: bool = False) -> Case:
    """``read_image`` for a result of ``find_scans``, with its modality and notes."""
    if scan.dicom is None:
        return Case(scan.id, read_image(scan.paths, channels_last), notes=notes_on(scan, channels_last))
    stack = scan.dicom.usable()
    image = _checked(scan.paths, [_dicom_voxels(scan.paths[0], stack)])
    return Case(scan.id, image, modality=stack.series.modality or None, notes=notes_on(scan))


def source_files(scan: ScanInput) -> tuple[Path, ...]:
    """Every file of a scan: the given ones, for DICOM all slices of the series (or the zips that contain
    them), for a text header also the file of its voxels.

    Raises:
        ScanError: a text header cannot be read.
    """
    if scan.dicom is not None:
        return tuple(dict.fromkeys(scan.dicom.paths))
    found = list(scan.paths)
    for path in scan.paths:
        if scan_suffix(path) in (".nrrd", ".mha", ".mhd"):
            header = _header(path, channels_last=True)
            assert isinstance(header, ItkHeader)
            found.append(header.place.file)
    return tuple(dict.fromkeys(found))


def notes_on(scan: ScanInput, channels_last: bool = False) -> tuple[str, ...]:
    """What the user should know about how a scan's files become a volume; one line each."""
    if scan.dicom is not None:
        return scan.dicom.usable().series.notes
    found = (note for path in scan.paths for note in header_notes(path, channels_last))
    return tuple(dict.fromkeys(found))


def header_notes_by_case(files: Mapping[str, Iterable[Path]]) -> list[str]:
    """Each note on the headers of these files, which are given by case, with its cases; of notes that
    differ only in numbers, the first. A header that cannot be read gives none; reading the file reports
    the reason."""
    found: dict[str, tuple[str, list[str]]] = {}
    for case, paths in files.items():
        for path in paths:
            with contextlib.suppress(ScanError):
                for note in header_notes(path, channels_last=True):
                    _, cases = found.setdefault(_NUMBER.sub("", note), (note, []))
                    cases += [case] if case not in cases[-1:] else []
    return [f"{note} (case {listed(cases)})" for note, cases in found.values()]


def _checked(files: Sequence[Path], volumes: Sequence[Volume]) -> Volume:
    """The channels of one scan, each valid for a network, as one array."""
    for file, volume in zip(files, volumes, strict=True):
        check_same_grid(volumes[0].grid, volume.grid, files[0], file)
    check_scan([(own, file) for file, volume in zip(files, volumes, strict=True) for own in volume.data])
    data = volumes[0].data if len(volumes) == 1 else np.concatenate([v.data for v in volumes])
    return Volume(data, volumes[0].grid)


def read_label_values(path: Path) -> tuple[AnyArray, Grid]:
    """Label values of a file: integers ``[I, J, K]``, and their grid. Values that float storage or a slope
    moved away from a whole number (see ``WHOLE_NUMBER_TOLERANCE``) are that number.

    Raises:
        ScanError: unreadable, wrong shape or geometry, values that are not whole numbers.
    """
    values, grid, _ = read_rounded_labels(path)
    return values, grid


def read_rounded_labels(path: Path) -> tuple[AnyArray, Grid, float]:
    """As ``read_label_values``, with the largest distance of the stored values from whole numbers."""
    path = Path(path)
    header = _header(path)
    stored = _stored(path, header)
    if stored.dtype.kind != "f" and not header.scaled:
        return stored, header.grid, 0.0
    flat, off = stored.reshape(-1, order="F"), 0.0
    whole = np.empty(flat.size, np.int32)
    for start in range(0, flat.size, _PIECE_VOXELS):  # all at once would take several times the memory
        piece = slice(start, start + _PIECE_VOXELS)
        with np.errstate(over="ignore"):  # infinite values are refused
            values = flat[piece].astype(np.float64) * header.slope + header.intercept
        whole[piece], apart = _rounded(path, values)
        off = max(off, apart)
    return whole.reshape(stored.shape, order="F"), header.grid, off


def _rounded(path: Path, values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """Whole numbers, and their largest distance from the values."""
    if not np.isfinite(values).all():
        raise ScanError(f"{path}: label values are NaN or infinite")
    whole: npt.NDArray[np.float64] = np.rint(values)
    off = float(np.abs(values - whole).max())
    if np.abs(whole).max() > np.iinfo(np.int32).max or off > WHOLE_NUMBER_TOLERANCE:
        raise ScanError(f"{path}: label values are not whole numbers; is this an image or probabilities?")
    return whole, off


def read_labels(path: Path, schema: LabelSchema) -> LabelMap:
    """Read a label map as class indices of ``schema``.

    Raises:
        ScanError: as ``read_label_values``.
        LabelError: values that are not in the schema; the message names the file.
    """
    values, grid = read_label_values(path)
    try:
        classes = schema.encode(values)
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from error
    return LabelMap(np.ascontiguousarray(classes), grid, schema)
