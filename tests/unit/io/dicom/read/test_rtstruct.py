"""Contours are parsed by plain pydicom, placed by the series' headers and filled by matplotlib's paths."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from helpers.dicom_annotations import ORGANS, ORIENTATIONS, drawn_on, grid_of, series_on, spoiled
from zoomseg.core.errors import LabelError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.io.dicom.read import rtstruct
from zoomseg.io.dicom.read import structures as structures_module
from zoomseg.io.dicom.read.rtstruct import read_rtstruct
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write.rtstruct import write_rtstruct

FloatArray = npt.NDArray[np.float64]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_was_written_comes_back(orientation: str, tmp_path: Path) -> None:
    series = series_on(grid_of(orientation, shape=(13, 11, 9)))
    labels, path = drawn_on(series.grid), tmp_path / "case.rtstruct.dcm"
    write_rtstruct(path, labels, series, "abdomen-ct")
    found, drawn = read_rtstruct(path, series).label_map(ORGANS)
    assert (found.data == labels.data).all()
    assert drawn == {"liver", "left kidney", "right_kidney", "my lesion"}


def contour(points: npt.ArrayLike, kind: str = "CLOSED_PLANAR") -> Dataset:
    found = Dataset()
    found.ContourGeometricType = kind
    found.ContourData = [f"{c:.4f}" for c in np.asarray(points, dtype=float).ravel()]
    found.NumberOfContourPoints = len(found.ContourData) // 3
    return found


def rectangle(
    series: DicomSeries, low: tuple[float, float], high: tuple[float, float], k: float
) -> FloatArray:
    """Corners in LPS+ millimetres of a rectangle in indices."""
    corners = [(low[0], low[1], k), (high[0], low[1], k), (high[0], high[1], k), (low[0], high[1], k)]
    return series.grid.world(corners) * (-1, -1, 1)


def of_contours(path: Path, **structures: list[Dataset]) -> Path:
    """A structure set in the format of a treatment planning system."""
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber = drawn.ReferencedROINumber = number
        roi.ROIName, roi.ReferencedFrameOfReferenceUID = name, "1.2.3.4.6"
        drawn.ContourSequence = contours
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_voxels_whose_centres_lie_within_are_the_structure_and_holes_are_holes(
    tmp_path: Path, series: DicomSeries
) -> None:
    path = of_contours(
        tmp_path / "r.dcm",
        Liver=[
            contour(rectangle(series, (1.6, 0.7), (9.3, 7.4), 2)),
            contour(rectangle(series, (3.5, 2.5), (5.5, 4.5), 2)),
            contour(rectangle(series, (-50, -50), (2.4, 50), 3)),  # reaches beyond the slice
            contour(rectangle(series, (1, 1), (5, 5), 40)),  # lies beyond the series
        ],
        KidneyLeft=[contour(rectangle(series, (6.5, 3.5), (7.5, 4.5), 2))],
    )
    structures = read_rtstruct(path, series)
    found, _ = structures.label_map(ORGANS)
    expected = np.zeros(series.grid.shape, dtype=np.uint8)
    expected[2:10, 1:8, 2] = 1
    expected[4:6, 3:5, 2] = 0
    expected[:3, :, 3] = 1
    expected[7, 4, 2] = 2
    assert (found.data == expected).all()
    assert not structures.notes


def test_what_is_no_closed_contour_is_left_out_with_a_note(tmp_path: Path, series: DicomSeries) -> None:
    corners = rectangle(series, (1.6, 0.7), (9.3, 7.4), 2)
    path = of_contours(
        tmp_path / "r.dcm",
        Liver=[contour(corners)],
        Isocentre=[contour(corners[:1], "POINT")],
        Wire=[contour(corners, "OPEN_PLANAR")],
        Empty=[],
    )
    structures = read_rtstruct(path, series)
    assert structures.names == ("Liver",)
    assert structures.notes == tuple(
        f"structure '{name}' has no closed contour within the series"
        for name in ("Isocentre", "Wire", "Empty")
    )
    with pytest.raises(LabelError, match="none of the labels heart was drawn; there are: Liver"):
        structures.label_map(LabelSchema.consecutive(["heart"]))


def test_open_lines_among_closed_contours_are_told_of(tmp_path: Path, series: DicomSeries) -> None:
    closed, line, pair = (rectangle(series, (1.6, 0.7), (9.3, 7.4), k) for k in (2, 3, 4))
    without_kind = contour(line)
    del without_kind.ContourGeometricType
    path = of_contours(
        tmp_path / "r.dcm",
        Liver=[contour(closed), contour(line, "OPEN_PLANAR"), contour(pair[:2]), without_kind],
    )
    structures = read_rtstruct(path, series)
    assert structures.notes == ("structure 'Liver' has contours that are not closed; left out: 3",)
    assert set(np.unravel_index(structures.voxels["Liver"], series.grid.shape)[2]) == {2}


def test_contours_between_slices_are_refused_and_slightly_off_ones_are_not(
    tmp_path: Path, series: DicomSeries
) -> None:
    near = of_contours(tmp_path / "near.dcm", Liver=[contour(rectangle(series, (1, 1), (5.5, 5.5), 2.15))])
    (voxels,) = read_rtstruct(near, series).voxels.values()
    assert set(np.unravel_index(voxels, series.grid.shape)[2]) == {2}
    far = of_contours(tmp_path / "far.dcm", Liver=[contour(rectangle(series, (1, 1), (5, 5), 2.4))])
    with pytest.raises(ScanError, match="a contour of 'Liver' lies across or between the slices"):
        read_rtstruct(far, series)
    across = rectangle(series, (1, 1), (5, 5), 2)
    across[0, 2] += 2.5
    tilted = of_contours(tmp_path / "tilted.dcm", Liver=[contour(across)])
    with pytest.raises(ScanError, match="a contour of 'Liver' lies across or between the slices"):
        read_rtstruct(tilted, series)


# --- several contours in a slice ------------------------------------------------------------------


def mask_of(path: Path, series: DicomSeries, name: str = "Liver") -> npt.NDArray[np.bool_]:
    mask = np.zeros(series.grid.shape, dtype=bool)
    mask.reshape(-1)[read_rtstruct(path, series).voxels[name]] = True
    return mask


def test_a_contour_that_is_there_twice_counts_once(tmp_path: Path, series: DicomSeries) -> None:
    corners = rectangle(series, (1.6, 0.7), (9.3, 7.4), 2)
    other_way = np.roll(corners[::-1], 1, axis=0)
    rounded = corners + 0.004
    path = of_contours(tmp_path / "r.dcm", Liver=[contour(c) for c in (corners, other_way, rounded)])
    expected = np.zeros(series.grid.shape, dtype=bool)
    expected[2:10, 1:8, 2] = True
    assert (mask_of(path, series) == expected).all()
    assert read_rtstruct(path, series).notes == ("structure 'Liver' repeats contours; copies left out: 2",)


def test_contours_that_overlap_add_up(tmp_path: Path, series: DicomSeries) -> None:
    path = of_contours(
        tmp_path / "r.dcm",
        Liver=[
            contour(rectangle(series, (0.5, 0.5), (6.5, 5.5), 2)),
            contour(rectangle(series, (4.5, 3.5), (9.5, 8.5), 2)),
            contour(rectangle(series, (12.5, 0.5), (14.5, 2.5), 2)),
        ],
    )
    expected = np.zeros(series.grid.shape, dtype=bool)
    expected[1:7, 1:6, 2] = expected[5:10, 4:9, 2] = expected[13:15, 1:3, 2] = True
    assert (mask_of(path, series) == expected).all()
    notes = read_rtstruct(path, series).notes
    assert notes == ("contours of structure 'Liver' overlap; merged in slices: 1",)


def test_contours_marked_as_exclusive_are_that(tmp_path: Path, series: DicomSeries) -> None:
    corners = [
        rectangle(series, (0.5, 0.5), (6.5, 5.5), 2),
        rectangle(series, (4.5, 3.5), (9.5, 8.5), 2),
    ]
    path = of_contours(tmp_path / "r.dcm", Liver=[contour(c, "CLOSEDPLANAR_XOR") for c in corners])
    one, other = (np.zeros(series.grid.shape, dtype=bool) for _ in range(2))
    one[1:7, 1:6, 2] = other[5:10, 4:9, 2] = True
    assert (mask_of(path, series) == (one ^ other)).all()
    assert not read_rtstruct(path, series).notes


def test_a_keyhole_of_another_program_is_a_hole(tmp_path: Path, series: DicomSeries) -> None:
    """With its channel along a column, as in the standard's figure (PS3.3 C.8.8.6-1)."""
    ring = [(4.2, 0.5), (4.2, 2.5), (2.5, 2.5), (2.5, 6.5), (6.5, 6.5), (6.5, 2.5), (4.2, 2.5), (4.2, 0.5)]
    outer = [(9.5, 0.5), (9.5, 9.5), (0.5, 9.5), (0.5, 0.5)]
    island = [(3.5, 3.5), (5.5, 3.5), (5.5, 5.5), (3.5, 5.5)]

    def placed(corners: list[tuple[float, float]]) -> Dataset:
        return contour(series.grid.world([(i, j, 3) for i, j in corners]) * (-1, -1, 1))

    expected = np.zeros(series.grid.shape, dtype=bool)
    expected[1:10, 1:10, 3] = True
    expected[3:7, 3:7, 3] = False
    path = of_contours(tmp_path / "r.dcm", Liver=[placed(ring + outer)])
    assert (mask_of(path, series) == expected).all()
    expected[4:6, 4:6, 3] = True
    path = of_contours(tmp_path / "r.dcm", Liver=[placed(ring + outer), placed(island)])
    assert (mask_of(path, series) == expected).all()
    assert not read_rtstruct(path, series).notes


