"""Scans and label maps as files: NIfTI by nibabel, NRRD and MetaImage by SimpleITK, DICOM by ``io.dicom``.

Arrays are ``[I, J, K]`` in the file's own orientation, affines map voxel indices to RAS+ millimetres.
A file is hostile until checked: the header is read first and refused if it promises more voxels than
the file can hold, and whatever a reading library throws becomes one ``ScanError`` naming the file.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib as zlib

from zoomseg.core.case import Case
from zoomseg.core.errors import LabelError, OutputError, ScanError, listed, quoted
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.memory import require_ram
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io import itk_header, nifti, nifti_header
from zoomseg.io.files import atomic_path, printable, reading, reason_of, why_unreadable
from zoomseg.io.header_limits import check_grid, check_size, check_spacing

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

    from zoomseg.io.dicom.read.series_discovery import Refused, Stack
    from zoomseg.io.itk_header import TextHeader
# Imported on the spot where they are needed: they take a tenth of a second, and most scans are NIfTI.

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_SUPPORTED = f"{', '.join(SCAN_SUFFIXES)}, and DICOM series in folders or zips"

LABEL_MAP_MAX_VALUES = 128
LABEL_MAP_EQUAL_NEIGHBOURS = 0.8
"""An "image" of so few whole numbers, where most neighbours inside its objects are equal, is a label map."""

WHOLE_NUMBER_TOLERANCE = 1e-3
"""Label values so close to a whole number are that number: 32-bit floats and slopes such as 1/255 miss it."""

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_NUMBER = re.compile(r"[\d.]+(e[+-]\d+)?")
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
    """File name without its scan suffix: ``a/liver_01.nii.gz`` -> ``liver_01``; any file can hold it."""
    name = Path(path).name
    return printable(name[: len(name) - len(scan_suffix(path) or "")])


def split_channel(name: str) -> tuple[str, int | None]:
    """``case_0001`` -> ``("case", 1)``; a name without a channel number -> ``(name, None)``."""
    match = _CHANNEL.fullmatch(name)
    return (match["case"], int(match["channel"])) if match else (name, None)


def scan_files(folder: Path) -> list[Path]:
    """Supported files directly in ``folder``, sorted by name; hidden ones (partial results) are left out.
    Links to nowhere are files: whoever reads them says so.

    Raises:
        ScanError: the folder cannot be listed.
    """
    try:
        files = [p for p in Path(folder).iterdir() if not p.name.startswith(".") and scan_suffix(p)]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ScanError(f"{quoted(folder)}: cannot be listed ({reason})") from error
    return sorted(p for p in files if os.path.isfile(p) or not os.path.exists(p))


def files_by_case(folder: Path) -> dict[str, Path]:
    """``<case>.nii.gz`` and the like in a folder, by case.

    Raises:
        ScanError: two files of one case, or the folder cannot be listed.
    """
    files: dict[str, Path] = {}
    for file in scan_files(folder):
        _add_case(files, scan_name(file), file)
    return files


def _add_case(cases: dict[str, Path], case: str, file: Path) -> None:
    if case in cases:
        names = f"{quoted(cases[case].name)} and {quoted(file.name)}"
        raise ScanError(f"{quoted(file.parent)}: {names} are both case '{quoted(case)}'; keep one of them")
    cases[case] = file


def _silent(note: str) -> None:
    pass


def find_scans(
    path: Path, on_note: Callable[[str], None] = _silent, apart: Container[str] = ()
) -> list[ScanInput]:
    """The cases in a file or folder. ``<case>_0000, <case>_0001, ...`` are channels of one case if they
    count from 0000; every other file is a case of its own.

    A folder without such files, a zip or a DICOM file is searched for DICOM series, folders and zips in it
    included. Each is a case (see ``io.dicom.read.series_discovery.case_names``); those that cannot be used,
    too.

    Args:
        on_note: gets notes of files that were read as channels, and of what was left out of DICOM. What had
            to
            be done to make the rest a volume is said with each case (see ``notes_on``).
        apart: names of files that are known to be cases of their own.

    Raises:
        ScanError: nothing there, a channel missing in between, or two files of one name.
    """
    path = Path(path)
    if os.path.isfile(path):
        if scan_suffix(path) is None and (found := _dicom_scans(path, on_note)):
            return found
        _require_suffix(path)
        case, channel = split_channel(scan_name(path))
        return [ScanInput(case if channel == 0 else scan_name(path), (path,))]
    if not os.path.isdir(path):
        reason = why_unreadable(path) or ""
        what = reason.replace("no such file", "no such file or folder", 1)
        raise ScanError(f"{quoted(path)}: {what}")
    files = scan_files(path)
    if files and _dicom_beside(path):
        what = f"only {files[0].name} and the like are read, the DICOM objects or zips beside them are not"
        on_note(f"{path}: {what}; give those in a folder of their own")
    found = _group_channels(files, apart) if files else _dicom_scans(path, on_note)
    if not found:
        raise ScanError(f"{path}: no scans in this folder; supported are {_SUPPORTED}")
    note = as_channels(found)
    if note is not None:
        on_note(
            f"{path}: {note}; if each is a scan of its own, give the files, not their folder, or rename them"
        )
    return found


def as_channels(scans: Sequence[ScanInput]) -> str | None:
    """Which files were taken for channels of one scan, going by their names; None if none were."""
    several = [scan for scan in scans if len(scan.paths) > 1]
    if not several:
        return None
    first = several[0]
    names = f"{quoted(first.paths[0].name)} to {quoted(first.paths[-1].name)}"
    more = f", and so on for {len(several) - 1} more" if len(several) > 1 else ""
    return f"{names} were read as {len(first.paths)} channels of one scan, '{quoted(first.id)}'{more}"


def _dicom_beside(folder: Path) -> bool:
    """Whether a folder with scans of other formats holds DICOM objects or zips, too."""
    from zoomseg.io.dicom.read.archive import files_in

    try:
        others = (file for file in files_in(folder) if scan_suffix(file) is None)
        first = next(others, None)
        if first is None:
            return False
        from zoomseg.io.dicom.read.series_discovery import any_dicom

        return any_dicom(itertools.chain([first], others))
    except ScanError:  # a folder in it that cannot be listed does not keep the scans from being read
        return False


def _dicom_scans(path: Path, on_note: Callable[[str], None]) -> list[ScanInput]:
    from zoomseg.io.dicom.read.series_discovery import case_names, find_series

    found = find_series(path)
    names = case_names(path, found)
    for note in found.notes:
        on_note(note)
    series: tuple[Stack | Refused, ...] = (*found.stacks, *found.refused)
    return [ScanInput(name, (path,), one) for name, one in zip(names, series, strict=True)]


def _group_channels(files: Sequence[Path], apart: Container[str]) -> list[ScanInput]:
    groups: dict[str, dict[int, Path]] = {}
    alone: dict[str, Path] = {}
    for file in files:
        case, channel = split_channel(scan_name(file))
        if channel is None or scan_name(file) in apart:
            _add_case(alone, scan_name(file), file)
        else:
            same = groups.setdefault(case, {}).setdefault(channel, file)
            if same is not file:
                raise ScanError(f"{quoted(file.parent)}: {same.name} and {file.name} are the same channel")
    found: dict[str, tuple[Path, ...]] = {case: (file,) for case, file in alone.items()}
    for case, channels in groups.items():
        if 0 not in channels:
            for file in channels.values():
                _add_case(alone, scan_name(file), file)
                found[scan_name(file)] = (file,)
            continue
        _add_case(alone, case, channels[0])
        missing = next(n for n in count() if n not in channels)
        if missing < len(channels):
            raise ScanError(f"{files[0].parent}: case {quoted(case)} has no file for channel {missing:04d}")
        found[case] = tuple(channels[c] for c in sorted(channels))
    return [ScanInput(case, found[case]) for case in sorted(found)]


def _require_suffix(path: Path) -> str:
    suffix = scan_suffix(path)
    if suffix is None:
        raise ScanError(f"{path}: not a supported scan file; supported are {_SUPPORTED}")
    return suffix


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Header:
    """What a file says about itself: shape (three sizes, or four with channels last) and grid."""

    shape: tuple[int, ...]
    grid: Grid
    dtype: np.dtype[Any]
    scaled: bool = False
    notes: tuple[str, ...] = ()
    """What its user must know of how it was read: what was ambiguous, and which rule decided."""


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
            return _nifti_header(path, channels_last)
        return _itk_header(path, channels_last)


def _nifti_header(path: Path, channels_last: bool) -> _Header:
    found = nifti.header(path, axes=4 if channels_last else 3)
    return _Header(found.shape, found.grid, found.dtype, found.scaled, found.notes)


def _itk_reader(path: Path) -> tuple[sitk.ImageFileReader, TextHeader]:
    """ITK's reader of a file whose header was checked."""
    import SimpleITK as sitk  # noqa: N813

    if printable(str(path)) != str(path):  # ITK ends the process
        raise ScanError(f"{path}: the name or a folder's is no UTF-8, which ITK cannot open; rename it")
    nrrd = scan_suffix(path) == ".nrrd"
    checked = itk_header.read(path, nrrd)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    return reader, checked


