"""Interpretation of NIfTI headers, in world space, compared with SimpleITK (ITK, 3D Slicer)."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.io import nifti
from zoomseg.io.nifti_header import NiftiHeader, image
from zoomseg.io.scans import check_same_grid, header_notes, read_grid, read_voxels, write_array

SHAPE = (5, 6, 7)
VALUES = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)

VOX_OFFSET, SCL_INTER, PIXDIM, QUATERN, SROW_X, MAGIC = 108, 116, 76, 256, 280, 344


def affine(spacing: tuple[float, float, float] = (2.0, 3.0, 4.0), at: float = 10.0) -> FloatArray:
    out = np.diag([*spacing, 1.0])
    out[:3, 3] = at, -2 * at, 3 * at
    return out


def save(
    path: Path,
    sform: FloatArray | None = None,
    qform: FloatArray | None = None,
    codes: tuple[int, int] = (1, 1),
    units: str = "mm",
    patches: dict[int, bytes] | None = None,
    second: bool = False,
) -> Path:
    """A scan with these forms, their codes, and header bytes that no library would write."""
    made = (nib.Nifti2Image if second else nib.Nifti1Image)(VALUES, None)
    made.set_qform(affine() if qform is None else qform, codes[1])
    made.set_sform(affine() if sform is None else sform, codes[0])
    made.header.set_xyzt_units(units)
    nib.save(made, path)
    content = bytearray(path.read_bytes())
    for at, data in (patches or {}).items():
        content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def itk_affine(path: Path) -> FloatArray:
    """Position of a file according to ITK, as an affine to RAS+."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    out = np.eye(4)
    out[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
    out[:3, 3] = reader.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ out


def written_beside(path: Path) -> Path:
    """The label map that a prediction on a scan writes."""
    out = path.with_name("labels.nii.gz")
    write_array(out, np.ones(SHAPE, np.uint8), read_grid(path), like=path)
    return out


AMBIGUOUS = {
    "no codes": {"codes": (0, 0)},
    "no codes, other side": {"codes": (0, 0), "patches": {PIXDIM: floats(-1)}},
    "forms disagree, sform aligned": {"sform": affine(at=30), "codes": (2, 1)},
    "forms disagree, sform scanner": {"sform": affine(at=30)},
    "qform alone": {"codes": (0, 1), "qform": affine((-2.0, 3.0, 4.0))},
    "pixdim of one": {"codes": (1, 0), "patches": {PIXDIM + 4: floats(1, 1, 1)}},
    "pixdim of one, both forms": {"patches": {PIXDIM + 4: floats(1, 1, 1)}},
    "a code that is none": {"sform": affine(at=30), "patches": {254: b"\xff\x7f"}},
    "a side that is none": {"codes": (0, 1), "patches": {PIXDIM: floats(0)}},
    "quaternion too long": {"patches": {QUATERN: floats(0, 2e-4, 1.000003)}},
    "quaternion NaN": {"patches": {QUATERN: floats(np.nan)}},
    "micrometres": {"units": "micron"},
    "metres": {"sform": affine((2e-3,) * 3, 0.01), "qform": affine((2e-3,) * 3, 0.01), "units": "meter"},
    "unknown unit": {"units": "unknown"},
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_a_label_map_lies_on_its_scan_in_itk_and_here(tmp_path: Path, kind: str) -> None:
    scan = save(tmp_path / "scan.nii", **AMBIGUOUS[kind])
    labels = written_beside(scan)
    np.testing.assert_allclose(itk_affine(labels), itk_affine(scan), atol=1e-6)
    assert read_grid(labels) == read_grid(scan)
    fields, source = nifti.header(labels).fields, nifti.header(scan).fields
    assert (fields["sform_code"], fields["qform_code"]) == (source["sform_code"], source["qform_code"])
    assert fields["pixdim"][:4].tolist() == source["pixdim"][:4].tolist()
    assert np.array_equal(nib.load(labels).dataobj, np.ones(SHAPE))


def test_what_belongs_to_a_nifti_2_scan_is_nifti_1(tmp_path: Path) -> None:
    """ITK does not read NIfTI-2; the header's numbers are rounded to single precision."""
    given = affine((200 / 3, 300 / 7, 400 / 9), 1000 / 3)
    scan = save(tmp_path / "scan.nii", given, given, units="micron", second=True)
    labels = written_beside(scan)
    assert type(nib.load(labels)) is nib.Nifti1Image
    expected = np.diag([1e-3, 1e-3, 1e-3, 1]) @ given
    np.testing.assert_allclose(read_grid(scan).affine, expected, rtol=1e-12)
    for found in (read_grid(labels).affine, itk_affine(labels)):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_without_orientation_the_first_axis_runs_to_the_left(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", codes=(0, 0), patches={QUATERN: bytes(72)})
    grid = read_grid(path)
    assert np.array_equal(grid.affine, nib.load(path).affine)  # nibabel's and FSL's guess
    assert grid.world((0, 0, 0)).tolist() == [4, -7.5, -12]
    assert grid.world((4, 5, 6)).tolist() == [-4, 7.5, 12]
    (note,) = header_notes(path)
    assert note.startswith("no orientation is stored (qform_code and sform_code are 0)")
    assert "sides are assumed" in note


def test_the_sform_wins_and_the_disagreement_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", sform=affine(at=30), codes=(2, 1))
    assert read_grid(path).world((0, 0, 0)).tolist() == [30, -60, 90]
    (note,) = header_notes(path)
    assert note.startswith("sform and qform of its header disagree by up to 74.8 mm: the sform is used")
    assert header_notes(save(tmp_path / "b.nii", sform=affine() + 1e-3 * np.eye(4, k=3))) == ()
    tilted = affine()
    tilted[1, 2] = 1.5  # a shear, which a qform cannot express
    (note,) = header_notes(save(tmp_path / "c.nii", sform=tilted, qform=affine()))
    assert "disagree by up to 9 mm" in note


def test_pixdim_that_is_not_the_sforms_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", codes=(1, 0), patches={PIXDIM + 4: floats(1, 1, 1)})
    assert read_grid(path).spacing_mm == (2, 3, 4)
    (note,) = header_notes(path)
    assert note.startswith(
        "pixdim gives voxels of 1 x 1 x 1 mm and the sform of 2 x 3 x 4 mm: the sform is used"
    )


@pytest.mark.parametrize(("unit", "mm"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1.0), ("unknown", 1.0)])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (0, 0)])
def test_units_are_converted_as_itk_does(
    tmp_path: Path, unit: str, mm: float, codes: tuple[int, int]
) -> None:
    given = affine((0.02, 0.03, 0.04), 0.1)
    path = save(tmp_path / "a.nii", given, given, codes, unit)
    grid = read_grid(path)
    np.testing.assert_allclose(grid.spacing_mm, np.array([0.02, 0.03, 0.04]) * mm, rtol=1e-6)
    assert grid.voxel_volume_ml == pytest.approx(0.02 * 0.03 * 0.04 * mm**3 / 1000, rel=1e-6)
    if codes != (0, 0):
        np.testing.assert_allclose(grid.affine, itk_affine(path), rtol=1e-6, atol=1e-9)
    told = [note for note in header_notes(path) if "converted to millimetres" in note]
    assert len(told) == (unit in ("micron", "meter"))


