"""Voxels of a DICOM series: stored values, decoded, rescaled to intensities, on the series' grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import FloatArray
from zoomseg.core.morphology import reaching_border
from zoomseg.core.volume import Volume
from zoomseg.io.dicom.read.archive import opening
from zoomseg.io.dicom.read.decoding import AnyArray, stored_values
from zoomseg.io.dicom.read.object_header import StoredSlice
from zoomseg.io.dicom.read.pixel_storage import Pixels
from zoomseg.io.dicom.read.series_discovery import Stack
from zoomseg.io.dicom.read.slice_geometry import Placement

Mask = npt.NDArray[np.bool_]

_INT16 = np.iinfo(np.int16)

COMPRESSED_COPIES = 2
"""Of one object's compressed voxels while they are decoded: the object, which is read as a whole, and the
pieces from which it was read, or its frames."""


def read_volume(stack: Stack) -> Volume:
    """Intensities ``[1, I, J, K]`` on the series' grid: int16 if rescaled values are whole numbers of that
    range, otherwise float32. Voxels that were not scanned (pixel padding, corners due to a tilted gantry)
    have the lowest value of the others.

    Raises:
        ScanError: a file that disappeared, is truncated or damaged, or whose compression cannot be read.
    """
    paths = {s.source.path for s in stack.stored if s.source.member is not None}
    intensities = _Intensities.empty(stack.stored)
    with opening(*paths) as opener:
        for k, values in stored_values(stack.stored, opener):
            intensities.put(k, values)
    voxels = intensities.voxels
    if not stack.placement.as_stored:
        voxels = _on_grid(voxels, stack.placement, intensities.fill())
    elif intensities.unscanned:
        intensities.fill()
    return Volume(voxels.transpose(2, 1, 0)[None], stack.series.grid)


def reading_bytes(stack: Stack) -> int:
    """Memory that ``read_volume`` needs."""
    one = stack.stored[0].pixels
    stored = len(stack.stored) * one.rows * one.columns
    kept = all(_is_small(s) for s in stack.stored)
    whole = all(_is_integral(s) for s in stack.stored)
    each = 2 if kept else 6 if whole else 4
    masks = stored if any(s.pixels.padding for s in stack.stored) else 0
    again = (2 if kept else 4) * stack.series.grid.box.voxels if not stack.placement.as_stored else 0
    encoded = COMPRESSED_COPIES * max(s.pixels.compressed_bytes for s in stack.stored)
    return stored * each + masks + again + encoded


# --- intensities ----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Intensities:
    """Slices ``[k, rows, columns]`` as they arrive; small integers until one does not fit."""

    stored: Sequence[StoredSlice]
    voxels: AnyArray
    unscanned: dict[int, Mask]
    """By slice: voxels of padding."""

    @classmethod
    def empty(cls, stored: Sequence[StoredSlice]) -> _Intensities:
        shape = (len(stored), stored[0].pixels.rows, stored[0].pixels.columns)
        dtype = np.int16 if all(_is_integral(s) for s in stored) else np.float32
        return cls(stored, np.empty(shape, dtype), {})

    def put(self, k: int, raw: AnyArray) -> None:
        one = self.stored[k]
        values = _cleaned(raw, one.pixels)
        if one.pixels.padding is not None:
            low, high = one.pixels.padding
            mask = ((raw >= low) & (raw <= high)) | ((values >= low) & (values <= high))
            if one.padding_may_be_scanned:
                mask = reaching_border(mask)  # reconstructions are round: the corners were not scanned
            if mask.any():
                self.unscanned[k] = mask
        if one.pixels.inverted:
            values = (
                ~values if one.pixels.signed else values ^ values.dtype.type((1 << one.pixels.stored) - 1)
            )
        if self.voxels.dtype == np.int16 and not (_is_small(one) or _fits(values, one)):
            self.voxels = self.voxels.astype(np.float32)
        if self.voxels.dtype == np.int16 and one.slope == 1:
            # An overflow in the first step is reversed in the second, as the sum is known to fit.
            self.voxels[k] = values
            self.voxels[k] += np.array(int(one.intercept) & 0xFFFF, np.uint16).view(np.int16)
        else:
            self.voxels[k] = values.astype(np.float64) * one.slope + one.intercept

    def fill(self) -> float:
        """Set voxels that were not scanned to the lowest value of the others, which is returned."""
        lowest = [self.voxels[k].min() for k in range(len(self.stored)) if k not in self.unscanned]
        for k, mask in self.unscanned.items():
            lowest += [self.voxels[k][~mask].min()] if not mask.all() else []
        low = min(lowest, default=self.voxels.min())
        for k, mask in self.unscanned.items():
            self.voxels[k][mask] = low
        return float(low)


def _cleaned(raw: AnyArray, pixels: Pixels) -> AnyArray:
    """Values without bits of another meaning (overlays, in old files), with the sign extended."""
    if pixels.stored == pixels.allocated:
        return raw
    above = pixels.allocated - pixels.stored
    # Decoders put values into the lowest bits, regardless of their position in an uncompressed file.
    shift = 0 if pixels.syntax else pixels.high_bit + 1 - pixels.stored
    kind = raw.dtype.type
    if pixels.signed:
        extended: AnyArray = (raw << kind(above - shift)) >> kind(above)
        return extended
    masked: AnyArray = (raw >> kind(shift)) & kind((1 << pixels.stored) - 1)
    return masked


def _is_integral(one: StoredSlice) -> bool:
    """Whether rescaling gives whole numbers small enough to be exact."""
    return (
        one.slope.is_integer() and one.intercept.is_integer() and abs(one.slope) + abs(one.intercept) < 2**31
    )


def _is_small(one: StoredSlice) -> bool:
    """Whether all possible values fit into 16 bits."""
    bits = one.pixels.stored
    ends = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if one.pixels.signed else (0, (1 << bits) - 1)
    return _is_integral(one) and _in_range(ends, one)


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
    """One stored slice ``[rows, columns]`` at its position in the grid."""
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
