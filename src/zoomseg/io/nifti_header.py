"""The interpretation of a NIfTI header, and the header of a result on its grid. It uses nibabel's classes,
but not its rules: these are defined here, as programs differ in them.

Source: the NIfTI-1 standard, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.quaternions import quat2mat

from zoomseg.core.errors import GeometryError, ScanError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.io.header_limits import MAX_DEFLATION, check_grid, check_size, check_spacing

AnyArray = npt.NDArray[Any]

HEADER_BYTES = 540
"""Of NIfTI-2, the longer of the two."""

_MAGICS = (b"n+1", b"n+2")
"""Complete magic numbers: for any other, some programs read an Analyze file, without its forms."""

SIZES_1 = 32767
"""Longer axes do not fit into the 16 bits that NIfTI-1 has for a size."""

_UNITS = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}
_MILLIMETRES = (0, 2)
"""Codes of units, 0 being unknown. Bits 0 to 2 of ``xyzt_units`` are those of lengths."""

_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"),
    *("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)

_CODES = range(6)
_ALIGNED = 2
"""Codes of forms defined by the standard, and the one of forms aligned to something else."""

_MAX_QUATERNION_NORM = 1.01
"""Maximum squared length of its stored part. The whole has length 1; larger values were rounded, or are not a
quaternion."""

_NOTED_VOX = 0.1
"""Forms of one header that place a voxel this far apart disagree; smaller differences are rounding."""

_PIECE_BYTES = 1 << 24

_UNORIENTED = (
    "no orientation is stored (qform_code and sform_code are 0): the patient's sides are assumed. Its "
    "axes are assumed to run to the left, front and head, as in nibabel and FSL; ITK and 3D Slicer assume "
    "otherwise"
)


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """The fields as stored (``fields``, nibabel's) and their meaning: sizes without trailing ones (at least
    three), grid in millimetres, voxels as ``raw * slope + intercept`` from byte ``offset`` on."""

    fields: Any
    shape: tuple[int, ...]
    grid: Grid
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    notes: tuple[str, ...]
    """What the user must know about how the grid was determined."""

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def parse(path: Path, block: bytes, stored: int, compressed: bool, axes: int = 3) -> NiftiHeader:
    """The header of a single-file NIfTI-1 or NIfTI-2 image from its first ``HEADER_BYTES``.

    Args:
        stored: bytes of the file, compressed or not.
        axes: maximum number of axes longer than 1.

    Raises:
        ScanError: no such image, values other than grey values, more voxels than the file can contain, or
            impossible geometry.
    """
    kind = nib.Nifti2Header if block[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header
    # Unchecked: nibabel's own checks silently change a spacing of zero to one.
    fields = kind(block[: kind.sizeof_hdr], check=False)
    _check_magic(path, fields)
    shape = _shape(path, fields, axes)
    dtype = fields.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxels of type {dtype}; grey values are needed, one real number per voxel")
    offset = _offset(path, fields)
    check_size(path, shape, dtype.itemsize, MAX_DEFLATION if compressed else 1, stored, offset)
    check_spacing(path, fields["pixdim"][1:4])
    grid, notes = _grid(path, fields, (shape[0], shape[1], shape[2]))
    slope, intercept = _scaling(path, fields)
    return NiftiHeader(fields, shape, grid, dtype, offset, slope, intercept, notes)


def _check_magic(path: Path, fields: Any) -> None:
    magic = bytes(fields["magic"].item())  # numpy drops zeros at its end
    if magic[:3] in (b"ni1", b"ni2"):
        raise ScanError(f"{path}: its voxels are in another file (.img); convert the pair to one .nii file")
    if magic not in _MAGICS:
        raise ScanError(f"{path}: damaged, truncated or not an image (no NIfTI magic in its header)")


def _shape(path: Path, fields: Any, axes: int) -> tuple[int, ...]:
    dimensions = int(fields["dim"][0])
    if not 1 <= dimensions <= 7:
        raise ScanError(f"{path}: damaged, truncated or not an image (header gives {dimensions} dimensions)")
    return trimmed(path, tuple(int(n) for n in fields["dim"][1 : dimensions + 1]), axes)


def trimmed(path: Path, shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A shape without trailing ones: at least three sizes, and at most ``axes``.

    Raises:
        ScanError: too few, or too many.
    """
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        raise ScanError(f"{path}: {len(shape)}-D image of shape {shape}; a 3-D scan is needed")
    if len(shape) > axes:
        raise ScanError(
            f"{path}: {len(shape)}-D image of shape {shape}; give one 3-D file per channel or time"
        )
    return shape


