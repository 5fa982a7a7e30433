"""Reading scans: values and geometry are preserved, and every kind of invalid file is one clear error."""

import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from helpers import dicom_series
from helpers.scan_files import SCHEMA, SHAPE, label_values, noise, oblique, save, with_header_bytes
from zoomseg.core.errors import LabelError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.io import scans
from zoomseg.io.scans import (
    ScanInput,
    find_scans,
    header_notes_by_case,
    notes_on,
    read_grid,
    read_image,
    read_label_values,
    read_labels,
    read_rounded_labels,
    read_scan,
    reading_bytes,
    write_array,
)


def test_nifti_values_and_oblique_affine(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.nii.gz", noise(), oblique()))
    assert image.data.dtype == np.float32
    assert np.array_equal(image.data[0], noise())
    # The sform is stored in float32, so exactly its rounded values must be read back.
    assert np.array_equal(image.grid.affine, oblique().astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, ">i2", np.float64])
def test_slope_and_intercept_are_applied(tmp_path: Path, dtype: str) -> None:
    raw = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
    file = nib.Nifti1Image(raw, np.eye(4), nib.Nifti1Header(endianness=">" if dtype == ">i2" else "<"))
    file.set_data_dtype(dtype)
    file.header.set_slope_inter(2.5, -1024)
    nib.save(file, tmp_path / "a.nii")
    # nibabel stores (value + 1024) / 2.5; set the raw voxels themselves instead.
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[352:] = raw.tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(bytes(content))
    assert read_image(tmp_path / "a.nii").data[0].tolist() == (raw * 2.5 - 1024.0).tolist()


