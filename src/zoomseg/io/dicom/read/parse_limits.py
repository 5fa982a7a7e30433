"""Limits on what the parser may read of a DICOM object: it makes much of little.

An empty item of a sequence takes 8 bytes in a file, in a zip a hundredth of one, and almost 700 in memory; an
empty element takes 8 and about 300. Every stream that pydicom parses is given to ``limited`` before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, cast

from zoomseg.core.errors import ScanError

MAX_HEADER_BYTES = 64 * 1024**2
"""Of the attributes before the voxels that are read, not skipped. An enhanced object has about 4 kB for each
frame, a segmentation less than 1 kB, so that 16 000 and 64 000 frames fit."""

ANY_BYTES = 1 << 62
"""For objects that are held in memory as a whole anyway, and whose size is limited by the caller."""

MAX_ITEMS = 1_500_000
"""Of sequences, which then take 1 GB. Enhanced objects and segmentations have about ten for each frame,
RTSTRUCTs two for each contour."""

MAX_READS = 5_000_000
"""Number of reads of the parser, which are two or three for each element outside of sequences of a stated
length, and one for an empty element: these then take 1.5 GB. An enhanced object needs about 250 for each
frame."""

_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""The tag of an item, in both byte orders."""


def limited(name: object, stream: BinaryIO, most_bytes: int = MAX_HEADER_BYTES) -> BinaryIO:
    """A stream of the same content and position, for the parser.

    Args:
        name: of the file, for the message.
        most_bytes: that may be read, repeatedly or not.

    Raises:
        ScanError: when it is read beyond a limit.
    """
    return cast(BinaryIO, _Limited(name, stream, most_bytes))


@dataclass(eq=False)
class _Limited:
    file: object
    """For the message; pydicom takes an attribute ``name`` for a path."""
    stream: BinaryIO
    most_bytes: int
    read_bytes: int = 0
    reads: int = 0
    items: int = 0

    def read(self, size: int = -1) -> bytes:
        left = self.most_bytes - self.read_bytes + 1  # one more shows that it is too much
        found = self.stream.read(size if 0 <= size < left else left)
        self.reads += 1
        self.read_bytes += len(found)
        self.items += sum(found.count(item) for item in _ITEMS)
        if self.read_bytes > self.most_bytes:
            raise self._exceeded(f"of more than {self.most_bytes} bytes")
        if self.items > MAX_ITEMS:
            raise self._exceeded(f"with more than {MAX_ITEMS} items of sequences")
        if self.reads > MAX_READS:
            raise self._exceeded("with too many attributes")
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _exceeded(self, what: str) -> ScanError:
        return ScanError(f"{self.file}: DICOM header {what}; export it as objects of fewer frames")
