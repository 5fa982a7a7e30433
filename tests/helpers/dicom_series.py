"""Synthetic DICOM series for tests: small, complete, and wrong only in the way that a test requests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)

SERIES_UID = "1.2.3.4"

Array = npt.NDArray[Any]


def ramp(slices: int = 5, rows: int = 6, columns: int = 7) -> Array:
    """Stored values ``[k, row, column]``, all different."""
    return np.arange(slices * rows * columns, dtype=np.uint16).reshape(slices, rows, columns)


def image(values: Array, position: Sequence[float], **tags: Any) -> Dataset:
    """One CT slice of stored values ``[row, column]``; ``tags`` add DICOM keywords, replace them, or remove
    them (None)."""
    uid = f"{SERIES_UID}.{abs(hash((values.tobytes(), tuple(position)))) % 10**12}"
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    _pixels(dataset, values)
    given: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": uid,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": SERIES_UID,
        "FrameOfReferenceUID": "1.2.3.5",
        "Modality": "CT",
        "SeriesNumber": 4,
        "SeriesDescription": "body",
        "PatientID": "p1",
        "PatientName": "Doe^Jane",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [float(x) for x in position],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [0.5, 0.75],  # rows, then columns
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    for keyword, value in (given | tags).items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    if tags.get("SOPClassUID") == MRImageStorage:
        dataset.Modality = "MR"
    return dataset


def _pixels(dataset: Dataset, values: Array) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape[-2:]
    bits = 8 * values.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"


def stack(values: Array, step: Sequence[float] = (0, 0, 2), **tags: Any) -> list[Dataset]:
    """A series: slice k is at ``(-10, -20, 30) + k * step`` mm (LPS)."""
    places = [np.array([-10, -20, 30]) + k * np.array(step, dtype=float) for k in range(len(values))]
    return [image(v, place, **tags) for v, place in zip(values, places, strict=True)]


def uneven(**tags: Any) -> list[Dataset]:
    """A series of nine slices at uneven distances; resampled, only the first and the last of them lie in a
    plane."""
    places = (0, 2, 4.3, 6.2, 8.5, 10.4, 12.6, 14.4, 16.5)
    return [image(v, (-10, -20, 30 + z), **tags) for v, z in zip(ramp(9), places, strict=True)]


def write(folder: Path, datasets: Sequence[Dataset], change: Callable[[Dataset], None] | None = None) -> Path:
    """Write files in an order that differs from that of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        if change is not None:
            change(dataset)
        name = f"{(7 * number + 3) % 97:02d}-{number}.dcm"
        dataset.save_as(folder / name, enforce_file_format=True)
    return folder


def item(**tags: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def multi_frame(values: Array, frames: Sequence[dict[str, Any]], shared: dict[str, Any]) -> Dataset:
    """An enhanced MR object: name and item of a functional group for each frame, and those that all share."""
    dataset = image(values, (0, 0, 0), SOPClassUID=EnhancedMRImageStorage, Modality="MR")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, keyword)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.NumberOfFrames = len(values)
    dataset.SharedFunctionalGroupsSequence = [item(**{name: [of] for name, of in shared.items()})]
    dataset.PerFrameFunctionalGroupsSequence = [item(**{n: [of] for n, of in one.items()}) for one in frames]
    return dataset


def numbered_series(folder: Path, number: int, study: str = "1.2.3", **tags: Any) -> Path:
    """A series on disk, with its own numbers."""
    uid = f"1.2.3.{study}.{number}"
    return write(
        folder, stack(ramp(), SeriesNumber=number, SeriesInstanceUID=uid, StudyInstanceUID=study, **tags)
    )


PREAMBLE = bytes(128) + b"DICM"


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """An element of a file's own header, explicit little endian."""
    form = "<HH2sxxI" if vr == b"UT" else "<HH2sH"
    return struct.pack(form, 2, number, vr, len(value)) + value


_DEFLATED = _element(0x10, b"UI", DeflatedExplicitVRLittleEndian.encode())

DEFLATED_HEADERS = {
    "once": _DEFLATED,
    "as the second of two": _element(0x10, b"UI", b"1.2.840.10008.1.2.1\0") + _DEFLATED,
    "after a length of four bytes": _element(0x101, b"UT", b"text") + _DEFLATED,
    "after many elements": b"".join(_element(0x110 + n, b"SH", b"ab") for n in range(40)) + _DEFLATED,
}
"""Headers by which pydicom inflates a file."""


def deflated(dataset: Dataset, header: bytes) -> bytes:
    """An object as a file that is deflated as a whole, after ``header``."""
    plain = BytesIO()
    dataset.save_as(plain, enforce_file_format=True)
    first = _element(0, b"UL", bytes(4))
    start = len(PREAMBLE + first)
    start += int.from_bytes(plain.getvalue()[start - 4 : start], "little")
    packed = zlib.compress(plain.getvalue()[start:])[2:-4]  # without the frame of zlib
    return PREAMBLE + header + packed
