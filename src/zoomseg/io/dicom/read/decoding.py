"""Decode stored values of DICOM objects, frame by frame.

Decoders trust what a compressed frame states of itself, which is therefore checked before.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.archive import Opener, Source
from zoomseg.io.dicom.read.codestream import contradiction
from zoomseg.io.dicom.read.object_header import StoredSlice
from zoomseg.io.dicom.read.pixel_storage import Coding, Pixels
from zoomseg.io.files import reason_of

AnyArray = npt.NDArray[Any]


def stored_values(stored: Sequence[StoredSlice], opener: Opener) -> Iterator[tuple[int, AnyArray]]:
    """Yield the number of each slice and its stored values ``[rows, columns]``; every file is opened once."""
    by_source: dict[Source, list[int]] = defaultdict(list)
    for k, one in enumerate(stored):
        by_source[one.source].append(k)
    for source, numbers in by_source.items():
        pixels = stored[numbers[0]].pixels
        wanted = {(stored[k].frame or 1) - 1: k for k in numbers}
        with reading_source(source):
            if pixels.syntax:
                yield from _compressed(source, pixels, wanted, opener)
            else:
                yield from _native(source, pixels, wanted, opener)


@contextmanager
def reading_source(source: Source) -> Iterator[None]:
    """Convert any exception inside to one ScanError that names the object."""
    try:
        yield
    except (ScanError, MemoryError):
        raise
    except OSError as error:
        raise ScanError(f"{source}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # on hostile bytes, decoders may raise any exception
        raise ScanError(f"{source}: voxels cannot be decoded ({reason_of(error)})") from error


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
        content = io.BytesIO(stream.read(pixels.compressed_bytes))
    missing = set(wanted)
    for frame, data in enumerate(generate_frames(content, number_of_frames=pixels.frames)):
        if frame in missing:
            missing.remove(frame)
            yield wanted[frame], decoded(source, data, pixels)
    if missing:
        raise ScanError(f"{source}: truncated; frame {min(missing) + 1} is missing")


def decoded(name: object, data: bytes, pixels: Coding) -> AnyArray:
    """The values ``[rows, columns]`` of a compressed frame.

    Args:
        name: of the file, for the message.

    Raises:
        ScanError: it states something else than the header.
        Exception: any other, as decoders may raise on hostile bytes.
    """
    wrong = contradiction(data, pixels.syntax, pixels.rows, pixels.columns, pixels.allocated)
    if wrong:
        raise ScanError(f"{name}: {wrong}")
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
    *others, last = _plugins(uid)
    decode = partial(get_decoder(uid).as_array, encapsulated, raw=True, **options)
    values: AnyArray
    for plugin in others:
        with suppress(RuntimeError):  # pydicom's exception for any failure
            values, _ = decode(decoding_plugin=plugin)
            return values
    values, _ = decode(decoding_plugin=last)
    return values


def _plugins(uid: UID) -> list[str]:
    """Decoders to be tried in order, the fastest first; '' leaves the choice to pydicom.

    Only JPEG-LS has a second one: GDCM is more lenient with markers, and still refuses damaged voxels. For
    JPEG 2000, other decoders invent damaged parts.
    """
    installed = get_decoder(uid).available_plugins
    wanted = _FASTEST.get(uid, ())
    return [name for name in wanted if name in installed] or [""]


_FASTEST = dict.fromkeys(JPEGLSTransferSyntaxes, ("pyjpegls", "gdcm")) | dict.fromkeys(
    [*JPEG2000TransferSyntaxes, RLELossless], ("pylibjpeg",)
)