def _itk_header(path: Path, channels_last: bool) -> _Header:
    reader, checked = _itk_reader(path)
    reader.ReadImageInformation()
    components = reader.GetNumberOfComponents()
    if components != 1:
        raise ScanError(f"{path}: {components} values per voxel; give one 3-D file per channel")
    shape = nifti_header.trimmed(path, tuple(int(n) for n in reader.GetSize()), 4 if channels_last else 3)
    dtype = np.dtype(_itk_types().get(reader.GetPixelID(), "float64"))
    check_size(path, shape, dtype.itemsize, checked.compressed, checked.voxels.stat().st_size, checked.begin)
    dimension = reader.GetDimension()
    spacing = reader.GetSpacing()[:3]
    check_spacing(path, spacing)
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(spacing)
    affine[:3, 3] = reader.GetOrigin()[:3]
    grid = Grid((shape[0], shape[1], shape[2]), _LPS_TO_RAS @ affine)
    check_grid(path, grid)
    scaled = (checked.slope, checked.intercept) != (1.0, 0.0)
    return _Header(shape, grid, dtype, scaled, checked.notes)


def _itk_types() -> dict[int, str]:
    import SimpleITK as sitk  # noqa: N813

    integers = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64")
    return {getattr(sitk, f"sitk{name}"): name.lower() for name in (*integers, "Float32", "Float64")}


