"""Equal content has equal digests; different content has different ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from helpers.dicom_series import ramp, stack, uneven, write
from helpers.untrained_models import untrained_bundle
from zoomseg.io import digests
from zoomseg.io.calibration import Calibration
from zoomseg.io.scans import ScanInput, find_scans


def test_files_by_content_and_order(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    one = hashlib.sha256(hashlib.sha256(b"1").digest()).hexdigest()
    assert digests.of_files([tmp_path / "a"]) == digests.of_files([tmp_path / "c"]) == one
    both, other = ([tmp_path / name for name in names] for names in ("ab", "ba"))
    assert len({digests.of_files(both), digests.of_files(other), one}) == 3
    with pytest.raises(OSError, match="no such file"):
        digests.of_files([tmp_path])


def test_a_text_headers_voxels_count(tmp_path: Path) -> None:
    header = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = voxels.raw\n"
    (tmp_path / "a.mhd").write_text(header)
    (tmp_path / "voxels.raw").write_bytes(bytes(8))
    scan = ScanInput("a", (tmp_path / "a.mhd",))
    before = digests.of_scan(scan)
    (tmp_path / "voxels.raw").write_bytes(bytes(7) + b"\1")
    assert digests.of_scan(scan) != before


@pytest.mark.parametrize("datasets", [stack(ramp(), (0, 0, 2)), uneven()], ids=["even", "uneven"])
def test_of_dicom_every_slice_counts(tmp_path: Path, datasets: list[Dataset]) -> None:
    write(tmp_path, datasets)
    (scan,) = find_scans(tmp_path)
    found = {digests.of_scan(scan)}
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        found.add(digests.of_scan(scan))
    assert len(found) == 1 + len(datasets)


def test_models() -> None:
    one = untrained_bundle()
    assert digests.of_model(one) == digests.of_model(untrained_bundle())
    others = [
        untrained_bundle(1),
        replace(one, channel_names=("MR",)),
        replace(one, calibration=Calibration(offset=0.0, slope=1.0, organs={}, cases=1)),
    ]
    assert len({digests.of_model(model) for model in (one, *others)}) == 4


def test_the_atlases_in_a_models_folder_count(tmp_path: Path) -> None:
    """Their manifest contains the digest of their voxels."""
    model = replace(untrained_bundle(), folder=tmp_path)
    found = [digests.of_model(model)]
    (tmp_path / "atlases").mkdir()
    for sha256 in ("0" * 64, "1" * 64):
        (tmp_path / "atlases" / "atlases.json").write_text(sha256)
        found.append(digests.of_model(model))
    assert found[0] == digests.of_model(untrained_bundle())
    assert len(set(found)) == 3


def test_json_without_order_of_keys() -> None:
    assert digests.of_json({"a": 1, "b": [2]}) == digests.of_json({"b": [2], "a": 1})
    assert digests.of_json({"a": 1}) != digests.of_json({"a": 1.5})
