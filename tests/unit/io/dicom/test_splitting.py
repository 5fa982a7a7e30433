"""Sizes, orientations and phases of one series, apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import MRImageStorage
from tests.dicoms import CORONAL, ramp, stack, write

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.finding import find_series


def test_sizes_and_orientations_are_volumes_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(ramp()))
    write(tmp_path / "b", stack(ramp(4) + 500, (0, 2, 0), ImageOrientationPatient=list(CORONAL)))
    write(tmp_path / "c", stack(ramp(3, 8, 8) + 900))
    found = find_series(tmp_path)
    assert sorted(s.series.grid.shape for s in found.stacks) == [(7, 6, 4), (7, 6, 5), (8, 8, 3)]
    assert "the series holds 3 sizes or orientations" in found.stacks[0].series.notes[0]


def test_phases_are_told_apart(tmp_path: Path) -> None:
    late = stack(ramp() + 1, AcquisitionNumber=2)
    write(tmp_path / "a", stack(ramp(), AcquisitionNumber=1))
    write(tmp_path / "b", late)
    found = find_series(tmp_path)
    assert [s.series.notes for s in found.stacks] == [
        (f"one of 2 volumes of its series: AcquisitionNumber {n}",) for n in (1, 2)
    ]
    assert found.stacks[1].series.slice_uids == tuple(d.SOPInstanceUID for d in late)


def test_echoes_of_magnitude_and_phase_are_four_volumes(tmp_path: Path) -> None:
    for number, (echo, kind) in enumerate([(2.3, "M"), (4.6, "M"), (2.3, "P"), (4.6, "P")]):
        tags: dict[str, Any] = {"EchoTime": echo, "ImageType": ["ORIGINAL", "PRIMARY", kind]}
        write(tmp_path / str(number), stack(ramp() + number, SOPClassUID=MRImageStorage, **tags))
    stacks = find_series(tmp_path).stacks
    assert len(stacks) == 4
    assert stacks[0].series.notes[0].startswith("one of 4 volumes of its series: EchoTime 2.3, ImageType ")


def test_phases_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(ramp()))
    write(tmp_path / "b", stack(ramp() + 1))
    (refused,) = find_series(tmp_path).refused
    assert "up to 2 of its 10 slices lie at one place" in refused.reason
    assert refused.reason.startswith(f"{tmp_path}: series 4 'body': ")
    with pytest.raises(ScanError, match="up to 2 of its 10"):
        refused.usable()