def _stored(path: Path, header: _Header) -> _Stored:
    _require_room(path, header)
    with reading(path, "an image"):
        if scan_suffix(path) in (".nii", ".nii.gz"):
            raw, found = nifti.voxels(path, axes=len(header.shape))
            return _Stored(raw, found.slope, found.intercept)
        import SimpleITK as sitk  # noqa: N813

        reader, checked = _itk_reader(path)
        if checked.deflated:
            raw = _inflated(path, header, checked)
        else:
            raw = sitk.GetArrayFromImage(reader.Execute()).T.reshape(header.shape, order="F")
        return _Stored(raw, checked.slope, checked.intercept)


def _inflated(path: Path, header: _Header, checked: TextHeader) -> AnyArray:
    """Compressed voxels of a MetaImage: where they are damaged, ITK goes on without them."""
    if int(checked.fields.get("HeaderSize", 0)):
        raise ScanError(
            f"{path}: compressed voxels after a HeaderSize are not supported; write it uncompressed"
        )
    size = math.prod(header.shape) * header.dtype.itemsize
    unpack = zlib.decompressobj(wbits=47)  # of zlib or gzip, as it is
    with checked.voxels.open("rb") as stream:
        stream.seek(checked.begin)
        data = unpack.decompress(stream.read(), size)
    if len(data) != size or not (unpack.eof or unpack.decompress(unpack.unconsumed_tail, 1) == b""):
        raise ScanError(f"{path}: damaged; {len(data)} of {size} bytes of voxels are there")
    stored = header.dtype.newbyteorder(">" if checked.big_endian else "<")
    return (
        np.frombuffer(bytearray(data), stored)
        .astype(header.dtype, copy=False)
        .reshape(header.shape, order="F")
    )


