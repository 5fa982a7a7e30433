"""Voxels of a DICOM series: stored values, decoded, made intensities, brought onto the series' grid."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import FloatArray
from zoomseg.core.volume import Volume
from zoomseg.io.dicom.archive import Opener, Source, opening
from zoomseg.io.dicom.codestream import frame_size
from zoomseg.io.dicom.finding import Stack
from zoomseg.io.dicom.geometry import Placement
from zoomseg.io.dicom.header import StoredSlice
from zoomseg.io.dicom.pixels import Pixels

AnyArray = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_INT16 = np.iinfo(np.int16)


def read_volume(stack: Stack) -> Volume:
    """Intensities ``[1, I, J, K]`` on the series' grid: int16 where rescaled values are whole numbers of that
    range, else float32. What was not scanned (pixel padding, corners that a tilted gantry leaves) has the
    lowest value of the rest.

    Raises:
        ScanError: a file that vanished, is truncated or damaged, or whose compression cannot be read.
    """
    paths = {s.source.path for s in stack.stored if s.source.member is not None}
    intensities = _Intensities.empty(stack.stored)
    with opening(*paths) as opener:
        for k, values in _stored_values(stack.stored, opener):
            intensities.put(k, values)
    voxels = intensities.voxels
    if _resampled(stack):
        voxels = _on_grid(voxels, stack.placement, intensities.fill())
    elif intensities.unscanned:
        intensities.fill()
    return Volume(torch.from_numpy(voxels.transpose(2, 1, 0))[None], stack.series.grid)


def reading_bytes(stack: Stack) -> int:
    """How much memory ``read_volume`` takes."""
    one = stack.stored[0].pixels
    stored = len(stack.stored) * one.rows * one.columns
    kept = all(_is_small(s) for s in stack.stored)
    whole = all(_is_whole(s) for s in stack.stored)
    each = 2 if kept else 6 if whole else 4
    masks = stored if any(s.pixels.padding for s in stack.stored) else 0
    again = (2 if kept else 4) * stack.series.grid.box.voxels if _resampled(stack) else 0
    return stored * each + masks + again


def _resampled(stack: Stack) -> bool:
    place = stack.placement
    return place.shifts_vox is not None or any(s is None for s in stack.series.slices)


# --- stored values --------------------------------------------------------------------------------


def _stored_values(stored: Sequence[StoredSlice], opener: Opener) -> Iterator[tuple[int, AnyArray]]:
    """Number of the slice and its stored values ``[rows, columns]``; every file is opened once."""
    by_source: dict[Source, list[int]] = defaultdict(list)
    for k, one in enumerate(stored):
        by_source[one.source].append(k)
    for source, numbers in by_source.items():
        pixels = stored[numbers[0]].pixels
        wanted = {(stored[k].frame or 1) - 1: k for k in numbers}
        with _decoding(source):
            if pixels.syntax:
                yield from _compressed(source, pixels, wanted, opener)
            else:
                yield from _native(source, pixels, wanted, opener)


@contextmanager
def _decoding(source: Source) -> Iterator[None]:
    """Whatever goes wrong inside becomes one ScanError that names the object."""
    try:
        yield
    except (ScanError, MemoryError):
        raise
    except OSError as error:
        raise ScanError(f"{source}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # decoders of hostile bytes fail in any way they like
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise ScanError(f"{source}: voxels cannot be decoded ({reason})") from error


def _native(
    source: Source, pixels: Pixels, wanted: dict[int, int], opener: Opener
) -> Iterator[tuple[int, AnyArray]]:
    dtype = np.dtype(f"{pixels.order}{'i' if pixels.signed else 'u'}{pixels.allocated // 8}")
    with opener.open(source) as stream:
        for frame in sorted(wanted):
            stream.seek(pixels.offset + frame * pixels.frame_bytes)
            values = np.empty((pixels.rows, pixels.columns), dtype)
            if stream.readinto(values.data.cast("B")) != pixels.frame_bytes:  # type: ignore[attr-defined]
                raise ScanError(f"{source}: truncated; frame {frame + 1} is incomplete")
            yield wanted[frame], values.astype(dtype.newbyteorder("="), copy=False)


def _compressed(
    source: Source, pixels: Pixels, wanted: dict[int, int], opener: Opener
) -> Iterator[tuple[int, AnyArray]]:
    with opener.open(source) as stream:
        stream.seek(pixels.offset)
        content = io.BytesIO(stream.read())
    missing = set(wanted)
    for frame, data in enumerate(generate_frames(content, number_of_frames=pixels.frames)):
        if frame in missing:
            missing.remove(frame)
            yield wanted[frame], _decoded(source, data, pixels)
    if missing:
        raise ScanError(f"{source}: truncated; frame {min(missing) + 1} is missing")


def _decoded(source: Source, data: bytes, pixels: Pixels) -> AnyArray:
    size = frame_size(data, pixels.syntax)
    if size is not None and size != (pixels.rows, pixels.columns):
        header = f"{pixels.rows}x{pixels.columns}"
        raise ScanError(f"{source}: compressed frame of {size[0]}x{size[1]}, but its header says {header}")
    uid = UID(pixels.syntax)
    options: dict[str, Any] = {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": pixels.allocated,
        "bits_stored": pixels.stored,
        "pixel_representation": int(pixels.signed),
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
    }
    encapsulated = encapsulate([data], has_bot=False)
    values: AnyArray = get_decoder(uid).as_array(
        encapsulated, raw=True, decoding_plugin=_plugin(uid), **options
    )[0]
    return values


def _plugin(uid: UID) -> str:
    """The fastest decoder; '' leaves the choice to pydicom."""
    if uid in JPEGLSTransferSyntaxes:
        return "pyjpegls"
    return "pylibjpeg" if uid in JPEG2000TransferSyntaxes or uid == RLELossless else ""


# --- intensities ----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Intensities:
    """Slices ``[k, rows, columns]`` as they come; small integers until one does not fit."""

    stored: Sequence[StoredSlice]
    voxels: AnyArray
    unscanned: dict[int, Mask]
    """By slice: voxels of padding."""

    @classmethod
    def empty(cls, stored: Sequence[StoredSlice]) -> _Intensities:
        shape = (len(stored), stored[0].pixels.rows, stored[0].pixels.columns)
        dtype = np.int16 if all(_is_whole(s) for s in stored) else np.float32
        return cls(stored, np.empty(shape, dtype), {})

    def put(self, k: int, raw: AnyArray) -> None:
        one = self.stored[k]
        values = _cleaned(raw, one.pixels)
        if one.pixels.padding is not None:
            low, high = one.pixels.padding
            mask = ((raw >= low) & (raw <= high)) | ((values >= low) & (values <= high))
            if mask.any():
                self.unscanned[k] = mask
        if one.pixels.inverted:
            values = (
                ~values if one.pixels.signed else values ^ values.dtype.type((1 << one.pixels.stored) - 1)
            )
        if self.voxels.dtype == np.int16 and not (_is_small(one) or _fits(values, one)):
            self.voxels = self.voxels.astype(np.float32)
        if self.voxels.dtype == np.int16 and one.slope == 1:
            # What wraps in the first step wraps back in the second, as the sum is known to fit.
            self.voxels[k] = values
            self.voxels[k] += np.array(int(one.intercept) & 0xFFFF, np.uint16).view(np.int16)
        else:
            self.voxels[k] = values.astype(np.float64) * one.slope + one.intercept

    def fill(self) -> float:
        """Gives what was not scanned the lowest value of the rest; that value."""
        lowest = [self.voxels[k].min() for k in range(len(self.stored)) if k not in self.unscanned]
        for k, mask in self.unscanned.items():
            lowest += [self.voxels[k][~mask].min()] if not mask.all() else []
        low = min(lowest, default=self.voxels.min())
        for k, mask in self.unscanned.items():
            self.voxels[k][mask] = low
        return float(low)


def _cleaned(raw: AnyArray, pixels: Pixels) -> AnyArray:
    """Values without bits that mean something else (overlays, in old files), the sign extended."""
    if pixels.stored == pixels.allocated:
        return raw
    above = pixels.allocated - pixels.stored
    # Decoders put values into the lowest bits, wherever an uncompressed file would have them.
    shift = 0 if pixels.syntax else pixels.high_bit + 1 - pixels.stored
    kind = raw.dtype.type
    if pixels.signed:
        extended: AnyArray = (raw << kind(above - shift)) >> kind(above)
        return extended
    masked: AnyArray = (raw >> kind(shift)) & kind((1 << pixels.stored) - 1)
    return masked


def _is_whole(one: StoredSlice) -> bool:
    """Whether whole numbers come of it, of a size that can be counted on."""
    return (
        one.slope.is_integer() and one.intercept.is_integer() and abs(one.slope) + abs(one.intercept) < 2**31
    )


def _is_small(one: StoredSlice) -> bool:
    """Whether any value that it may hold fits into 16 bits."""
    bits = one.pixels.stored
    ends = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if one.pixels.signed else (0, (1 << bits) - 1)
    return _is_whole(one) and _in_range(ends, one)


def _fits(values: AnyArray, one: StoredSlice) -> bool:
    return _in_range((int(values.min()), int(values.max())), one)


def _in_range(ends: tuple[int, int], one: StoredSlice) -> bool:
    scaled = [int(one.slope) * end + int(one.intercept) for end in ends]
    return _INT16.min <= min(scaled) and max(scaled) <= _INT16.max


# --- the grid -------------------------------------------------------------------------------------


def _on_grid(stored: AnyArray, place: Placement, outside: float) -> AnyArray:
    """Planes ``[k, rows, columns]`` of the grid from the stored slices, linearly between and within them."""
    columns, rows, planes = place.grid.shape
    out = np.empty((planes, rows, columns), stored.dtype)
    for k, plane in enumerate(place.planes):
        values = _moved(stored, place, plane.first, outside)
        if plane.weight > 0:
            after = _moved(stored, place, plane.first + 1, outside)
            values = (1 - plane.weight) * values + plane.weight * after
        out[k] = np.rint(values) if out.dtype == np.int16 else values
    return out


def _moved(stored: AnyArray, place: Placement, k: int, outside: float) -> FloatArray:
    """One stored slice ``[rows, columns]`` where it lies in the grid."""
    values: FloatArray = stored[k].astype(np.float64)
    if place.shifts_vox is None:
        return values
    x, y = place.shifts_vox[k]
    right, down = math.floor(x), math.floor(y)
    framed = np.pad(values, 1, constant_values=outside)
    framed = (1 - (y - down)) * framed[1:] + (y - down) * framed[:-1]
    framed = (1 - (x - right)) * framed[:, 1:] + (x - right) * framed[:, :-1]
    columns, rows, _ = place.grid.shape
    out = np.full((rows, columns), outside)
    home = out[down : down + framed.shape[0], right : right + framed.shape[1]]
    home[:] = framed[: home.shape[0], : home.shape[1]]
    return out
