"""Checks of SEG and RTSTRUCT files: their kind, a plausible size, and their frame of reference."""

# mypy: allow-untyped-calls

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from zoomseg.anatomy.codes import short_text
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.archive import BoundedReader
from zoomseg.io.dicom.read.parse_limits import ANY_BYTES, limited
from zoomseg.io.dicom.read.transfer_syntax import read_transfer_syntax
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.uids import valid_uid
from zoomseg.io.files import reading

MAX_OBJECT_BYTES = 4 * 1024**3
"""Maximum size of a SEG or RTSTRUCT."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file for pydicom's parser, within limits of size and memory.

    Raises:
        ScanError: unreadable, too large, or compressed in a way that hides its size.
    """
    with reading(path, "DICOM"):
        if path.stat().st_size > MAX_OBJECT_BYTES:
            raise ScanError(f"{path}: larger than {MAX_OBJECT_BYTES} bytes; no SEG or RTSTRUCT is")
        with BoundedReader(io.FileIO(path), path.stat().st_size) as stream:
            parsed = limited(path, stream, ANY_BYTES)
            read_transfer_syntax(path, parsed)
            yield parsed


def read_label_object(path: Path, kinds: Mapping[str, str]) -> Dataset:
    """A DICOM file of one of the SOP classes ``kinds`` (UID to name).

    Raises:
        ScanError: unreadable, too large, compressed in a way that hides its size, or something else.
    """
    with opened(path) as stream:
        found = pydicom.dcmread(stream)
        kind = str(found.get("SOPClassUID", ""))
        if kind not in kinds:
            what = short_text(UID(kind).name) or "of no kind"
            raise ScanError(f"{path}: is {what}; a {' or '.join(kinds.values())} is needed")
        return found


def require_frame(path: Path, frame_of_reference: str, series: DicomSeries) -> None:
    """Refuse an object of another coordinate system. If either does not state it, geometry must decide.

    Raises:
        ScanError: the frames of reference differ.
    """
    mine = valid_uid(series.frame_of_reference_uid)
    if mine and frame_of_reference and mine != frame_of_reference:
        raise ScanError(
            f"{path}: drawn in frame of reference {short_text(frame_of_reference)}, but series "
            f"'{series.description}' lies in {mine}; give the series that it annotates"
        )