def header_notes(path: Path, channels_last: bool = False) -> tuple[str, ...]:
    """What the user of a file that is no DICOM must know of how its header was read; mostly nothing."""
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
    """The grid of a scan, and how much memory reading it takes; only headers are read."""
    stack = _dicom_stack(scan.paths[0]) if scan.dicom is None else scan.dicom.usable()
    if stack is not None:
        from zoomseg.io.dicom.read.voxels import reading_bytes as of_dicom

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
        return Volume(np.moveaxis(four, -1, 0), header.grid)


def _dicom_voxels(path: Path, stack: Stack) -> Volume:
    from zoomseg.io.dicom.read.voxels import read_volume
    from zoomseg.io.dicom.read.voxels import reading_bytes as of_dicom

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
    ``GEOMETRY_TOLERANCE_VOX``; the first one is kept.

    Raises:
        ScanError: unreadable, wrong shape or geometry, NaN or infinite voxels, a constant image, a
            label map, or channels on different grids.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(p) for p in paths]
    if not files:
        raise ScanError("a scan needs at least one file")
    return _checked(files, [read_voxels(file, channels_last) for file in files])


def read_scan(scan: ScanInput, channels_last: bool = False) -> Case:
    """``read_image`` of what ``find_scans`` found, and what its files say beside."""
    if scan.dicom is None:
        return Case(scan.id, read_image(scan.paths, channels_last), notes=notes_on(scan, channels_last))
    stack = scan.dicom.usable()
    image = _checked(scan.paths, [_dicom_voxels(scan.paths[0], stack)])
    return Case(scan.id, image, modality=stack.series.modality or None, notes=notes_on(scan))


def notes_on(scan: ScanInput, channels_last: bool = False) -> tuple[str, ...]:
    """What the user should know of how a scan's files become a volume; one line each."""
    if scan.dicom is not None:
        return scan.dicom.usable().series.notes
    found = (note for path in scan.paths for note in header_notes(path, channels_last))
    return tuple(dict.fromkeys(found))


def header_notes_by_case(files: Mapping[str, Iterable[Path]]) -> list[str]:
    """Each note on the headers of these files, which are given by case, with the cases that it holds for; of
    notes that differ in numbers only the first. A header that cannot be read gives none; whoever reads the
    file says why."""
    found: dict[str, tuple[str, list[str]]] = {}
    for case, paths in files.items():
        for path in paths:
            with contextlib.suppress(ScanError):
                for note in header_notes(path, channels_last=True):
                    _, cases = found.setdefault(_NUMBER.sub("", note), (note, []))
                    cases += [case] if case not in cases[-1:] else []
    return [f"{note} (case {listed(cases)})" for note, cases in found.values()]


def the_scan(path: Path, on_note: Callable[[str], None] = _silent) -> ScanInput:
    """The one scan in a file or folder; ``on_note`` as in ``find_scans``.

    Raises:
        ScanError: there is none, or several.
    """
    found = find_scans(path, on_note)
    if len(found) > 1:
        raise ScanError(f"{path}: holds {len(found)} scans, among them {found[0].id}; give one")
    return found[0]