def test_contours_on_every_second_slice_are_interpolated_between(tmp_path: Path, series: DicomSeries) -> None:
    """A square that grows by one voxel per slice on every side."""
    squares = {k: rectangle(series, (7.5 - k, 5.5 - k), (7.5 + k, 5.5 + k), k) for k in (1, 3, 5)}
    path = of_contours(tmp_path / "r.dcm", Liver=[contour(c) for c in squares.values()])
    expected = np.zeros(series.grid.shape, dtype=bool)
    for k in range(1, 6):
        expected[8 - k : 8 + k, 6 - k : 6 + k, k] = True
    found = mask_of(path, series)
    for k in (0, 1, 3, 5, 6, 7, 8):
        assert (found[:, :, k] == expected[:, :, k]).all()
    for k in (2, 4):  # nearest corners of squares are not corners of squares
        off = expected[:, :, k] ^ found[:, :, k]
        assert off.sum() <= 4
        assert expected[:, :, k].sum() == (2 * k) ** 2
    assert read_rtstruct(path, series).notes == (
        "structure 'Liver' is drawn on one slice in 2; slices interpolated between: 2",
    )


# --- refused --------------------------------------------------------------------------------------


def _first(dataset: Dataset) -> Dataset:
    found: Dataset = dataset.ROIContourSequence[0].ContourSequence[0]
    return found


