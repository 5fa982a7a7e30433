"""Scans and label maps as files: NIfTI by nibabel, NRRD and MetaImage by SimpleITK, DICOM by ``io.dicom``.

Arrays are ``[I, J, K]`` in the file's own orientation, affines map voxel indices to RAS+ millimetres.
A file is hostile until checked: the header is read first and refused if it promises more voxels than
the file can hold, and whatever a reading library throws becomes one ``ScanError`` naming the file.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from zoomseg.core.errors import LabelError, OutputError, ScanError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io import nifti
from zoomseg.io.files import atomic_path, reading, reason_of
from zoomseg.io.memory import require_ram

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

    from zoomseg.io.dicom.finding import Refused, Stack
# Imported on the spot where they are needed: they take a tenth of a second, and most scans are NIfTI.

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_SUPPORTED = f"{', '.join(SCAN_SUFFIXES)}, and DICOM series in folders or zips"

MAX_VOXELS = 4 * 1024**3
"""A header that promises more voxels (all channels together) is refused."""

MAX_COMPRESSION = 1100
"""Deflate cannot pack more than 1032 bytes into one; a header promising more is lying."""

LABEL_MAP_MAX_VALUES = 128
LABEL_MAP_EQUAL_NEIGHBOURS = 0.8
"""An "image" of so few whole numbers, where most neighbours inside its objects are equal, is a label map."""

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_DETACHED = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

AnyArray = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScanInput:
    """One case to be read: its name and one file per channel, in channel order; of DICOM the folder, zip or
    file that was given."""

    id: str
    paths: tuple[Path, ...]
    dicom: Stack | Refused | None = None
    """Which series of those in there; reading a refused one raises its reason."""


# --- names ----------------------------------------------------------------------------------------


def scan_suffix(path: Path) -> str | None:
    """The supported suffix of a file name, or None."""
    name = Path(path).name.lower()
    return next((s for s in SCAN_SUFFIXES if name.endswith(s) and len(name) > len(s)), None)


def scan_name(path: Path) -> str:
    """File name without its scan suffix: ``a/liver_01.nii.gz`` -> ``liver_01``."""
    name = Path(path).name
    return name[: len(name) - len(scan_suffix(path) or "")]


def split_channel(name: str) -> tuple[str, int | None]:
    """``case_0001`` -> ``("case", 1)``; a name without a channel number -> ``(name, None)``."""
    match = _CHANNEL.fullmatch(name)
    return (match["case"], int(match["channel"])) if match else (name, None)


def scan_files(folder: Path) -> list[Path]:
    """Supported files directly in ``folder``, sorted by name; hidden ones (partial results) are left out."""
    try:
        files = [p for p in Path(folder).iterdir() if not p.name.startswith(".") and p.is_file()]
    except OSError as error:
        raise ScanError(f"{folder}: cannot be listed ({error.strerror})") from error
    return sorted(p for p in files if scan_suffix(p) is not None)


def _silent(note: str) -> None:
    pass


def find_scans(path: Path, tell: Callable[[str], None] = _silent) -> list[ScanInput]:
    """The cases in a file or folder. ``<case>_0000, <case>_0001, ...`` are channels of one case if they
    count from 0000; every other file is a case of its own.

    A folder without such files, a zip or a DICOM file is searched for DICOM series, folders and zips in it
    included. Each is a case (see ``io.dicom.finding.case_names``); those that cannot be used, too.

    Args:
        tell: gets notes of what was left out of DICOM, and what had to be done to make it a volume.

    Raises:
        ScanError: nothing there, a channel missing in between, or two files of one name.
    """
    path = Path(path)
    if path.is_file():
        if scan_suffix(path) is None and (found := _dicom_scans(path, tell)):
            return found
        _require_suffix(path)
        case, channel = split_channel(scan_name(path))
        return [ScanInput(case if channel == 0 else scan_name(path), (path,))]
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder")
    files = scan_files(path)
    found = _group_channels(files) if files else _dicom_scans(path, tell)
    if not found:
        raise ScanError(f"{path}: no scans in this folder; supported are {_SUPPORTED}")
    return found


def _dicom_scans(path: Path, tell: Callable[[str], None]) -> list[ScanInput]:
    from zoomseg.io.dicom.finding import case_names, find_series

    found = find_series(path)
    names = case_names(path, found)
    for note in found.notes:
        tell(note)
    for name, stack in zip(names, found.stacks, strict=False):  # the rest is refused, and has no notes
        for note in stack.series.notes:
            tell(f"{name}: {note}")
    series: tuple[Stack | Refused, ...] = (*found.stacks, *found.refused)
    return [ScanInput(name, (path,), one) for name, one in zip(names, series, strict=True)]


def _group_channels(files: Sequence[Path]) -> list[ScanInput]:
    groups: dict[str, dict[int, Path]] = {}
    for file in files:
        case, channel = split_channel(scan_name(file))
        if channel is not None:
            groups.setdefault(case, {}).setdefault(channel, file)
    found: dict[str, tuple[Path, ...]] = {}
    for file in files:
        case, channel = split_channel(scan_name(file))
        channels = groups.get(case, {}) if channel is not None else {}
        if channel is None or 0 not in channels:
            _add_case(found, scan_name(file), (file,))
        elif channel == 0:
            missing = sorted(set(range(max(channels))) - set(channels))
            if missing:
                raise ScanError(f"{file.parent}: case {case} has no file for channel {missing[0]:04d}")
            _add_case(found, case, tuple(channels[c] for c in sorted(channels)))
        elif channels[channel] != file:
            raise ScanError(f"{file.parent}: {channels[channel].name} and {file.name} are the same channel")
    return [ScanInput(case, paths) for case, paths in found.items()]


def _add_case(found: dict[str, tuple[Path, ...]], case: str, paths: tuple[Path, ...]) -> None:
    if case in found:
        names = f"{found[case][0].name} and {paths[0].name}"
        raise ScanError(f"{paths[0].parent}: {names} are both case '{case}'")
    found[case] = paths


def _require_suffix(path: Path) -> str:
    suffix = scan_suffix(path)
    if suffix is None:
        raise ScanError(f"{path}: not a supported scan file; supported are {_SUPPORTED}")
    return suffix


# --- reading --------------------------------------------------------------------------------------


def _check_size(path: Path, shape: tuple[int, ...], voxel_bytes: int, compressed: bool, stored: int) -> None:
    """Refuse headers that promise more than the file can hold, before anything is allocated."""
    if min(shape) < 1:
        raise ScanError(f"{path}: header gives the shape {shape}; every size must be at least 1")
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise ScanError(f"{path}: header promises {voxels} voxels; at most {MAX_VOXELS} are read")
    needed = voxels * voxel_bytes
    if needed > stored * (MAX_COMPRESSION if compressed else 1):
        raise ScanError(f"{path}: truncated; header promises {needed} bytes of voxels, the file has {stored}")


def _check_spacing(path: Path, spacing: Sequence[float]) -> None:
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        got = [float(s) for s in spacing]
        raise ScanError(f"{path}: voxel spacing must be positive and finite, got {got} mm")


def _trim(path: Path, shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Shape without trailing singleton axes: three sizes, or four where channels are allowed."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        raise ScanError(f"{path}: {len(shape)}-D image of shape {shape}; a 3-D scan is needed")
    if len(shape) > (4 if channels_last else 3):
        raise ScanError(
            f"{path}: {len(shape)}-D image of shape {shape}; give one 3-D file per channel or time"
        )
    return shape


@dataclass(frozen=True, eq=False)
class _Header:
    """What a file says about itself: shape (three sizes, or four with channels last) and grid."""

    shape: tuple[int, ...]
    grid: Grid
    dtype: np.dtype[Any]
    scaled: bool = False


@dataclass(frozen=True, eq=False)
class _Stored:
    """Voxels as stored; the real value is ``raw * slope + intercept``."""

    raw: AnyArray
    slope: float
    intercept: float

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def _header(path: Path, channels_last: bool = False) -> _Header:
    suffix = _require_suffix(path)
    with reading(path, "an image"):
        if suffix in (".nii", ".nii.gz"):
            return _nifti_header(path, suffix, channels_last)
        return _itk_header(path, channels_last)


def _nifti_header(path: Path, suffix: str, channels_last: bool) -> _Header:
    raw = nifti.unchecked_header(path)
    dimensions = int(raw["dim"][0])
    if not 1 <= dimensions <= 7:
        raise ScanError(f"{path}: damaged, truncated or not an image (header gives {dimensions} dimensions)")
    shape = tuple(int(n) for n in raw["dim"][1 : dimensions + 1])
    shape = _trim(path, shape, channels_last)
    dtype = raw.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxels of type {dtype}; grey values are needed, one real number per voxel")
    _check_size(path, shape, dtype.itemsize, suffix == ".nii.gz", path.stat().st_size)
    _check_spacing(path, raw["pixdim"][1:4])
    slope, intercept = (float(raw[name]) for name in ("scl_slope", "scl_inter"))
    scaled = math.isfinite(slope) and slope != 0 and (slope, intercept) != (1.0, 0.0)
    return _Header(shape, Grid((shape[0], shape[1], shape[2]), nifti.load(path).affine), dtype, scaled)


def _itk_reader(path: Path) -> sitk.ImageFileReader:
    import SimpleITK as sitk  # noqa: N813

    detached = _DETACHED.search(_text_header(path))
    if detached and detached[1].upper() != b"LOCAL" and not re.fullmatch(rb"[^/\\%]+", detached[1]):
        place = detached[1].decode(errors="replace")
        raise ScanError(f"{path}: its voxels must be in one file in the same folder, not in {place}")
    if detached and detached[1].upper().startswith(b"LIST"):
        raise ScanError(f"{path}: voxels spread over several files are not supported; convert it to one file")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if scan_suffix(path) == ".nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    return reader


def _text_header(path: Path) -> bytes:
    """The textual start of a NRRD or MetaImage file; a name in its voxels must not be taken for a field."""
    with path.open("rb") as stream:
        text = stream.read(65536)
    if scan_suffix(path) == ".nrrd":
        return re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0]
    end = re.search(rb"^ElementDataFile.*$", text, re.MULTILINE)
    header = text[: end.end()] if end else b""
    for field in (b"NDims", b"DimSize", b"ElementType"):  # ITK would complain on standard error by itself
        if not re.search(rb"^" + field + rb"\s*=", header, re.MULTILINE):
            raise ScanError(f"{path}: damaged, truncated or not an image (no MetaImage header)")
    packed = re.search(rb"^CompressedDataSize\s*=\s*(\d{1,15})", header, re.MULTILINE)
    if packed and header.endswith(b"LOCAL") and int(packed[1]) > path.stat().st_size:
        raise ScanError(f"{path}: truncated; header promises {int(packed[1])} bytes of compressed voxels")
    return header


def _itk_header(path: Path, channels_last: bool) -> _Header:
    reader = _itk_reader(path)
    reader.ReadImageInformation()
    components = reader.GetNumberOfComponents()
    if components != 1:
        raise ScanError(f"{path}: {components} values per voxel; give one 3-D file per channel")
    shape = _trim(path, tuple(int(n) for n in reader.GetSize()), channels_last)
    text = _text_header(path)
    detached = _DETACHED.search(text)
    data = path.with_name(detached[1].decode()) if detached and detached[1].upper() != b"LOCAL" else path
    packed = re.search(rb"encoding:\s*(gz|bz)|CompressedData\s*=\s*True", text, re.IGNORECASE) is not None
    dtype = np.dtype(_itk_types().get(reader.GetPixelID(), "float64"))
    _check_size(path, shape, dtype.itemsize, packed, data.stat().st_size)
    dimension = reader.GetDimension()
    spacing = reader.GetSpacing()[:3]
    _check_spacing(path, spacing)
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(spacing)
    affine[:3, 3] = reader.GetOrigin()[:3]
    return _Header(shape, Grid((shape[0], shape[1], shape[2]), _LPS_TO_RAS @ affine), dtype)


def _itk_types() -> dict[int, str]:
    import SimpleITK as sitk  # noqa: N813

    integers = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64")
    return {getattr(sitk, f"sitk{name}"): name.lower() for name in (*integers, "Float32", "Float64")}


def _stored(path: Path, header: _Header) -> _Stored:
    _require_room(path, header)
    with reading(path, "an image"):
        if scan_suffix(path) in (".nii", ".nii.gz"):
            raw, slope, intercept = nifti.voxels(path)
            return _Stored(raw.reshape(header.shape, order="F"), slope, intercept)
        import SimpleITK as sitk  # noqa: N813

        raw = sitk.GetArrayFromImage(_itk_reader(path).Execute())
        return _Stored(raw.T.reshape(header.shape, order="F"), 1.0, 0.0)


def read_grid(path: Path) -> Grid:
    """Shape and affine of a 3-D scan; only the header is read."""
    stack = _dicom_stack(path)
    return _header(Path(path)).grid if stack is None else stack.series.grid


def _dicom_stack(path: Path) -> Stack | None:
    """The series in a folder, zip or DICOM file; None if it is a file of another format."""
    path = Path(path)
    if not path.exists() or (path.is_file() and scan_suffix(path) is not None):
        return None
    from zoomseg.io.dicom.finding import holds_dicom, the_series

    return the_series(path) if path.is_dir() or holds_dicom(path) else None


def reading_bytes(scan: ScanInput, channels_last: bool = False) -> tuple[Grid, int]:
    """The grid of a scan, and how much memory reading it takes; only headers are read."""
    stack = _dicom_stack(scan.paths[0]) if scan.dicom is None else scan.dicom.usable()
    if stack is not None:
        from zoomseg.io.dicom.voxels import reading_bytes as of_dicom

        return stack.series.grid, of_dicom(stack)
    headers = [_header(path, channels_last) for path in scan.paths]
    total = sum(_voxel_bytes(path, h) for path, h in zip(scan.paths, headers, strict=True))
    # Channels of several files are put together once all are read.
    return headers[0].grid, total if len(headers) == 1 else 2 * total


def _voxel_bytes(path: Path, header: _Header) -> int:
    """How much memory the voxels of a file take while they are read and made intensities."""
    voxels, size = math.prod(header.shape), header.dtype.itemsize
    kept = header.dtype in _KEPT_TYPES and not header.scaled
    work = _work_type(header.dtype).itemsize if header.scaled else 0
    made = 0 if kept else max(work, 4) if work <= 4 else work + 4
    if scan_suffix(path) in (".nii", ".nii.gz"):
        return voxels * (size + made)
    # SimpleITK has an image, of which numpy gets a copy; of a compressed file it also reads all at once.
    return voxels * size + max(voxels * size + path.stat().st_size, voxels * made)


def _require_room(path: Path, header: _Header) -> None:
    """Refuse a file that would not fit into what memory is free, before its voxels are read.

    Raises:
        MemoryLimitError: it would not.
    """
    require_ram(_voxel_bytes(path, header), f"{path}: reading {math.prod(header.shape)} voxels")


def _work_type(stored: np.dtype[Any]) -> np.dtype[Any]:
    """In which slope and intercept are applied: values of eight and sixteen bits are exact in float32; wider
    ones are scaled before rounding."""
    return np.dtype(np.float32 if stored.itemsize <= 2 else np.float64)


def read_voxels(path: Path, channels_last: bool = False) -> Volume:
    """Intensities of one file as they are, NaN and all: ``[C, I, J, K]``, float32, or integers of up to 16
    bits where the file holds such: a large scan is then half the size.

    Args:
        channels_last: a 4-D file holds one channel per volume (as in the Medical Segmentation Decathlon).

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
        values = _intensities(stored)
        four = values if values.ndim == 4 else values[..., None]
        return Volume(torch.from_numpy(np.moveaxis(four, -1, 0)), header.grid)