def _offset(path: Path, fields: Any) -> int:
    """Start of the voxels. Readers interpret values below the header's own end differently (nibabel 0,
    nifti_clib 348), so that only the writer knows."""
    offset, least = float(fields["vox_offset"]), int(fields.single_vox_offset)
    if not math.isfinite(offset) or offset != int(offset) or offset < least:
        ask = f"a whole number from {least} on is needed; write the file again with another program"
        raise ScanError(f"{path}: the header's vox_offset, where its voxels begin, is {offset:g}; {ask}")
    return int(offset)


def _scaling(path: Path, fields: Any) -> tuple[float, float]:
    """Slope and intercept; a slope of 0, or none, means values as stored."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise ScanError(f"{path}: the header's scl_inter is {intercept}; a number is needed")
    return slope, intercept


# --- geometry -------------------------------------------------------------------------------------


def _grid(path: Path, fields: Any, shape: tuple[int, int, int]) -> tuple[Grid, tuple[str, ...]]:
    """The first usable one of sform, qform and pixdim alone is the grid; the others are compared with it."""
    unit, note = unit_mm(fields)
    notes = [note] if note else []
    grids, broken = {}, {}
    for name, affine in _forms(fields, shape):
        try:
            with np.errstate(invalid="ignore"):  # of infinite numbers, which a grid refuses
                grids[name] = Grid(shape, np.diag([unit, unit, unit, 1.0]) @ affine)
        except GeometryError as error:
            broken[name] = error
    if not grids:
        raise ScanError(f"{path}: {next(iter(broken.values()))}")
    used, grid = next(iter(grids.items()))
    check_grid(path, grid)
    notes += [f"the {name} is damaged ({error}): the {used} is used" for name, error in broken.items()]
    if used == "pixdim":
        notes.append(_UNORIENTED)
    notes += _disagreements(grids, fields, unit)
    return grid, tuple(notes)


def unit_mm(fields: Any) -> tuple[float, str]:
    """The header's unit of length in millimetres, and a note if it is not millimetres."""
    code = int(fields["xyzt_units"]) & 7
    if code in _UNITS:
        name, factor = _UNITS[code]
        return factor, f"the header's lengths are in {name}: they were converted to millimetres"
    return (
        1.0,
        ""
        if code in _MILLIMETRES
        else f"unit code {code} is not defined; lengths are interpreted as millimetres",
    )


def _forms(fields: Any, shape: tuple[int, int, int]) -> Iterator[tuple[str, FloatArray]]:
    """The affines of the header, by precedence, in the header's unit."""
    coded = [name for name in ("sform", "qform") if int(fields[f"{name}_code"]) > 0]
    ways: dict[str, Callable[[], FloatArray]] = {
        "sform": lambda: _sform(fields),
        "qform": lambda: _qform(fields),
    }
    for name in coded:
        yield name, ways[name]()
    if not coded:  # as in Analyze files: the first axis to the left, the origin in the middle
        edges = np.array([-1.0, 1.0, 1.0]) * fields["pixdim"][1:4]
        affine = np.diag([*edges, 1.0])
        affine[:3, 3] = -edges * (np.array(shape) - 1) / 2
        yield "pixdim", affine


def _sform(fields: Any) -> FloatArray:
    return np.array([fields["srow_x"], fields["srow_y"], fields["srow_z"], [0, 0, 0, 1]], dtype=np.float64)


