"""DICOM objects beside a prediction's label map: ``<case>.seg.dcm`` and ``<case>.rtstruct.dcm``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum
from pathlib import Path

from zoomseg.core.errors import ScanError
from zoomseg.core.volume import LabelMap
from zoomseg.io.files import writing
from zoomseg.io.scans import ScanInput


class DicomResult(Enum):
    """A kind of object, with the suffix of its file."""

    SEG = "seg.dcm"
    RTSTRUCT = "rtstruct.dcm"

    def path(self, out: Path, case: str) -> Path:
        return out / f"{case}.{self.value}"


def require_series(scans: Iterable[ScanInput], kinds: Collection[DicomResult]) -> None:
    """Refuse scans of other formats than DICOM, if any of ``kinds`` is requested.

    Raises:
        ScanError: there is one; such objects refer to the slices of a series.
    """
    other = next((scan for scan in scans if scan.dicom is None), None)
    if kinds and other is not None:
        raise ScanError(
            f"{other.paths[0]}: is no DICOM series, to whose slices a SEG or RTSTRUCT refers; give the "
            "folder or zip of the series, or leave out --dicom-seg and --rtstruct"
        )


def write_results(
    out: Path,
    scan: ScanInput,
    labels: LabelMap,
    kinds: Collection[DicomResult],
    model: str,
    seed: str = "",
) -> None:
    """Write objects of ``kinds``. For a scan without any organ there are none; those of an earlier run are
    deleted.

    Args:
        labels: on the grid of ``scan``, which is from DICOM if there are any ``kinds``.
        model: that created them.
        seed: of their UIDs; random if omitted.

    Raises:
        OutputError: a file cannot be written.
    """
    if not kinds or scan.dicom is None:
        return
    writers = load_writers()
    series = scan.dicom.usable().series
    for kind in kinds:
        path = kind.path(out, scan.id)
        if not writers[kind](path, labels, series, model, seed=seed):
            with writing(path):
                path.unlink(missing_ok=True)


def load_writers() -> dict[DicomResult, Callable[..., bool]]:
    """The functions that write each kind. Their libraries are imported here, which takes a second."""
    from zoomseg.io.dicom.write.rtstruct import write_rtstruct
    from zoomseg.io.dicom.write.seg import write_seg

    return {DicomResult.SEG: write_seg, DicomResult.RTSTRUCT: write_rtstruct}
