"""Written files are read back; a result that cannot be written leaves the old one."""

import errno
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers import dicom_series
from helpers.scan_files import SCHEMA, SHAPE, label_values, noise, oblique
from zoomseg.core.errors import OutputError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.scans import (
    read_grid,
    read_image,
    read_labels,
    write_image,
    write_labels,
    written_suffix,
)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_label_round_trip_on_an_oblique_grid(tmp_path: Path, suffix: str) -> None:
    grid = Grid(SHAPE, oblique())
    labels = LabelMap(SCHEMA.encode(label_values()), grid, SCHEMA)
    path = tmp_path / f"out{suffix}"
    write_labels(path, labels)
    again = read_labels(path, SCHEMA)
    assert np.array_equal(again.data, labels.data)
    assert again.grid.distance_mm(grid) < 1e-4
    assert os.listdir(tmp_path) == [path.name]


def test_written_nifti_says_the_same_in_sform_and_qform(tmp_path: Path) -> None:
    schema = LabelSchema(("liver",), (9,))
    write_labels(
        tmp_path / "a.nii.gz",
        LabelMap(np.ones(SHAPE, dtype=np.uint8), Grid(SHAPE, oblique()), schema),
    )
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header.get_data_dtype() == np.uint8
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    assert np.allclose(header.get_sform(), header.get_qform(), atol=1e-4)
    assert set(np.unique(nib.load(tmp_path / "a.nii.gz").dataobj)) == {9}


def test_like_copies_the_scan_geometry_verbatim(tmp_path: Path) -> None:
    scan = nib.Nifti1Image(noise(), None)
    scan.set_qform(oblique(), code=2)
    scan.set_sform(None, code=0)
    nib.save(scan, tmp_path / "scan.nii.gz")
    grid = read_grid(tmp_path / "scan.nii.gz")
    labels = LabelMap(np.zeros(SHAPE, dtype=np.uint8), grid, SCHEMA)
    write_labels(tmp_path / "out.nii.gz", labels, like=tmp_path / "scan.nii.gz")
    header, source = nib.load(tmp_path / "out.nii.gz").header, nib.load(tmp_path / "scan.nii.gz").header
    assert int(header["qform_code"]) == 2
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        assert header[field] == source[field]
    elsewhere = LabelMap(labels.data, Grid(SHAPE, np.eye(4)), SCHEMA)
    with pytest.raises(ScanError, match="the result"):
        write_labels(tmp_path / "out.nii.gz", elsewhere, like=tmp_path / "scan.nii.gz")


def test_like_a_folder_of_dicom_called_as_a_nifti_file(tmp_path: Path) -> None:
    folder = dicom_series.write(tmp_path / "scan.nii", dicom_series.stack(dicom_series.ramp()))
    grid = read_grid(folder)
    labels = LabelMap(np.ones(grid.shape, dtype=np.uint8), grid, SCHEMA)
    write_labels(tmp_path / "out.nii.gz", labels, like=folder)
    again = read_labels(tmp_path / "out.nii.gz", SCHEMA)
    assert again.grid.same_as(grid)
    assert (again.data == 1).all()


def test_image_round_trip(tmp_path: Path) -> None:
    image = Volume(noise((2, *SHAPE)), Grid(SHAPE, oblique()))
    write_image(tmp_path / "two.nii.gz", image)
    assert np.array_equal(read_image(tmp_path / "two.nii.gz", channels_last=True).data, image.data)
    one = Volume(image.data[:1], image.grid)
    write_image(tmp_path / "one.mha", one)
    assert np.array_equal(read_image(tmp_path / "one.mha").data, one.data)
    with pytest.raises(OutputError, match="several channels"):
        write_image(tmp_path / "two.nrrd", image)


def test_unwritable_places(tmp_path: Path) -> None:
    image = Volume(np.zeros((1, *SHAPE), dtype=np.float32), Grid(SHAPE, np.eye(4)))
    for name in ("none/a.nii.gz", "none/a.nrrd"):
        with pytest.raises(OutputError, match="cannot be written"):
            write_image(tmp_path / name, image)
    with pytest.raises(OutputError, match="supported are"):
        write_image(tmp_path / "a.png", image)


def test_full_disk_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Volume(noise((1, *SHAPE)), Grid(SHAPE, np.eye(4)))
    write_image(tmp_path / "a.nii.gz", image)
    before = (tmp_path / "a.nii.gz").read_bytes()

    def half(_: object, path: Path, compressed: bool) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("zoomseg.io.nifti.save", half)
    with pytest.raises(OutputError, match=r"a\.nii\.gz: cannot be written \(No space left on device\)"):
        write_image(tmp_path / "a.nii.gz", image)
    assert (tmp_path / "a.nii.gz").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nii.gz"]


@pytest.mark.parametrize(
    ("name", "one_channel", "says"),
    [
        ("a.png", True, "cannot write this format; supported are .nii.gz, .nii, .nrrd, .mha$"),
        ("a.mhd", True, "cannot write this format"),
        ("a.mha", False, "several channels can only be written as .nii or .nii.gz"),
    ],
)
def test_a_suffix_that_cannot_be_written_is_refused_without_voxels(
    name: str, one_channel: bool, says: str
) -> None:
    with pytest.raises(OutputError, match=says):
        written_suffix(Path(name), one_channel)


def test_a_suffix_that_can_be_written_is_given() -> None:
    assert written_suffix(Path("a.NII.GZ"), one_channel=False) == ".nii.gz"
    assert written_suffix(Path("a.mha")) == ".mha"