def _with_data(*values: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        with pydicom.config.disable_value_validation():
            _first(dataset).ContourData = list(values)

    return change


def _unnamed(dataset: Dataset) -> None:
    dataset.ROIContourSequence[0].ReferencedROINumber = 99


def _twice(dataset: Dataset) -> None:
    dataset.ROIContourSequence[1].ReferencedROINumber = 1


def _same_number(dataset: Dataset) -> None:
    dataset.StructureSetROISequence[1].ROINumber = 1


def _unnumbered(dataset: Dataset) -> None:
    del dataset.StructureSetROISequence[0].ROINumber


def _unreferring(dataset: Dataset) -> None:
    del dataset.ROIContourSequence[0].ReferencedROINumber


def _between_slices(dataset: Dataset) -> None:
    moved = [float(c) + (0.9 if n % 3 == 2 else 0) for n, c in enumerate(_first(dataset).ContourData)]
    _first(dataset).ContourData = [f"{c:.3f}" for c in moved]


def _another_frame(dataset: Dataset) -> None:
    dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.99"


def _no_structures(dataset: Dataset) -> None:
    dataset.StructureSetROISequence = []


def _an_image(dataset: Dataset) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_structures, "names 0 structures"),
        (_an_image, "is CT Image Storage; a RTSTRUCT is needed"),
        (_unreferring, "contours without a number"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    change: Callable[[Dataset], None], message: str, written_rtstruct: Path, series: DicomSeries
) -> None:
    path = spoiled(written_rtstruct, change)
    with pytest.raises(ScanError, match=message) as error:
        read_rtstruct(path, series)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


ONE_BAD: dict[str, tuple[Callable[[Dataset], None], set[str], str]] = {
    "no points": (_with_data("1", "2", "3", "4"), {"liver"}, "has 4 coordinates that make no points"),
    "not finite": (_with_data("1e999", *"23456789"), {"liver"}, "has 9 coordinates that make no points"),
    "no name": (_unnamed, {"liver"}, "unnamed structures left out: 1"),
    "two places": (_twice, {"liver", "left kidney"}, "'liver' has the number of another structure"),
    "one number": (_same_number, {"liver", "left kidney"}, "'liver' has the number of another structure"),
    "no number": (_unnumbered, {"liver"}, "structures without a number left out: 1"),
    "other frame": (_another_frame, {"liver"}, "drawn in frame of reference 1.2.99"),
    "between": (_between_slices, {"liver"}, "a contour of 'liver' lies across or between the slices"),
}


@pytest.mark.parametrize(("change", "lost", "message"), ONE_BAD.values(), ids=ONE_BAD.keys())
def test_a_bad_structure_refuses_itself_alone(
    change: Callable[[Dataset], None],
    lost: set[str],
    message: str,
    written_rtstruct: Path,
    series: DicomSeries,
) -> None:
    whole, path = read_rtstruct(written_rtstruct, series), spoiled(written_rtstruct, change)
    found = read_rtstruct(path, series)
    assert set(found.names) == set(whole.names) - lost
    assert all(np.array_equal(found.voxels[name], whole.voxels[name]) for name in found.names)
    assert any(message in note for note in found.notes)
    assert not any("\n" in note or str(path) in note for note in found.notes)