def test_a_unit_that_is_none_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", patches={123: b"\5"})
    assert read_grid(path).spacing_mm == (2, 3, 4)
    assert header_notes(path) == ("unit code 5 is not defined; lengths are interpreted as millimetres",)


@pytest.mark.parametrize("quaternion", [(np.nan, 0, 0), (0, 1.3, 0), (np.inf, 0, 0)])
def test_a_damaged_qform_does_no_harm_beside_an_sform(tmp_path: Path, quaternion: tuple[float, ...]) -> None:
    path = save(tmp_path / "a.nii", patches={QUATERN: floats(*quaternion)})
    assert np.array_equal(read_grid(path).affine, affine())
    (note,) = header_notes(path)
    assert note.startswith("the qform is damaged")
    alone = save(tmp_path / "b.nii", codes=(0, 1), patches={QUATERN: floats(*quaternion)})
    with pytest.raises(ScanError, match=r"b\.nii: affine must be 4x4 and finite"):
        read_grid(alone)


def test_a_damaged_sform_does_no_harm_beside_a_qform(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", patches={SROW_X: bytes(48)})
    np.testing.assert_allclose(read_grid(path).affine, itk_affine(path), atol=1e-6)
    assert header_notes(path)[0].startswith("the sform is damaged (affine is singular")


def test_a_quaternion_that_rounding_made_too_long_is_shortened(tmp_path: Path) -> None:
    """Half a turn about an axis close to z: the length of the stored part is 1, or slightly more."""
    path = save(tmp_path / "a.nii", codes=(0, 1), patches={QUATERN: floats(0, 2e-4, 1.000003)})
    np.testing.assert_allclose(read_grid(path).affine, itk_affine(path), atol=1e-4)
    assert header_notes(path) == ()


def test_a_quaternion_that_is_too_long_is_shortened_in_what_is_written(tmp_path: Path) -> None:
    """nibabel does not open files in which its length exceeds 1 by more than a few parts in ten million."""
    path = save(tmp_path / "a.nii", codes=(0, 1), patches={QUATERN: floats(0, 2e-4, 1.000003)})
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path)
    scan = nib.Nifti1Header.from_fileobj(path.open("rb"), check=False)
    nib.save(image(np.ones((4, 5, 6), np.uint8), read_grid(path), scan), tmp_path / "labels.nii")
    np.testing.assert_allclose(nib.load(tmp_path / "labels.nii").affine, itk_affine(path), atol=1e-4)