def _checked(files: Sequence[Path], volumes: Sequence[Volume]) -> Volume:
    """The channels of one scan, each fit for a network, together."""
    for file, volume in zip(files, volumes, strict=True):
        for channel in volume.data:
            check_voxels(channel, file)
        check_same_grid(volumes[0].grid, volume.grid, files[0], file)
    if all(looks_like_labels(channel) for volume in volumes for channel in volume.data):
        raise ScanError(f"{files[0]}: looks like a label map, not like a scan; give the image itself")
    data = volumes[0].data if len(volumes) == 1 else np.concatenate([v.data for v in volumes])
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
        ScanError: shapes differ, or voxel centres are further apart than ``GEOMETRY_TOLERANCE_VOX``.
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
    """Label values as the file means them: integers ``[I, J, K]``, and their grid. Values that float storage
    or a slope put beside a whole number (see ``WHOLE_NUMBER_TOLERANCE``) are that number.

    Raises:
        ScanError: unreadable, wrong shape or geometry, values that are not whole numbers.
    """
    values, grid, _ = read_rounded_labels(path)
    return values, grid


def read_rounded_labels(path: Path) -> tuple[AnyArray, Grid, float]:
    """As ``read_label_values``, and how far from whole numbers the stored values are at most."""
    path = Path(path)
    header = _header(path)
    stored = _stored(path, header)
    values = stored.raw.astype(stored.raw.dtype.newbyteorder("="), copy=False)
    if stored.scaled:
        values = values.astype(np.float64) * stored.slope + stored.intercept
    if values.dtype.kind != "f":
        return values, header.grid, 0.0
    if not np.isfinite(values).all():
        raise ScanError(f"{path}: label values are NaN or infinite")
    whole = np.rint(values)
    off = float(np.abs(values - whole).max())
    if np.abs(whole).max() > np.iinfo(np.int32).max or off > WHOLE_NUMBER_TOLERANCE:
        raise ScanError(f"{path}: label values are not whole numbers; is this an image or probabilities?")
    return whole.astype(np.int32), header.grid, off


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
    return LabelMap(np.ascontiguousarray(classes), grid, schema)


# --- writing --------------------------------------------------------------------------------------


def write_labels(path: Path, labels: LabelMap, like: Path | None = None) -> None:
    """Write a label map with the schema's file values, in the format that the suffix names.

    Args:
        like: the scan it belongs to. If both are NIfTI, its geometry fields are copied verbatim, so
            that every other program sees exactly the same grid, by whichever rules.

    Raises:
        OutputError: unsupported suffix, or the file cannot be written.
        ScanError: ``like`` lies on another grid.
    """
    write_array(path, labels.schema.decode(labels.data), labels.grid, like)


def write_image(path: Path, image: Volume) -> None:
    """Write intensities as float32: 3-D for one channel, 4-D NIfTI with channels last for several."""
    data = image.data.astype(np.float32)
    write_array(path, data[0] if image.channels == 1 else np.moveaxis(data, 0, -1), image.grid)


def write_array(path: Path, array: AnyArray, grid: Grid, like: Path | None = None) -> None:
    """Write ``[I, J, K]`` (NIfTI also ``[I, J, K, C]``) on ``grid``, atomically, by suffix."""
    path = Path(path)
    suffix = scan_suffix(path)
    if suffix is None or suffix == ".mhd":
        allowed = ", ".join(s for s in SCAN_SUFFIXES if s != ".mhd")
        raise OutputError(f"{path}: cannot write this format; supported are {allowed}")
    if suffix in (".nii", ".nii.gz"):
        image = nifti_header.image(array, grid, None if like is None else _geometry_of(Path(like), grid))
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


def _geometry_of(scan: Path, grid: Grid) -> Any:
    """The header's fields of a NIfTI scan, whose geometry its label map shall have; None of other formats."""
    if scan_suffix(scan) not in (".nii", ".nii.gz"):
        return None
    with reading(scan, "an image"):
        header = nifti.header(scan, axes=4)
    check_same_grid(header.grid, grid, scan, Path("the result"))
    return header.fields


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
