"""Headers that cannot be, or that end too soon: one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from tests.dicoms import ramp, stack, write

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.finding import Found, find_series


def _without(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def _with(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("PixelSpacing"), "PixelSpacing is None; 2 finite numbers are needed"),
        (_with("PixelSpacing", [0.5, 0]), "it must be positive"),
        (_with("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "not at a right angle"),
        (_with("ImageOrientationPatient", [2, 0, 0, 0, 1, 0]), "not two unit vectors"),
        (_with("ImagePositionPatient", [0, 0, 1e9]), "ImagePositionPatient is"),
        (_with("RescaleSlope", 0), "rescale slope 0 and intercept -1024 are impossible"),
        (_with("Rows", 60000), "truncated; header promises 840000 bytes of voxels, the file has 84"),
        (_with("Columns", 0), "Columns is 0; a number from 1 to 65535 is needed"),
        (_with("BitsStored", 20), "BitsStored is 20; a number from 1 to 16 is needed"),
        (_with("BitsAllocated", 12), "BitsAllocated is 12; 8, 16 and 32 are read"),
        (_with("PhotometricInterpretation", "PALETTE COLOR"), "PALETTE COLOR, not grey values"),
        (_without("PixelData"), "holds no pixel data"),
    ],
)
def test_impossible_headers_are_one_line(
    tmp_path: Path, change: Callable[[Dataset], None], says: str
) -> None:
    datasets = stack(ramp())
    change(datasets[2])
    (refused,) = find_series(write(tmp_path, datasets)).refused
    assert says in refused.reason
    assert "\n" not in refused.reason
    assert ".dcm: " in refused.reason


def test_truncated_files(tmp_path: Path) -> None:
    write(tmp_path, stack(ramp()))
    victim = sorted(tmp_path.iterdir())[0]
    content = victim.read_bytes()
    for length in range(132, len(content), 7):
        victim.write_bytes(content[:length])
        found: Found = find_series(tmp_path)
        # As long as its series is not known it can only be left out, with a note.
        reasons = [r.reason for r in found.refused] + list(found.notes)
        assert any(str(victim) in reason for reason in reasons), length


def test_a_file_deflated_as_a_whole_is_refused(tmp_path: Path) -> None:
    def deflate(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    with pytest.raises(ScanError, match="is deflated as a whole; convert it"):
        find_series(write(tmp_path, stack(ramp()), deflate))
