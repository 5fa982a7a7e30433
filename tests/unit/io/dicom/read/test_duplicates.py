"""Copies of objects are ignored; different objects with the same UID are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from helpers.dicom_series import AXIAL, Array, image, item, multi_frame, ramp, stack, write
from zoomseg.io.dicom.read.series_discovery import find_series, the_series
from zoomseg.io.dicom.read.voxels import read_volume

SLICES = ramp(5, 32, 36)


def reason(path: Path) -> str:
    (refused,) = find_series(path).refused
    return refused.reason


def values(path: Path) -> Array:
    return read_volume(the_series(path)).data[0].transpose(2, 1, 0)


def as_jpeg_2000(dataset: Dataset) -> None:
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)


def as_jpeg_ls(dataset: Dataset) -> None:
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)


def with_uids_of(originals: list[Dataset], changed: Array, **tags: Any) -> list[Dataset]:
    copies = stack(changed, **tags)
    for copy, original in zip(copies, originals, strict=True):
        copy.SOPInstanceUID = original.SOPInstanceUID
    return copies


def test_a_copy_may_be_compressed(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(SLICES))
    write(tmp_path / "b", stack(SLICES), as_jpeg_2000)
    write(tmp_path / "c", stack(SLICES)[:2], as_jpeg_ls)
    assert the_series(tmp_path).series.notes == ("7 slices are duplicated; the copies were left out",)
    assert (values(tmp_path) == SLICES.astype(int) - 1024).all()


def test_a_copy_may_be_in_a_zip(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(SLICES))
    shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "a")
    assert the_series(tmp_path).series.notes == ("5 slices are duplicated; the copies were left out",)


@pytest.mark.parametrize("compressed", [False, True])
def test_one_uid_of_other_voxels_is_refused(tmp_path: Path, compressed: bool) -> None:
    changed = SLICES.copy()
    changed[3, 31, 35] += 1
    write(tmp_path / "a", stack(SLICES))
    copies = with_uids_of(stack(SLICES), changed)
    write(tmp_path / "b", copies, as_jpeg_2000 if compressed else None)
    assert "has the UID of " in reason(tmp_path)
    assert "but other voxels; give one of them alone" in reason(tmp_path)


@pytest.mark.parametrize("tags", [{"RescaleIntercept": 0}, {"RescaleSlope": 2}, {"PixelRepresentation": 1}])
def test_one_uid_of_voxels_that_mean_something_else_is_refused(tmp_path: Path, tags: dict[str, Any]) -> None:
    write(tmp_path / "a", stack(SLICES))
    write(tmp_path / "b", with_uids_of(stack(SLICES), SLICES, **tags))
    assert "but other voxels" in reason(tmp_path)


def test_one_uid_at_two_places_is_refused(tmp_path: Path) -> None:
    datasets = stack(SLICES)
    datasets[1].SOPInstanceUID = datasets[0].SOPInstanceUID
    assert "but lies elsewhere" in reason(write(tmp_path, datasets))


def test_copies_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(SLICES))
    write(tmp_path / "b", stack(SLICES), as_jpeg_2000)
    for file in (tmp_path / "b").iterdir():
        content = file.read_bytes()
        start = content.index(b"\xff\x4f\xff\x51") + 60
        file.write_bytes(content[:start] + bytes(len(content) - start))
    assert "voxels cannot be decoded" in reason(tmp_path)


def test_frames_are_compared_one_by_one(tmp_path: Path) -> None:
    def enhanced(slices: Array) -> Dataset:
        frames = [{"PlanePositionSequence": item(ImagePositionPatient=[0.0, 0.0, 3.0 * k])} for k in range(5)]
        shared = {
            "PlaneOrientationSequence": item(ImageOrientationPatient=list(AXIAL)),
            "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.75]),
        }
        dataset = multi_frame(slices, frames, shared)
        dataset.SOPInstanceUID = "1.2.3.77"
        return dataset

    write(tmp_path / "a", [enhanced(SLICES)])
    write(tmp_path / "b", [enhanced(SLICES)], as_jpeg_2000)
    assert the_series(tmp_path).series.notes == ("5 slices are duplicated; the copies were left out",)
    changed = SLICES.copy()
    changed[4] = np.flipud(changed[4])
    write(tmp_path / "b", [enhanced(changed)], as_jpeg_2000)
    assert "but other voxels" in reason(tmp_path)


def test_images_without_a_uid_are_no_copies_of_each_other(tmp_path: Path) -> None:
    """The headers of the files also lack it."""
    for number, dataset in enumerate([*stack(ramp(3)), image(ramp(4)[3], (-10, -20, 36))]):
        del dataset.SOPInstanceUID
        dataset.save_as(tmp_path / f"{number}.dcm", implicit_vr=False, little_endian=True)
    series = the_series(tmp_path).series
    assert series.grid.shape == (7, 6, 4)
    assert series.notes == (
        "its headers lack SOPInstanceUID; copies of one image could not be distinguished from others",
        "it has slices without SOPInstanceUID; a SEG or RTSTRUCT does not refer to these",
    )