def test_nothing_but_bad_structures_is_refused(tmp_path: Path, series: DicomSeries) -> None:
    path = of_contours(
        tmp_path / "r.dcm",
        Couch=[contour(rectangle(series, (1, 1), (5, 5), 2.4))],
        Rail=[contour(rectangle(series, (1, 1), (5, 5), 3.4))],
    )
    with pytest.raises(ScanError) as error:
        read_rtstruct(path, series)
    assert str(error.value) == (
        f"{path}: a contour of 'Couch' lies across or between the slices of the series; give the series that "
        "it was drawn on"
    )


def test_text_for_numbers_refuses_a_structure_and_a_cut_file_all(
    written_rtstruct: Path, series: DicomSeries
) -> None:
    data = written_rtstruct.read_bytes()
    at = data.index(b"-2", data.index(b"CLOSED_PLANAR"))
    written_rtstruct.write_bytes(data[:at] + b"xx" + data[at + 2 :])
    found = read_rtstruct(written_rtstruct, series)
    assert found.names == ("left kidney", "right_kidney", "my lesion")
    assert found.notes[0].startswith("structure 'liver' left out: damaged, truncated or not DICOM (")
    written_rtstruct.write_bytes(data[: at + 40])
    with pytest.raises(ScanError, match="damaged, truncated or not DICOM"):
        read_rtstruct(written_rtstruct, series)


def test_more_contours_in_a_slice_than_are_compared_are_refused(
    tmp_path: Path, series: DicomSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtstruct, "MAX_IN_SLICE", 2)
    corners = rectangle(series, (1, 1), (5, 5), 2)
    path = of_contours(tmp_path / "r.dcm", Many=[contour(corners)] * 3, Liver=[contour(corners)] * 2)
    found = read_rtstruct(path, series)
    assert found.names == ("Liver",)
    assert "structure 'Many' left out: 'Many' has more than 2 contours in a slice" in found.notes


def test_long_contours_stay_decimal_strings(tmp_path: Path) -> None:
    """With explicit VRs, a contour of more than 64 KB would be written with an unknown VR."""
    grid = Grid.from_spacing((2400, 12, 3), (0.3, 0.3, 2.0))
    comb = np.zeros(grid.shape, dtype=np.uint8)
    comb[10:2390:2, 3:9, 1] = 1
    comb[10:2390, 3, 1] = 1
    series = series_on(grid)
    write_rtstruct(tmp_path / "rt.dcm", LabelMap(comb, grid, LabelSchema.consecutive(["liver"])), series, "m")
    contour = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence[0]
    assert contour["ContourData"].VR == "DS"
    assert sum(len(str(value)) + 1 for value in contour.ContourData) > 2**16
    found = read_rtstruct(tmp_path / "rt.dcm", series).voxels["liver"]
    assert len(found) == int(comb.sum())


def test_a_length_of_gigabytes_is_not_allocated(tmp_path: Path) -> None:
    """For a 70 kB file with one damaged length."""
    grid = Grid.from_spacing((20, 20, 3), (1.0, 1.0, 2.0))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[5:15, 5:15, 1] = 1
    series = series_on(grid)
    path = tmp_path / "rt.dcm"
    write_rtstruct(path, LabelMap(labels, grid, LabelSchema.consecutive(["liver"])), series, "m")
    tag = b"\x06\x30\x50\x00"  # ContourData, then the four bytes of its length
    whole = path.read_bytes()
    at = whole.index(tag) + 4
    path.write_bytes(whole[:at] + b"\xf0\xff\xff\xef" + whole[at + 4 :])
    tracemalloc.start()
    try:
        with suppress(ScanError):
            read_rtstruct(path, series)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_more_voxels_than_memory_holds_are_refused(
    tmp_path: Path, series: DicomSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    corners = rectangle(series, (1.6, 0.7), (9.3, 7.4), 2)
    path = of_contours(tmp_path / "r.dcm", **{f"Organ {n}": [contour(corners)] for n in range(3)})
    voxels = len(read_rtstruct(path, series).voxels["Organ 0"])
    monkeypatch.setattr(structures_module, "MAX_VOXELS", 3 * voxels)
    assert len(read_rtstruct(path, series).names) == 3
    monkeypatch.setattr(structures_module, "MAX_VOXELS", 3 * voxels - 1)
    with pytest.raises(ScanError, match="structures have more than"):
        read_rtstruct(path, series)