def test_wide_integers_are_scaled_before_rounding(tmp_path: Path) -> None:
    raw = np.full(SHAPE, 2**24, dtype=np.int32)
    raw[0, 0, 0] += 1
    file = nib.Nifti1Image(raw, np.eye(4))
    nib.save(file, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = np.array([1, -(2.0**24)], dtype="<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(bytes(content))
    assert read_image(tmp_path / "a.nii").data[0, 0, 0, :2].tolist() == [1.0, 0.0]


def test_sform_wins_over_qform(tmp_path: Path) -> None:
    file = nib.Nifti1Image(noise(), np.eye(4))
    file.set_qform(np.diag([1.0, 1, 1, 1]), code=1)
    file.set_sform(np.diag([2.0, 3, 4, 1]), code=1)
    nib.save(file, tmp_path / "both.nii.gz")
    assert read_grid(tmp_path / "both.nii.gz").spacing_mm == (2, 3, 4)
    file.set_sform(None, code=0)
    nib.save(file, tmp_path / "qform.nii.gz")
    assert read_grid(tmp_path / "qform.nii.gz").spacing_mm == (1, 1, 1)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_itk_formats_give_the_same_volume_as_nifti(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(noise().T)
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, -30.0))
    image.SetDirection((0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    ours, nifti = read_image(tmp_path / f"a{suffix}"), read_image(tmp_path / "a.nii.gz")
    assert np.array_equal(ours.data, nifti.data)
    assert np.allclose(ours.grid.affine, nifti.grid.affine, atol=1e-5)
    # LPS (10, 20, -30) is RAS (-10, -20, -30).
    assert ours.grid.world((0, 0, 0)).tolist() == [-10, -20, -30]
    assert read_grid(tmp_path / f"a{suffix}") == ours.grid


def test_trailing_singleton_axis_is_dropped(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.nii.gz", noise((*SHAPE, 1, 1))))
    assert np.array_equal(image.data[0], noise((*SHAPE, 1, 1))[..., 0, 0])


def test_channels_from_files_and_from_a_fourth_axis(tmp_path: Path) -> None:
    four = noise((*SHAPE, 2))
    files = [save(tmp_path / f"a_000{c}.nii.gz", four[..., c]) for c in range(2)]
    from_files = read_image(files)
    from_axis = read_image(save(tmp_path / "b.nii.gz", four), channels_last=True)
    assert np.array_equal(from_files.data, from_axis.data)
    assert np.array_equal(from_files.data[1], four[..., 1])


def test_truncated_gzip(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.nii.gz", noise((20, 20, 20)))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ScanError, match=r"cut\.nii\.gz: truncated; \d+ of 32000 bytes of voxels are there"):
        read_image(path)


def test_truncated_plain_file_is_refused_by_its_header(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.nii", noise((20, 20, 20)))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ScanError, match="truncated; header promises 32000 bytes"):
        read_grid(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_truncated_itk_files(
    tmp_path: Path, suffix: str, compress: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"cut{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(noise((20, 20, 20))), str(path), useCompression=compress)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ScanError, match=rf"cut\{suffix}: .*(truncated|expected)"):
        read_image(path)
    assert capfd.readouterr().err == ""  # the single line is ours


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd"])
@pytest.mark.parametrize("content", [b"", b"not an image at all\n" * 100])
def test_not_an_image(tmp_path: Path, name: str, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError, match=name) as error:
        read_image(tmp_path / name)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_missing_file_and_wrong_suffix(tmp_path: Path) -> None:
    for name in ("none.nii.gz", "none.mha"):
        with pytest.raises(ScanError, match="no such file"):
            read_image(tmp_path / name)
    with pytest.raises(ScanError, match="supported are"):
        read_image(tmp_path / "photo.jpg")


def test_four_and_two_dimensional_files(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="4-D image"):
        read_image(save(tmp_path / "a.nii.gz", noise((*SHAPE, 3))))
    with pytest.raises(ScanError, match="2-D image"):
        read_image(save(tmp_path / "a.nii.gz", noise((5, 6))))
    sitk.WriteImage(sitk.GetImageFromArray(noise((5, 6))), str(tmp_path / "a.mha"))
    with pytest.raises(ScanError, match="2-D image"):
        read_image(tmp_path / "a.mha")
    sitk.WriteImage(sitk.GetImageFromArray(noise((5, 6, 7, 3)), isVector=True), str(tmp_path / "a.nrrd"))
    with pytest.raises(ScanError, match="3 values per voxel"):
        read_image(tmp_path / "a.nrrd")


@pytest.mark.parametrize("spacing", [0.0, np.nan, np.inf])
def test_impossible_spacing(tmp_path: Path, spacing: float) -> None:
    path = with_header_bytes(save(tmp_path / "a.nii.gz", noise()), 80, np.float32(spacing).tobytes())
    with pytest.raises(ScanError, match=r"a\.nii\.gz: voxel spacing must be positive"):
        read_grid(path)


def test_impossible_affine(tmp_path: Path) -> None:
    path = with_header_bytes(save(tmp_path / "a.nii.gz", noise()), 280, bytes(16))
    with pytest.raises(ScanError, match=r"a\.nii\.gz: affine is singular"):
        read_image(path)
    path = with_header_bytes(save(tmp_path / "a.nii.gz", noise()), 280, np.float32(np.nan).tobytes())
    with pytest.raises(ScanError, match=r"a\.nii\.gz: affine must be 4x4 and finite"):
        read_image(path)


def test_impossible_meta_image_spacing(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noise().T), str(tmp_path / "a.mha"))
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content.replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1"))
    with pytest.raises(ScanError, match=r"a\.mha"):
        read_image(tmp_path / "a.mha")


def test_headers_that_promise_too_much_allocate_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", noise())
    with_header_bytes(path, 42, np.array([30000] * 3, dtype="<i2").tobytes())
    with pytest.raises(ScanError, match="promises 27000000000000 voxels"):
        read_image(path)
    with_header_bytes(path, 42, np.array([1500] * 3, dtype="<i2").tobytes())
    with pytest.raises(ScanError, match="truncated; header promises 13500000000 bytes"):
        read_image(path)
    with_header_bytes(path, 42, np.array([-5] * 3, dtype="<i2").tobytes())
    with pytest.raises(ScanError, match="at least 1"):
        read_image(path)
    sitk.WriteImage(sitk.GetImageFromArray(noise().T), str(tmp_path / "a.mha"))
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content.replace(b"DimSize = 5 6 7", b"DimSize = 1500 1500 1500"))
    with pytest.raises(ScanError, match="truncated; header promises 13500000000 bytes"):
        read_image(tmp_path / "a.mha")


@pytest.mark.parametrize("place", ["../secret.raw", "/etc/passwd", "LIST", "slice%03d.raw 1 7 1"])
def test_meta_image_may_not_point_elsewhere(tmp_path: Path, place: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noise().T), str(tmp_path / "a.mhd"))
    header = (tmp_path / "a.mhd").read_text()
    (tmp_path / "a.mhd").write_text(header.replace("a.raw", place))
    with pytest.raises(ScanError, match=r"a\.mhd"):
        read_image(tmp_path / "a.mhd")


def test_nrrd_may_not_point_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: ../../etc/passwd\n"
    )
    with pytest.raises(ScanError, match="in the same folder, not in"):
        read_image(tmp_path / "a.nrrd")


def test_colour_is_refused(tmp_path: Path) -> None:
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ScanError, match="grey values are needed"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int64, np.float32, np.float64])
def test_labels_of_any_number_type(tmp_path: Path, dtype: type) -> None:
    path = save(tmp_path / "a.nii.gz", label_values().astype(dtype))
    labels = read_labels(path, SCHEMA)
    assert labels.data[1, 2, 3] == 1
    assert labels.data[4, 5, 6] == 2
    assert int((labels.data != 0).sum()) == 2
    values, grid = read_label_values(path)
    assert values.dtype.kind in "iu"
    assert np.array_equal(values, label_values())
    assert grid.shape == SHAPE


@pytest.mark.parametrize("factor", [0.9999999, 1.000001])
def test_labels_that_float_storage_put_beside_whole_numbers(tmp_path: Path, factor: float) -> None:
    path = save(tmp_path / "a.nii.gz", label_values() * np.float64(factor))
    values, _ = read_label_values(path)
    assert values.dtype == np.int32
    assert np.array_equal(values, label_values())
    assert read_rounded_labels(path)[2] == pytest.approx(300 * abs(factor - 1), rel=1e-6)
    assert int((read_labels(path, SCHEMA).data == 2).sum()) == 1


def test_labels_that_a_slope_put_beside_whole_numbers(tmp_path: Path) -> None:
    """255 times a 32-bit 1/255 is not exactly 1."""
    stored = ((label_values() > 0) * 255).astype(np.uint8)
    path = save(tmp_path / "a.nii.gz", stored)
    with_header_bytes(path, 112, np.array([1 / 255, 0], np.float32).tobytes())
    values, _, off = read_rounded_labels(path)
    assert np.array_equal(values, label_values() > 0)
    assert 0 < off < 1e-6


@pytest.mark.parametrize(
    ("dtype", "slope"), [(np.float64, 1), (np.float32, 1), (np.float32, 0.5), (np.int16, 0.5), (">i2", 0.5)]
)
def test_labels_take_no_more_memory_than_is_checked_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, slope: float
) -> None:
    values = np.arange(64**3).reshape(64, 64, 64) % 50 * 2
    file = nib.Nifti1Image(values.astype(dtype), np.eye(4))
    nib.save(file, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = np.array([slope, 0], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    monkeypatch.setattr(scans, "_PIECE_VOXELS", 1000)
    _, checked = reading_bytes(ScanInput("a", (tmp_path / "a.nii",)))
    tracemalloc.start()
    try:
        found, _ = read_label_values(tmp_path / "a.nii")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(found, values * slope)
    assert found.flags.f_contiguous
    assert peak < checked + 200_000


def test_one_value_beside_whole_numbers_is_found_in_any_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "_PIECE_VOXELS", 50)
    values = label_values().astype(np.float64)
    values[4, 5, 6] += 1e-4
    assert read_rounded_labels(save(tmp_path / "a.nii.gz", values))[2] == pytest.approx(1e-4, rel=1e-6)
    for wrong, says in (
        (0.5, "not whole numbers"),
        (np.nan, "NaN or infinite"),
        (2.0**31, "not whole numbers"),
    ):
        values[4, 5, 6] = wrong
        with pytest.raises(ScanError, match=says):
            read_label_values(save(tmp_path / "a.nii.gz", values))


@pytest.mark.parametrize(("off", "refused"), [(0.9e-3, False), (1.1e-3, True)])
def test_how_far_from_a_whole_number_a_label_may_be(tmp_path: Path, off: float, refused: bool) -> None:
    path = save(tmp_path / "a.nii.gz", label_values() + off * (label_values() == 7))
    if refused:
        with pytest.raises(ScanError, match="not whole numbers"):
            read_label_values(path)
    else:
        assert np.array_equal(read_label_values(path)[0], label_values())


def test_bad_label_values(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", label_values().astype(np.float32) / 2)
    with pytest.raises(ScanError, match=r"a\.nii\.gz: label values are not whole numbers"):
        read_labels(path, SCHEMA)
    values = label_values()
    values[0, 0, 0] = 9
    with pytest.raises(LabelError, match=r"a\.nii\.gz: label values \[9\] are not in the schema"):
        read_labels(save(path, values), SCHEMA)
    with pytest.raises(ScanError, match="NaN"):
        read_labels(save(path, np.full(SHAPE, np.nan, dtype=np.float32)), SCHEMA)


def test_dicom_series_are_cases_and_refused_ones_fail_when_they_are_read(tmp_path: Path) -> None:
    slices = dicom_series.stack(dicom_series.ramp(9), BitsStored=12, HighBit=11)
    dicom_series.write(tmp_path / "whole", slices[:3] + slices[4:])
    gone = dicom_series.stack(
        dicom_series.ramp(), SeriesInstanceUID="1.9", SeriesNumber=8, PixelSpacing=[0, 0]
    )
    dicom_series.write(tmp_path / "broken", gone)
    notes: list[str] = []
    good, bad = find_scans(tmp_path, notes.append)
    assert (good.id, bad.id) == (f"{tmp_path.name}_4", f"{tmp_path.name}_8")
    assert notes == []
    assert notes_on(good) == ("1 slice is missing and interpolated from the neighbours: 4 of 9",)
    assert good.paths == bad.paths == (tmp_path,)
    case = read_scan(good)
    assert (case.id, case.modality, case.notes) == (good.id, "CT", notes_on(good))
    image = case.image
    assert image.data.dtype == np.int16
    assert reading_bytes(good) == (image.grid, 2 * (8 + 9) * 42)
    for read in (read_scan, reading_bytes):
        with pytest.raises(ScanError, match=r"PixelSpacing is .* mm; it must be positive"):
            read(bad)


def test_a_path_of_one_dicom_series_is_an_image(tmp_path: Path) -> None:
    folder = dicom_series.write(tmp_path / "ct", dicom_series.stack(dicom_series.ramp()))
    image = read_image(folder)
    assert image.grid == read_grid(folder)
    assert int(image.data[0, 2, 3, 4]) == 4 * 42 + 3 * 7 + 2 - 1024
    file = next(folder.iterdir())
    with pytest.raises(ScanError, match="a single image, not a volume"):
        read_image(file)
    dicom_series.write(tmp_path / "mr", dicom_series.stack(dicom_series.ramp(), SeriesInstanceUID="1.9"))
    with pytest.raises(ScanError, match="2 DICOM volumes"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_name_that_is_no_utf8_is_one_of_a_scan(tmp_path: Path, suffix: str) -> None:
    sound = tmp_path / f"a{suffix}"
    write_array(sound, noise(), Grid.from_spacing(SHAPE, (1.0, 1.0, 1.0)))
    other = sound.rename(tmp_path / f"a\udcff{suffix}")
    assert np.array_equal(read_image(other).data[0], noise())


def test_notes_of_many_cases_that_differ_in_numbers_are_one(tmp_path: Path) -> None:
    files = {}
    for n, edge in enumerate((3, 4, 5, 6, 7, 8)):
        path = with_header_bytes(save(tmp_path / f"c{n}.nii.gz", noise()), 80, np.float32(edge).tobytes())
        files[f"c{n}"] = [path, path]
    files["unreadable"] = [tmp_path / "none.nii.gz"]
    (note,) = [one for one in header_notes_by_case(files) if "pixdim gives voxels" in one]
    assert "gives voxels of 3 x" in note
    assert note.endswith("(case c0, c1, c2, c3, c4 and 1 more)")
