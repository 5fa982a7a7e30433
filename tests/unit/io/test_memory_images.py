"""Scans as objects of other libraries: the same voxels at the same positions in the patient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from helpers.grids import oriented
from zoomseg.core.errors import GeometryError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.memory_images import as_volume, to_nibabel, to_sitk
from zoomseg.io.scans import read_grid, read_image, write_array

SHAPE = (7, 6, 5)
AFFINE = np.array([[0, -1.5, 0, 30], [2.0, 0, 0, -11], [0, 0, 3.0, 7], [0, 0, 0, 1.0]])
LABELS = np.zeros(SHAPE, dtype=np.uint8)
LABELS[2:6, 1:5, 1:4] = 3
VOXELS = np.random.default_rng(0).normal(40, 20, SHAPE).astype(np.float32)


class TorchIOImage:
    """The attributes of a ``torchio.ScalarImage`` that are used."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = torch.from_numpy(data)
        self.affine = AFFINE
        self.spatial_shape = data.shape[1:]


class TorchIOSubject(dict):
    """Those of a ``torchio.Subject``."""

    spatial_shape = SHAPE

    def get_images(self, intensity_only: bool = True) -> list[TorchIOImage]:
        assert intensity_only
        return list(self.values())


class MetaTensor(torch.Tensor):
    """Those of a ``monai.data.MetaTensor``: a tensor with an affine, which is also a tensor."""

    affine: torch.Tensor


def meta_tensor(data: np.ndarray) -> MetaTensor:
    made = torch.from_numpy(data).as_subclass(MetaTensor)
    made.affine = torch.from_numpy(AFFINE)
    return made


def sitk_image(path: Any) -> sitk.Image:
    write_array(path, VOXELS, Grid(SHAPE, AFFINE))
    return sitk.ReadImage(str(path))


def one_channel(tmp_path: Any) -> dict[str, Any]:
    return {
        "volume": Volume(VOXELS[None], Grid(SHAPE, AFFINE)),
        "nibabel": nib.Nifti1Image(VOXELS, AFFINE),
        "SimpleITK": sitk_image(tmp_path / "scan.nii.gz"),
        "SimpleITK of NRRD": sitk_image(tmp_path / "scan.nrrd"),
        "TorchIO": TorchIOImage(VOXELS[None]),
        "TorchIO subject": TorchIOSubject(ct=TorchIOImage(VOXELS[None])),
        "MONAI": meta_tensor(VOXELS[None]),
        "MONAI without channel": meta_tensor(VOXELS),
    }


def test_all_of_them_are_one_scan(tmp_path: Any) -> None:
    for name, image in one_channel(tmp_path).items():
        found = as_volume(image)
        assert np.array_equal(found.data[0], VOXELS), name
        assert np.allclose(found.grid.affine, AFFINE, atol=1e-5), name
        assert found.data.dtype == np.float32, name


@pytest.mark.parametrize("shape", [SHAPE, (1, *SHAPE)])
def test_an_array_with_its_affine(shape: tuple[int, ...]) -> None:
    found = as_volume(VOXELS.reshape(shape), AFFINE.tolist())
    assert np.array_equal(found.data[0], VOXELS)
    assert np.array_equal(found.grid.affine, AFFINE)


def test_channels_stay_channels() -> None:
    two = np.stack([VOXELS, 2 * VOXELS])
    subject = TorchIOSubject(t1=TorchIOImage(two[:1]), t2=TorchIOImage(two[1:]))
    vector = sitk.GetImageFromArray(np.ascontiguousarray(two.T), isVector=True)
    for image in (nib.Nifti1Image(np.moveaxis(two, 0, -1), AFFINE), meta_tensor(two), subject, vector):
        assert np.array_equal(as_volume(image).data, two)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("unit", "mm"), [("meter", 1e3), ("mm", 1), ("micron", 1e-3), ("unknown", 1)])
