"""Shipped files are read on the worker as they are here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.dicom_series import AXIAL, item, multi_frame, numbered_series, ramp, stack, uneven, write
from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.cluster.shipping import FileContents, ShippedScan, model_files
from zoomseg.core.errors import ScanError
from zoomseg.io import bundle, digests
from zoomseg.io.scans import ScanInput, find_scans, read_scan, write_image


def same_there(scan: ScanInput, there: Path) -> None:
    here, found = read_scan(scan), ShippedScan.of(scan).unpack(there)
    assert found.id == scan.id
    sent = read_scan(found)
    assert np.array_equal(sent.image.data, here.image.data)
    assert sent.image.grid.same_as(here.image.grid)
    assert digests.of_scan(found) == digests.of_scan(scan)


def test_channels_of_a_scan(tmp_path: Path) -> None:
    paths = tuple(tmp_path / folder / "scan.nii.gz" for folder in ("t1", "t2"))
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        write_image(path, tiny_case(seed)[0])
    same_there(ScanInput("both", paths), tmp_path / "there")


def test_a_header_and_its_voxels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    header = "NDims = 3\nDimSize = 3 2 2\nElementType = MET_SHORT\nElementDataFile = voxels.raw\n"
    (tmp_path / "in" / "a.mhd").write_text(header)
    (tmp_path / "in" / "voxels.raw").write_bytes(np.arange(-500, 700, 100, dtype="<i2").tobytes())
    same_there(ScanInput("a", (tmp_path / "in" / "a.mhd",)), tmp_path / "there")


@pytest.mark.parametrize("zipped", [False, True])
def test_one_of_several_dicom_series(tmp_path: Path, zipped: bool) -> None:
    for number in (1, 2):
        numbered_series(tmp_path / "in" / str(number), number)
    place = tmp_path / "in"
    if zipped:
        place = Path(shutil.make_archive(str(tmp_path / "both"), "zip", place))
    first, second = find_scans(place)
    for number, scan in enumerate((first, second)):
        same_there(scan, tmp_path / f"there-{number}")
    assert len(ShippedScan.of(first).files.contents) == (1 if zipped else len(first.dicom.paths))


def test_a_dicom_series_of_which_few_slices_lie_in_a_plane(tmp_path: Path) -> None:
    (scan,) = find_scans(write(tmp_path / "in", uneven()))
    same_there(scan, tmp_path / "there")


def test_one_of_two_volumes_of_a_multi_frame_object(tmp_path: Path) -> None:
    """All of its frames have the same UID."""
    frames = [
        {
            "FrameContentSequence": item(TemporalPositionIndex=time),
            "PlanePositionSequence": item(ImagePositionPatient=[0.0, 0.0, 3.0 * k]),
        }
        for time in (1, 2)
        for k in range(5)
    ]
    shared = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=list(AXIAL)),
        "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.75]),
    }
    scans = find_scans(write(tmp_path / "in", [multi_frame(ramp(10), frames, shared)]))
    assert [float(read_scan(scan).image.data.mean()) for scan in scans] == [104.5, 314.5]
    for number, scan in enumerate(scans):
        same_there(scan, tmp_path / f"there-{number}")


def test_one_of_two_series_whose_images_have_the_same_uids(tmp_path: Path) -> None:
    for number in (1, 2):
        series = stack(ramp() * number, SeriesInstanceUID=f"1.2.{number}")
        for k, one in enumerate(series):
            one.SOPInstanceUID = f"1.2.9.{k}"
        write(tmp_path / "in" / str(number), series)
    scans = find_scans(Path(shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path / "in")))
    assert len(scans) == 2
    for number, scan in enumerate(scans):
        same_there(scan, tmp_path / f"there-{number}")


def test_a_scan_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"a\.nii\.gz: no such file"):
        ShippedScan.of(ScanInput("a", (tmp_path / "a.nii.gz",)))


def test_a_model_without_its_training(tmp_path: Path) -> None:
    bundle.save(untrained_bundle(), tmp_path / "model")
    (tmp_path / "model" / "training").mkdir()
    (tmp_path / "model" / "training" / "checkpoint.pt").write_bytes(b"large")
    (tmp_path / "model" / "weights" / "of-an-interrupted-training.safetensors").write_bytes(b"large")
    (tmp_path / "model" / "atlases").mkdir()
    (tmp_path / "model" / "atlases" / "atlases.json").write_text("{}")
    model_files(tmp_path / "model").write(tmp_path / "there")
    assert not (tmp_path / "there" / "training").exists()
    assert len(list((tmp_path / "there" / "weights").iterdir())) == 2
    shutil.rmtree(tmp_path / "there" / "atlases")
    there = bundle.load(tmp_path / "there")
    assert digests.of_model(there) == digests.of_model(untrained_bundle())


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "b/../../a"])
def test_no_file_leaves_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves its folder"):
        FileContents({name: b""}).write(tmp_path / "folder")
    assert not (tmp_path / "a").exists()
