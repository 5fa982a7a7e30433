"""The files that `zoomseg view` serves, and no others."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient

from helpers.servers import LOCAL
from helpers.tiny_dataset import tiny_case
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.volume import LabelMap
from zoomseg.io.scans import read_grid, write_image, write_labels
from zoomseg.serve.view import create_app, prepare


def client(scan: Path, labels: Path, room: Path) -> TestClient:
    return TestClient(create_app(prepare(scan, labels, room), LOCAL), base_url="http://127.0.0.1:1")


@pytest.fixture(params=[".nii", ".nii.gz", ".nrrd", ".mha"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_both_files_arrive_as_nifti_with_their_organs(tmp_path: Path, suffix: str) -> None:
    image, truth = tiny_case(0)
    write_image(tmp_path / f"a{suffix}", image)
    write_labels(tmp_path / f"b{suffix}", truth)
    (tmp_path / "room").mkdir()
    page = client(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", tmp_path / "room")
    view = page.get("/view.json").json()
    assert view["title"] == f"a{suffix}, b{suffix}"
    assert [organ["value"] for organ in view["organs"]] == [3, 7]
    for address, expected in ((view["scan"], image.data[0]), (view["labels"], None)):
        content = page.get(f"/{address}").content
        found = nib.Nifti1Image.from_bytes(gzip.decompress(content) if address.endswith(".gz") else content)
        np.testing.assert_allclose(found.affine, image.grid.affine, atol=1e-5)
        values = np.asarray(found.dataobj)
        if expected is None:
            np.testing.assert_array_equal(values, np.choose(truth.data, [0, 3, 7]))
        else:
            np.testing.assert_array_equal(values, expected)
    for other in ("/jobs", "/openapi.json", "/room", "/static/../viewing.py", f"/a{suffix}"):
        assert page.get(other).status_code == 404


def test_what_is_no_scan_is_refused_before_the_browser_opens(tmp_path: Path) -> None:
    image, truth = tiny_case(0)
    write_image(tmp_path / "a.nii.gz", image)
    write_labels(tmp_path / "b.nii.gz", truth)
    (tmp_path / "c.nii.gz").write_bytes(b"no scan")
    with pytest.raises(ScanError, match=r"c\.nii\.gz"):
        prepare(tmp_path / "c.nii.gz", tmp_path / "b.nii.gz", tmp_path)
    with pytest.raises(ScanError, match=r"a\.nii\.gz"):
        prepare(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz", tmp_path)


def test_labels_of_another_grid_are_laid_by_position_and_this_is_said(tmp_path: Path) -> None:
    image, truth = tiny_case(0)
    write_image(tmp_path / "a.nii.gz", image)
    write_labels(tmp_path / "same.nii.gz", truth)
    assert prepare(tmp_path / "a.nii.gz", tmp_path / "same.nii.gz", tmp_path).view.notes == []
    moved = truth.grid.affine.copy()
    moved[0, 3] += 5
    write_labels(tmp_path / "moved.nii.gz", LabelMap(truth.data, Grid(truth.grid.shape, moved), truth.schema))
    (note,) = prepare(tmp_path / "a.nii.gz", tmp_path / "moved.nii.gz", tmp_path).view.notes
    assert note.startswith("moved.nii.gz is not on the grid of a.nii.gz (voxels are up to 5 mm off)")
    write_labels(tmp_path / "half.nii.gz", truth.crop(Box((0, 0, 0), (24, 20, 8))))
    (note,) = prepare(tmp_path / "a.nii.gz", tmp_path / "half.nii.gz", tmp_path).view.notes
    assert "shape (24, 20, 8) and not (24, 20, 16)" in note
    moved[0, 3] += 500
    write_labels(tmp_path / "far.nii.gz", LabelMap(truth.data, Grid(truth.grid.shape, moved), truth.schema))
    with pytest.raises(ScanError, match=r"far\.nii\.gz: lies wholly outside a\.nii\.gz"):
        prepare(tmp_path / "a.nii.gz", tmp_path / "far.nii.gz", tmp_path)


@pytest.mark.parametrize("kind", ["codes", "units"])
def test_a_header_that_programs_read_differently_is_served_as_zoomseg_reads_it(
    tmp_path: Path, kind: str
) -> None:
    """The page, by its own rules, would misalign the two, or show them too small."""
    image, truth = tiny_case(0)
    scan, labels = tmp_path / "a.nii", tmp_path / "b.nii.gz"
    um = image.grid.affine * np.array([[1000], [1000], [1000], [1]])
    made = nib.Nifti1Image(image.data[0], um if kind == "units" else None)
    made.header.set_xyzt_units("micron" if kind == "units" else "mm")
    nib.save(made, scan)
    grid = read_grid(scan)
    write_labels(labels, LabelMap(truth.data, grid, truth.schema), like=scan)
    files = prepare(scan, labels, tmp_path)
    assert len(files.view.notes) == 2  # one for each file
    for path in (files.scan, files.labels):
        found = nib.load(path)
        assert found.header["sform_code"] > 0
        assert found.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(found.affine, grid.affine, atol=1e-5)
    assert np.array_equal(np.asarray(nib.load(files.scan).dataobj), image.data[0])
