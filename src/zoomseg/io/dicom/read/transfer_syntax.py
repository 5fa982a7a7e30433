"""The transfer syntax of a file, which must be known before the rest of it is read.

A file that is deflated as a whole could inflate to more than the memory: pydicom inflates it at once, without
a limit.
"""

from __future__ import annotations

from typing import BinaryIO

from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.tags import text


def read_transfer_syntax(name: object, stream: BinaryIO) -> UID:
    """The transfer syntax in the file's own header; '' if it is missing. The stream is at the start of the
    file, before and after.

    The header is parsed by the function with which pydicom begins to read a whole file: another parser could
    find another syntax in a hostile one, which states two, or has unusual elements before it.

    Args:
        name: of the file, for the message.

    Raises:
        ScanError: the file is deflated as a whole.
        Exception: any other, as parsers may raise on hostile bytes.
    """
    read_preamble(stream, force=True)
    syntax = UID(text(_read_file_meta_info(stream), "TransferSyntaxUID"))
    stream.seek(0)
    if syntax == DeflatedExplicitVRLittleEndian:
        raise ScanError(
            f"{name}: is deflated as a whole; convert it to an uncompressed DICOM file (dcmconv +te)"
        )
    return syntax