@pytest.mark.parametrize("turn", [0.0, 0.7, 2.5, np.pi])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_qform_is_read_as_nibabel_and_itk_read_it(tmp_path: Path, turn: float, side: float) -> None:
    c, s = np.cos(turn), np.sin(turn)
    given = affine()
    given[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([2 * side, 3, 4])
    path = save(tmp_path / "a.nii", qform=given, codes=(0, 1))
    np.testing.assert_allclose(read_grid(path).affine, given, atol=1e-5)
    np.testing.assert_allclose(nib.load(path).affine, given, atol=1e-5)
    np.testing.assert_allclose(itk_affine(path), given, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 100, 348, 351.9, 352.5, -352, np.nan, np.inf, 1e9])
def test_voxels_that_begin_nowhere_are_refused(tmp_path: Path, offset: float) -> None:
    path = save(tmp_path / "a.nii", patches={VOX_OFFSET: floats(offset)})
    with pytest.raises(
        ScanError, match=r"a\.nii: (the header's vox_offset, .* from 352 on|truncated; .* from)"
    ):
        read_voxels(path)


def test_a_header_extension_is_passed_over(tmp_path: Path) -> None:
    made = nib.Nifti1Image(VALUES, affine())
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 500))
    nib.save(made, tmp_path / "a.nii.gz")
    assert np.array_equal(read_voxels(tmp_path / "a.nii.gz").data[0], VALUES)


@pytest.mark.parametrize("magic", [b"ni1\0", b"n+1x", b"abc\0", bytes(4)])
def test_other_kinds_of_files_are_refused(tmp_path: Path, magic: bytes) -> None:
    path = save(tmp_path / "a.nii", patches={MAGIC: magic})
    with pytest.raises(
        ScanError, match=r"a\.nii: (its voxels are in another file \(\.img\)|damaged, .*no NIfTI)"
    ):
        read_grid(path)


def test_a_slope_without_an_intercept_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", patches={SCL_INTER - 4: floats(2, np.nan)})
    with pytest.raises(ScanError, match=r"a\.nii: the header's scl_inter is nan"):
        read_voxels(path)
    plain = save(tmp_path / "b.nii", patches={SCL_INTER - 4: floats(0, 7)})
    assert np.array_equal(read_voxels(plain).data[0], VALUES)


def test_an_axis_too_long_for_nifti_1_is_written_as_nifti_2(tmp_path: Path) -> None:
    long = np.arange(40000, dtype=np.int16).reshape(40000, 1, 1)
    write_array(tmp_path / "a.nii.gz", long, Grid((40000, 1, 1), affine((0.5, 1, 1))))
    assert np.array_equal(read_voxels(tmp_path / "a.nii.gz").data[0], long)
    assert isinstance(nib.load(tmp_path / "a.nii.gz"), nib.Nifti2Image)


@pytest.mark.parametrize(("origin_mm", "kind"), [(1e3, nib.Nifti1Image), (3e5, nib.Nifti2Image)])
def test_a_grid_that_single_precision_would_move_is_written_as_nifti_2(
    tmp_path: Path, origin_mm: float, kind: type
) -> None:
    grid = Grid(SHAPE, affine((0.5, 0.5, 0.7), origin_mm + 1 / 48))
    write_array(tmp_path / "scan.nrrd", VALUES, grid)
    write_array(tmp_path / "a.nii.gz", VALUES, grid, tmp_path / "scan.nrrd")
    assert type(nib.load(tmp_path / "a.nii.gz")) is kind
    found = read_grid(tmp_path / "a.nii.gz")
    check_same_grid(read_grid(tmp_path / "scan.nrrd"), found, Path("scan.nrrd"), Path("a.nii.gz"))
    assert found.distance_mm(grid) < 1e-4


def test_without_a_scan_both_forms_say_the_grid() -> None:
    made = image(VALUES, Grid(SHAPE, affine()))
    assert np.array_equal(made.get_sform(), affine())
    assert np.array_equal(made.get_qform(), affine())
    assert isinstance(nifti_header_of(made), NiftiHeader)


def nifti_header_of(made: nib.Nifti1Image) -> NiftiHeader:
    from zoomseg.io.nifti_header import parse

    content = made.to_bytes()
    return parse(Path("a.nii"), content[:540], len(content), compressed=False)


@pytest.mark.parametrize("stored", [(1e15, 0.0, 0.0), (math.nan, 0.0, 0.0), (1.5, 0.0, 0.0)])
def test_a_damaged_qform_is_not_copied_where_nibabel_would_turn_to_it(
    tmp_path: Path, stored: tuple[float, float, float]
) -> None:
    scan = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([2.0, 3.0, 4.0, 1.0]))
    scan.set_sform(scan.affine, 1)
    scan.header["qform_code"], scan.header["sform_code"] = 1, 1242
    for axis, value in zip("bcd", stored, strict=True):
        scan.header[f"quatern_{axis}"] = value
    grid = Grid((4, 5, 6), scan.affine)
    made = image(np.ones((4, 5, 6), np.uint8), grid, scan.header)
    nib.save(made, tmp_path / "labels.nii.gz")
    again = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(again.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert (int(again.header["qform_code"]), int(again.header["sform_code"])) == (0, 2)
    found = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    assert found.TransformIndexToPhysicalPoint((3, 4, 5)) == pytest.approx((-6.0, -12.0, 20.0))