def _qform(fields: Any) -> FloatArray:
    """Method 2 of the standard."""
    stored = _quaternion(fields)
    squared = float(stored @ stored)
    if not squared <= _MAX_QUATERNION_NORM:  # NaN is refused, too
        return np.full((4, 4), math.nan)
    edges = fields["pixdim"][1:4].astype(np.float64)
    edges[2] *= -1 if fields["pixdim"][0] < 0 else 1
    affine = np.eye(4)
    affine[:3, :3] = quat2mat([math.sqrt(max(0.0, 1 - squared)), *stored]) * edges
    affine[:3, 3] = [fields[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def _quaternion(fields: Any) -> FloatArray:
    """Its three stored parts; shortened to length 1 if rounding made them longer."""
    stored = np.array([fields[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    squared = float(stored @ stored)
    return stored / math.sqrt(squared) if 1 < squared <= _MAX_QUATERNION_NORM else stored


def _disagreements(grids: dict[str, Grid], fields: Any, unit: float) -> Iterator[str]:
    (used, grid), *others = grids.items()
    for name, other in others:
        if grid.distance_vox(other) > _NOTED_VOX:
            apart = f"{used} and {name} of its header disagree by up to {grid.distance_mm(other):.3g} mm"
            yield f"{apart}: the {used} is used; ITK and 3D Slicer use the {name} unless sform_code is 1"
            return
    edges = fields["pixdim"][1:4].astype(np.float64) * unit
    off = np.abs(edges / grid.spacing_mm - 1) * np.maximum(np.array(grid.shape) - 1, 1)
    if used == "sform" and off.max() > _NOTED_VOX:
        pixdim, sform = (" x ".join(f"{float(e):.4g}" for e in mm) for mm in (edges, grid.spacing_mm))
        apart = f"pixdim gives voxels of {pixdim} mm and the sform of {sform} mm"
        yield f"{apart}: the sform is used; ITK and 3D Slicer use pixdim"


# --- voxels and writing ---------------------------------------------------------------------------


def filled(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Any) -> AnyArray:
    """Voxels as stored, from the current position of a stream, in the machine's byte order, first axis
    fastest. No more is read, or inflated, than the header specifies, regardless of further content of the
    file.

    Raises:
        ScanError: there are fewer.
    """
    raw = np.empty(shape, dtype, order="F")
    view = raw.reshape(-1, order="F").view(np.uint8).data
    done = 0
    while done < len(view):
        count = stream.readinto(view[done : done + _PIECE_BYTES])
        if not count:
            raise ScanError(f"{path}: truncated; {done} of {len(view)} bytes of voxels are there")
        done += count
    return raw.astype(raw.dtype.newbyteorder("="), copy=False)


def checksum_error(path: Path) -> ScanError:
    """The error for voxels that do not match their checksum."""
    return ScanError(f"{path}: damaged, what it holds does not match its checksum; obtain the file again")


def image(array: AnyArray, grid: Grid, like: Any = None) -> nib.Nifti1Image:
    """``[I, J, K]`` or ``[I, J, K, C]`` on ``grid``, ready to be saved. NIfTI-1, which every program reads,
    unless an axis is too long for it, or the grid so far from the origin that single precision would move it.

    Args:
        like: the fields of a header on this grid. Its geometry is copied unchanged, including units and
            codes, so that every program places the result where it places the scan, by any rules. Two
            exceptions, which nibabel would refuse, are corrected: a quaternion that is slightly too long, and
            a damaged qform beside an sform with a code that the standard does not define.
    """
    kind = nib.Nifti1Image if max(array.shape) <= SIZES_1 and _fits_single(grid) else nib.Nifti2Image
    if like is None:
        made = kind(array, grid.affine, dtype=array.dtype)
        made.set_sform(grid.affine, code="scanner")
        made.set_qform(grid.affine, code="scanner")
        made.header.set_xyzt_units("mm")
        return made
    # Without an affine nibabel does not change the fields, and does not correct them once they are set.
    made = kind(array, None, dtype=array.dtype)
    for name in _GEOMETRY:
        made.header[name] = like[name]
    made.header["pixdim"][:4] = like["pixdim"][:4]
    for axis, part in zip("bcd", _quaternion(like), strict=True):
        made.header[f"quatern_{axis}"] = part
    if int(like["sform_code"]) not in _CODES and not np.isfinite(_qform(like)).all():
        made.header["sform_code"] = _ALIGNED
        for name in ("qform_code", "quatern_b", "quatern_c", "quatern_d"):
            made.header[name] = 0
    return made


def _fits_single(grid: Grid) -> bool:
    """Whether it remains the same grid if its affine is rounded to single precision."""
    return grid.same_as(Grid(grid.shape, grid.affine.astype(np.float32)))