def _dicom_voxels(path: Path, stack: Stack) -> Volume:
    from zoomseg.io.dicom.voxels import read_volume
    from zoomseg.io.dicom.voxels import reading_bytes as of_dicom

    require_ram(of_dicom(stack), f"{path}: reading the series")
    with reading(path, "an image"):
        return read_volume(stack)


def _intensities(stored: _Stored) -> AnyArray:
    raw = stored.raw
    if stored.scaled:
        work = _work_type(raw.dtype)
        values = raw.astype(work)
        values *= work.type(stored.slope)
        values += work.type(stored.intercept)
        return values.astype(np.float32, copy=False)
    return raw if raw.dtype in _KEPT_TYPES else raw.astype(np.float32)


_KEPT_TYPES = (np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int16))


def read_image(paths: Path | str | Sequence[Path], channels_last: bool = False) -> Volume:
    """Read a scan: ``[C, I, J, K]``, float32 or small integers (see ``read_voxels``), one channel per file
    (or per volume of one 4-D file). A folder or zip must hold one DICOM series.

    Slope and intercept are applied. Grids of several files must agree within
    ``GEOMETRY_TOLERANCE_MM``; the first one is kept.

    Raises:
        ScanError: unreadable, wrong shape or geometry, NaN or infinite voxels, a constant image, a
            label map, or channels on different grids.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(p) for p in paths]
    if not files:
        raise ScanError("a scan needs at least one file")
    return _checked(files, [read_voxels(file, channels_last) for file in files])


def read_scan(scan: ScanInput, channels_last: bool = False) -> Volume:
    """``read_image`` of what ``find_scans`` found."""
    if scan.dicom is None:
        return read_image(scan.paths, channels_last)
    return _checked(scan.paths, [_dicom_voxels(scan.paths[0], scan.dicom.usable())])


def _checked(files: Sequence[Path], volumes: Sequence[Volume]) -> Volume:
    """The channels of one scan, each fit for a network, together."""
    for file, volume in zip(files, volumes, strict=True):
        for channel in volume.data.numpy():
            check_voxels(channel, file)
        check_same_grid(volumes[0].grid, volume.grid, files[0], file)
    if all(looks_like_labels(channel) for volume in volumes for channel in volume.data.numpy()):
        raise ScanError(f"{files[0]}: looks like a label map, not like a scan; give the image itself")
    data = volumes[0].data if len(volumes) == 1 else torch.cat([v.data for v in volumes])
    return Volume(data, volumes[0].grid)


def check_voxels(values: Float32Array, path: Path) -> None:
    """Refuse voxels that no network can use.

    Raises:
        ScanError: NaN or infinite voxels (counted), or all voxels equal.
    """
    low, high = values.min(), values.max()  # NaN wins both
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(values.size - np.isfinite(values).sum())
        what = "all voxels are" if bad == values.size else f"{bad} of {values.size} voxels are"
        raise ScanError(f"{path}: {what} NaN or infinite; repair it, a data set with 'zoomseg check --fix'")
    if low == high:
        raise ScanError(f"{path}: constant image, every voxel is {float(low):g}")


def check_same_grid(first: Grid, second: Grid, first_path: Path, second_path: Path) -> None:
    """Refuse two files of one case that do not lie on one grid.

    Raises:
        ScanError: shapes differ, or voxel centres are further apart than ``GEOMETRY_TOLERANCE_MM``.
    """
    if first.shape != second.shape:
        raise ScanError(f"{second_path}: shape {second.shape} but {first_path.name} has {first.shape}")
    if not first.same_as(second):
        distance = first.distance_mm(second)
        raise ScanError(f"{second_path}: is up to {distance:.3g} mm off the grid of {first_path.name}")


def looks_like_labels(values: Float32Array) -> bool:
    """Whether an "image" ``[I, J, K]`` is really a label map: few whole numbers from 0 up, in patches."""
    if values.min() != 0 or values.max() > 65535:
        return False
    sample = values[:: max(1, values.shape[0] // 32)]  # a real scan gives itself away in a few slices
    if not (sample == np.floor(sample)).all() or np.unique(sample).size > LABEL_MAP_MAX_VALUES:
        return False
    if _several(values) > LABEL_MAP_MAX_VALUES:
        return False
    planes = values.transpose(np.argsort(values.strides)[::-1])  # as they lie in memory
    pairs = equal = 0
    for n, plane in enumerate(planes):  # as a whole it would take several times the scan's memory
        across = [(planes[n - 1], plane)] if n else []
        for here, following in (*across, (plane[:-1], plane[1:]), (plane[:, :-1], plane[:, 1:])):
            inside = (here != 0) & (following != 0)
            pairs += int(inside.sum())
            equal += int((inside & (here == following)).sum())
    return pairs > 0 and equal / pairs > LABEL_MAP_EQUAL_NEIGHBOURS


def _several(values: Float32Array) -> int:
    """How many values there are, or that there are more than a label map has."""
    found: set[float] = set()
    for plane in values.transpose(np.argsort(values.strides)[::-1]):
        found.update(np.unique(plane).tolist())
        if len(found) > LABEL_MAP_MAX_VALUES:
            break
    return len(found)


def read_label_values(path: Path) -> tuple[AnyArray, Grid]:
    """Label values as the file holds them: integers ``[I, J, K]``, and their grid.

    Raises:
        ScanError: unreadable, wrong shape or geometry, values that are not whole numbers.
    """
    path = Path(path)
    header = _header(path)
    stored = _stored(path, header)
    values = stored.raw.astype(stored.raw.dtype.newbyteorder("="), copy=False)
    if stored.scaled:
        values = values.astype(np.float64) * stored.slope + stored.intercept
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ScanError(f"{path}: label values are NaN or infinite")
        if np.abs(values).max() > np.iinfo(np.int32).max or (values != np.rint(values)).any():
            raise ScanError(f"{path}: label values are not whole numbers; is this an image or probabilities?")
        values = values.astype(np.int32)
    return values, header.grid


def read_labels(path: Path, schema: LabelSchema) -> LabelMap:
    """Read a label map as class indices of ``schema``.

    Raises:
        ScanError: as ``read_label_values``.
        LabelError: values that the schema does not know; the message names the file.
    """
    values, grid = read_label_values(path)
    try:
        classes = schema.encode(values)
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from error
    return LabelMap(torch.from_numpy(np.ascontiguousarray(classes)), grid, schema)


# --- writing --------------------------------------------------------------------------------------


def write_labels(path: Path, labels: LabelMap, like: Path | None = None) -> None:
    """Write a label map with the schema's file values, in the format that the suffix names.

    Args:
        like: the scan it belongs to. If both are NIfTI, its geometry fields are copied verbatim, so
            that other programs see exactly the same grid.

    Raises:
        OutputError: unsupported suffix, or the file cannot be written.
        ScanError: ``like`` lies on another grid.
    """
    write_array(path, labels.schema.decode(labels.data.cpu().numpy()), labels.grid, like)


def write_image(path: Path, image: Volume) -> None:
    """Write intensities as float32: 3-D for one channel, 4-D NIfTI with channels last for several."""
    data = image.data.detach().cpu().float().numpy()
    write_array(path, data[0] if image.channels == 1 else np.moveaxis(data, 0, -1), image.grid)


def write_array(path: Path, array: AnyArray, grid: Grid, like: Path | None = None) -> None:
    """Write ``[I, J, K]`` (NIfTI also ``[I, J, K, C]``) on ``grid``, atomically, by suffix."""
    path = Path(path)
    suffix = scan_suffix(path)
    if suffix is None or suffix == ".mhd":
        allowed = ", ".join(s for s in SCAN_SUFFIXES if s != ".mhd")
        raise OutputError(f"{path}: cannot write this format; supported are {allowed}")
    if suffix in (".nii", ".nii.gz"):
        image = _nifti_image(array, grid, like)
        with atomic_path(path) as partial:
            nifti.save(image, partial, compressed=suffix == ".nii.gz")
        return
    if array.ndim != 3:
        raise OutputError(f"{path}: several channels can only be written as .nii or .nii.gz")
    import SimpleITK as sitk  # noqa: N813

    with atomic_path(path) as partial:
        try:
            sitk.WriteImage(itk_image(array, grid), str(partial), useCompression=True)
        except RuntimeError as error:
            raise OutputError(f"{path}: cannot be written ({reason_of(error)})") from error


def _nifti_image(array: AnyArray, grid: Grid, like: Path | None) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)
    image.set_sform(grid.affine, code="scanner")
    image.set_qform(grid.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    if like is None or scan_suffix(like) not in (".nii", ".nii.gz"):
        return image
    check_same_grid(_header(Path(like), channels_last=True).grid, grid, Path(like), Path("the result"))
    source = nifti.load(Path(like))
    if int(source.header["sform_code"]) > 0:
        image.set_sform(source.header.get_sform(), code=int(source.header["sform_code"]))
    if int(source.header["qform_code"]) > 0:
        image.set_qform(source.header.get_qform(), code=int(source.header["qform_code"]))
    return image


def itk_image(array: AnyArray, grid: Grid) -> sitk.Image:
    """``[I, J, K]`` on ``grid`` as SimpleITK has it, in LPS coordinates."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    affine: FloatArray = _LPS_TO_RAS @ grid.affine
    spacing = np.array(grid.spacing_mm)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image