def test_a_nibabel_image_is_in_the_unit_of_its_header(tmp_path: Any, kind: Any, unit: str, mm: float) -> None:
    scale = np.diag([1 / mm, 1 / mm, 1 / mm, 1])
    image = kind(VOXELS, scale @ AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    for found in (as_volume(image).grid, as_volume(nib.load(tmp_path / "a.nii")).grid):
        assert np.allclose(found.affine, AFFINE, rtol=1e-5)
        assert found.same_as(read_grid(tmp_path / "a.nii"))


def test_a_nibabel_image_of_another_format_is_in_millimetres() -> None:
    assert np.allclose(as_volume(nib.MGHImage(VOXELS, AFFINE)).grid.affine, AFFINE, atol=1e-5)


def test_an_implausible_grid_is_refused_as_in_files() -> None:
    small = np.diag([1e-6, 1, 1, 1])
    for image in (Volume(VOXELS[None], Grid(SHAPE, small)), nib.Nifti1Image(VOXELS, small)):
        with pytest.raises(ScanError, match="the scan: voxels of 1e-06 x 1 x 1 mm; 1e-05 to 100 mm"):
            as_volume(image)


def test_small_integers_are_kept_and_others_become_float32() -> None:
    whole = VOXELS.round()
    assert as_volume(whole.astype(np.int16), AFFINE).data.dtype == np.int16
    assert as_volume(whole.astype(np.int32), AFFINE).data.dtype == np.float32
    assert as_volume(nib.Nifti1Image(whole.astype(np.int16), AFFINE)).data.dtype == np.int16
    for given, expected in ((np.float64, np.float32), (np.uint16, np.float32), (np.int16, np.int16)):
        volume = Volume(np.abs(whole)[None].astype(given), Grid(SHAPE, AFFINE))
        found = as_volume(volume)
        assert (found.data.dtype, found.grid) == (expected, volume.grid)
        assert np.array_equal(found.data, np.abs(whole)[None])


def test_a_label_map_beside_a_scan_is_a_channel() -> None:
    both = np.stack([VOXELS, LABELS])
    assert np.array_equal(as_volume(both, AFFINE).data, both)


@pytest.mark.parametrize(
    ("image", "affine", "error", "says"),
    [
        (VOXELS, None, ScanError, "give its affine, too"),
        (nib.Nifti1Image(VOXELS, AFFINE), AFFINE, ScanError, "with a numpy array only"),
        (VOXELS[0], AFFINE, GeometryError, r"\[I, J, K\] or \[C, I, J, K\]"),
        (VOXELS.astype(complex), AFFINE, ScanError, "voxels are numbers, got complex"),
        (VOXELS, np.zeros((4, 4)), GeometryError, "affine must end"),
        (np.full(SHAPE, np.nan), AFFINE, ScanError, "NaN"),
        (np.zeros(SHAPE), AFFINE, ScanError, "constant"),
        (LABELS, AFFINE, ScanError, "^the scan: looks like a label map, not like a scan"),
        (Volume(LABELS[None], Grid(SHAPE, AFFINE)), None, ScanError, "looks like a label map"),
        (Volume(VOXELS[None].astype(complex), Grid(SHAPE, AFFINE)), None, ScanError, "numbers, got complex"),
        ([[1]], None, ScanError, "a scan is a path, .* got list"),
        (TorchIOSubject(), None, ScanError, "no image with intensities"),
        (sitk.Image(4, 4, sitk.sitkFloat32), None, GeometryError, "has 2"),
    ],
)
def test_what_is_no_scan(image: Any, affine: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        as_volume(image, affine)


def test_a_subject_of_two_grids() -> None:
    other = TorchIOImage(VOXELS[None])
    other.affine = np.diag([1.0, 1, 1, 1])
    with pytest.raises(ScanError, match="grid"):
        as_volume(TorchIOSubject(a=TorchIOImage(VOXELS[None]), b=other))


@pytest.mark.parametrize("oblique", [False, True])
def test_label_maps_lie_where_the_scan_lies(tmp_path: Any, oblique: bool) -> None:
    grid = (
        oriented(SHAPE, (1.5, 2.0, 3.0), (10.0, -20.0, 5.0), angles_deg=(10, 20, 5))
        if oblique
        else Grid(SHAPE, AFFINE)
    )
    schema = LabelSchema(("liver", "spleen"), (6, 300))
    labels = LabelMap((VOXELS > 40).astype(np.uint8) + (VOXELS > 60), grid, schema)
    values = schema.decode(labels.data)
    found = to_nibabel(labels)
    assert np.array_equal(np.asarray(found.dataobj), values)
    assert np.allclose(found.affine, grid.affine, atol=1e-5)
    image = to_sitk(labels)
    assert np.array_equal(sitk.GetArrayFromImage(image).T, values)
    sitk.WriteImage(image, str(tmp_path / "labels.nrrd"))
    assert read_grid(tmp_path / "labels.nrrd").same_as(grid)


def test_a_scan_of_simpleitk_is_the_file_s(tmp_path: Any) -> None:
    image = sitk_image(tmp_path / "scan.mha")
    assert as_volume(image).grid.same_as(read_image(tmp_path / "scan.mha").grid)


def test_objects_that_only_look_a_little_alike_are_refused() -> None:
    with pytest.raises(ScanError, match="got SimpleNamespace"):
        as_volume(SimpleNamespace(affine=AFFINE))
