"""Splitting of one series by sizes, orientations and phases."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, MRImageStorage

from helpers.dicom_series import CORONAL, Array, image, item, multi_frame, ramp, stack, write
from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.archive import Source, opening
from zoomseg.io.dicom.read.object_header import PHASES, Image, StoredSlice, read_image_object
from zoomseg.io.dicom.read.series_discovery import Found, Stack, find_series
from zoomseg.io.dicom.read.series_splitting import by_geometry, by_phase
from zoomseg.io.dicom.read.voxels import read_volume


def at(z: float, value: int, **tags: Any) -> Dataset:
    """A slice of one value at ``z`` mm."""
    return image(np.full((6, 7), value, np.uint16), (-10, -20, z), **tags)


def found(folder: Path, datasets: list[Dataset]) -> Found:
    return find_series(write(folder, datasets))


def by_place(volume: Stack) -> dict[float, float]:
    """z in mm of each plane, and the stored value there."""
    read = read_volume(volume)
    values: Array = read.data[0, 0, 0]
    places = [float(read.grid.world((0, 0, k))[2]) for k in range(len(values))]
    return {round(z, 6): float(v) + 1024 for z, v in zip(places, values, strict=True)}


def test_sizes_and_orientations_are_volumes_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "a", stack(ramp()))
    write(tmp_path / "b", stack(ramp(4) + 500, (0, 2, 0), ImageOrientationPatient=list(CORONAL)))
    write(tmp_path / "c", stack(ramp(3, 8, 8) + 900))
    result = find_series(tmp_path)
    assert sorted(s.series.grid.shape for s in result.stacks) == [(7, 6, 4), (7, 6, 5), (8, 8, 3)]
    assert "the series holds 3 sizes or orientations" in result.stacks[0].series.notes[0]


def test_phases_are_told_apart(tmp_path: Path) -> None:
    late = stack(ramp() + 1, AcquisitionNumber=2)
    write(tmp_path / "a", stack(ramp(), AcquisitionNumber=1))
    write(tmp_path / "b", late)
    result = find_series(tmp_path)
    assert [s.series.notes for s in result.stacks] == [
        (f"one of 2 volumes of its series: AcquisitionNumber {n}",) for n in (1, 2)
    ]
    assert result.stacks[1].series.slice_uids == tuple(d.SOPInstanceUID for d in late)


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


# --- acquisitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "differ",
    [
        {"AcquisitionNumber": (1, 2)},
        {"AcquisitionTime": ("101000", "101500")},
        {"AcquisitionDateTime": ("20260101101000", "20260101101500")},
        {"IrradiationEventUID": ("1.2.3.8", "1.2.3.9")},
        {"ConvolutionKernel": ("soft", "sharp")},
        {"ImageType": (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"])},
        {"AcquisitionNumber": (None, 2)},
    ],
)
@pytest.mark.parametrize("shift", [1.0, 0.6])
def test_acquisitions_between_each_other_are_two_volumes(
    tmp_path: Path, differ: dict[str, Any], shift: float
) -> None:
    ((keyword, (first, second)),) = differ.items()
    one = [at(2 * k, 100 + k, **{keyword: first}) for k in range(6)]
    two = [at(2 * k + shift, 200 + k, **{keyword: second}) for k in range(6)]
    stacks = found(tmp_path, one + two).stacks
    assert [by_place(s) for s in stacks] == [
        {2 * k: 100 + k for k in range(6)},
        {2 * k + shift: 200 + k for k in range(6)},
    ]
    assert all(f"one of 2 volumes of its series: {keyword} " in s.series.notes[0] for s in stacks)


def test_acquisitions_that_overlap_at_their_ends_are_two_volumes(tmp_path: Path) -> None:
    one = [at(2 * k, 100 + k, AcquisitionNumber=1) for k in range(6)]
    two = [at(9 + 2 * k, 200 + k, AcquisitionNumber=2) for k in range(6)]
    assert [by_place(s) for s in found(tmp_path, one + two).stacks] == [
        {2 * k: 100 + k for k in range(6)},
        {9 + 2 * k: 200 + k for k in range(6)},
    ]


@pytest.mark.parametrize("slices_each", [1, 2, 4, 5])
def test_table_positions_are_one_volume(tmp_path: Path, slices_each: int) -> None:
    """Step and shoot: a number and a time for each position of the table."""
    datasets = [
        at(2 * k, 100 + k, AcquisitionNumber=k // slices_each, AcquisitionTime=f"10{k // slices_each:02d}00")
        for k in range(12)
    ]
    (volume,) = found(tmp_path, datasets).stacks
    assert by_place(volume) == {2 * k: 100 + k for k in range(12)}
    assert volume.series.notes == ()


def test_mr_takes_the_slices_of_one_volume_in_turns(tmp_path: Path) -> None:
    def turns(folder: str, thickness: float | None) -> Found:
        tags: dict[str, Any] = {"SOPClassUID": MRImageStorage, "SliceThickness": thickness}
        return found(
            tmp_path / folder, [at(3 * k, 100 + k, AcquisitionNumber=k % 2, **tags) for k in range(8)]
        )

    for folder, thickness in (("turns", 3.0), ("unknown", None)):
        (volume,) = turns(folder, thickness).stacks
        assert by_place(volume) == {3 * k: 100 + k for k in range(8)}
        assert volume.series.notes == (
            "slices of 2 acquisitions alternate; taken as one volume, as none is one by itself",
        )
    # Slices of 6 mm, 6 mm apart: nothing fits in between.
    assert [by_place(s) for s in turns("two", 6.0).stacks] == [
        {6 * k: 100 + 2 * k for k in range(4)},
        {6 * k + 3: 101 + 2 * k for k in range(4)},
    ]


def test_acquisitions_of_several_spacings_are_volumes_of_their_own(tmp_path: Path) -> None:
    chest = [at(2 * k, 100 + k, AcquisitionNumber=1) for k in range(8)]
    abdomen = [at(20 + 5 * k, 200 + k, AcquisitionNumber=2) for k in range(8)]
    assert [by_place(s) for s in found(tmp_path, chest + abdomen).stacks] == [
        {2 * k: 100 + k for k in range(8)},
        {20 + 5 * k: 200 + k for k in range(8)},
    ]


def test_table_positions_whose_places_are_rounded_are_one_volume(tmp_path: Path) -> None:
    datasets = [at(round(0.625 * k, 1), 100 + k, AcquisitionNumber=k // 2) for k in range(12)]
    (volume,) = found(tmp_path, datasets).stacks
    assert volume.series.grid.shape[2] == 12


def test_energies_are_told_apart(tmp_path: Path) -> None:
    datasets = [at(2 * k, 100 + n + k, KVP=kvp) for n, kvp in ((0, 80), (50, 140)) for k in range(6)]
    assert [by_place(s) for s in found(tmp_path, datasets).stacks] == [
        {2 * k: 100 + n + k for k in range(6)} for n in (0, 50)
    ]


def test_acquisitions_that_alternate_in_blocks_are_one_volume(tmp_path: Path) -> None:
    (volume,) = found(tmp_path, [at(2 * k, 100 + k, AcquisitionNumber=k // 3 % 2) for k in range(12)]).stacks
    assert by_place(volume) == {2 * k: 100 + k for k in range(12)}
    assert "slices of 2 acquisitions alternate" in volume.series.notes[0]


# --- bolus tracking -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [lambda n: 2 + n, lambda n: 2])
@pytest.mark.parametrize("place", [8.0, 8.7, -100.0])
@pytest.mark.parametrize("positions", [1, 3])
def test_images_of_bolus_tracking_are_left_out(
    tmp_path: Path, number: Any, place: float, positions: int
) -> None:
    volume = [at(2 * k, 100 + k, AcquisitionNumber=50 + positions * k // 12) for k in range(12)]
    tracking = [at(place, 500 + n, AcquisitionNumber=number(n)) for n in range(5)]
    result = found(tmp_path, tracking + volume)
    assert result.refused == ()
    assert [by_place(s) for s in result.stacks] == [{2 * k: 100 + k for k in range(12)}]
    assert result.notes == (
        f"{tmp_path}: series 4 'body': 5 images at one place, as of bolus tracking; left out",
    )


def test_bolus_tracking_takes_no_slice_of_the_volume_with_it(tmp_path: Path) -> None:
    """The last table position has one slice, and its own number like the tracking images."""
    volume = [at(2 * k, 100 + k, AcquisitionNumber=50 + k // 11) for k in range(12)]
    tracking = [at(8, 500 + n, AcquisitionNumber=n) for n in range(5)]
    result = found(tmp_path, tracking + volume)
    assert [by_place(s) for s in result.stacks] == [{2 * k: 100 + k for k in range(12)}]
    assert "5 images at one place" in result.notes[0]


def test_one_image_to_plan_bolus_tracking_on_is_left_out(tmp_path: Path) -> None:
    volume = [at(2 * k, 100 + k, AcquisitionNumber=2) for k in range(12)]
    result = found(tmp_path, [*volume, at(8.7, 500, AcquisitionNumber=1)])
    assert [by_place(s) for s in result.stacks] == [{2 * k: 100 + k for k in range(12)}]
    assert "1 images at one place" in result.notes[0]


def test_bolus_tracking_of_another_size_is_left_out(tmp_path: Path) -> None:
    tracking = [at(8, 500 + n, AcquisitionNumber=n, PixelSpacing=[0.3, 0.3]) for n in range(5)]
    result = found(tmp_path / "both", [*tracking, *(at(2 * k, 100 + k) for k in range(6))])
    assert [by_place(s) for s in result.stacks] == [{2 * k: 100 + k for k in range(6)}]
    assert (result.refused, len(result.notes)) == ((), 1)
    assert result.stacks[0].series.notes == ()
    with pytest.raises(ScanError, match=r"no volume among them .*5 images at one place"):
        found(tmp_path / "alone", tracking)


def test_the_last_table_position_may_have_one_slice(tmp_path: Path) -> None:
    """It is 0.3 mm away, unlike bolus tracking."""
    datasets = [at(2 * k, 100 + k, AcquisitionNumber=1) for k in range(8)]
    result = found(tmp_path, [*datasets, at(16.3, 108, AcquisitionNumber=2)])
    (volume,) = result.stacks
    assert result.notes == ()
    assert volume.series.grid.shape[2] == 9


# --- identity -------------------------------------------------------------------------------------


def two(**differ: tuple[Any, Any]) -> list[Dataset]:
    """Two series of six slices under one UID, the second a millimetre higher than the first."""
    return [
        at(2 * k + n, 100 * (n + 1) + k, **{keyword: values[n] for keyword, values in differ.items()})
        for n in range(2)
        for k in range(6)
    ]


@pytest.mark.parametrize(
    "differ",
    [
        {"PatientID": ("p1", "p2")},
        {"PatientID": ("p1", None)},
        {"IssuerOfPatientID": ("here", "there")},
        {"PatientName": ("Doe^Jane", "Doe^John")},
        {"PatientBirthDate": ("19700101", "19710101")},
        {"PatientSex": ("F", "M")},
        {"StudyInstanceUID": ("1.2.3", "1.2.4")},
        {"FrameOfReferenceUID": ("1.2.3.5", "1.2.3.6")},
        {"SeriesNumber": (4, 5)},
    ],
)
@pytest.mark.parametrize("uid", ["1.2.3.4", "", None])
def test_what_differs_in_identity_is_apart(
    tmp_path: Path, differ: dict[str, tuple[Any, Any]], uid: str | None
) -> None:
    (keyword,) = differ
    stacks = found(tmp_path, two(**differ, SeriesInstanceUID=(uid, uid))).stacks
    assert sorted((by_place(s) for s in stacks), key=min) == [
        {2 * k: 100 + k for k in range(6)},
        {2 * k + 1: 200 + k for k in range(6)},
    ]
    for volume in stacks:
        where = "under one SeriesInstanceUID" if uid else "without a SeriesInstanceUID"
        note = f"images {where} differ in {keyword}; each kind is read as a separate scan"
        assert note in volume.series.notes


def test_each_volume_has_the_identity_of_its_own_images(tmp_path: Path) -> None:
    differ = {"PatientID": ("p1", "p2"), "StudyInstanceUID": ("1.2.3", "1.2.4")}
    series = [s.series for s in found(tmp_path, two(**differ, FrameOfReferenceUID=("1.5", "1.6"))).stacks]
    assert [(dict(s.patient)["PatientID"], s.study_uid, s.frame_of_reference_uid) for s in series] == [
        ("p1", "1.2.3", "1.5"),
        ("p2", "1.2.4", "1.6"),
    ]


def test_a_single_frame_and_a_multi_frame_class_are_apart(tmp_path: Path) -> None:
    """The converted copy of a series may have its UID."""
    frames = [{"PlanePositionSequence": item(ImagePositionPatient=[-10.0, -20.0, 2.0 * k])} for k in range(6)]
    shared = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.75]),
        "PixelValueTransformationSequence": item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"),
    }
    enhanced = multi_frame(ramp(6), frames, shared)
    enhanced.SOPClassUID, enhanced.Modality = EnhancedCTImageStorage, "CT"
    stacks = found(tmp_path, [enhanced, *(at(2 * k, 100 + k) for k in range(6))]).stacks
    assert {s.series.sop_class_uid: s.series.grid.shape for s in stacks} == {
        str(EnhancedCTImageStorage): (7, 6, 6),
        "1.2.840.10008.5.1.4.1.1.2": (7, 6, 6),
    }


def test_names_are_compared_as_people_write_them(tmp_path: Path) -> None:
    names = ["Doe^Jane", "DOE^JANE", "Doe^Jane^^", " Doe^Jane ", "Doe^Jane=", "Doe^Jane^=="]
    (volume,) = found(tmp_path, [at(2 * k, k, PatientName=names[k % 6]) for k in range(12)]).stacks
    assert volume.series.notes == ()


def test_nothing_is_made_up_where_identities_are_mixed(tmp_path: Path) -> None:
    """Two slices have another name, and are a scan of their own; where they are missing, nothing is
    interpolated."""
    names = ["Doe^Jane"] * 3 + ["Roe^Jane"] + ["Doe^Jane"] * 3 + ["Roe^Jane"] + ["Doe^Jane"] * 4
    result = found(tmp_path, [at(2 * k, k, PatientName=name) for k, name in enumerate(names)])
    reasons = [r.reason for r in result.refused]
    assert any("its images differ in PatientName, and those that agree lack slices" in r for r in reasons)
    assert [s.series.grid.shape[2] for s in result.stacks] == [2]


def test_images_of_which_no_two_belong_together_are_refused(tmp_path: Path) -> None:
    datasets = [at(2 * k, k, FrameOfReferenceUID=f"1.9.{k}") for k in range(5)]
    (refused,) = found(tmp_path, datasets).refused
    assert "its 5 images differ in FrameOfReferenceUID, so that no two belong together" in refused.reason


# --- time -----------------------------------------------------------------------------------------


def many(count: int, places: int, change: Callable[[int], dict[str, Any]]) -> list[StoredSlice]:
    """A number of frames, alternating between ``places`` positions."""
    with opening() as opener, tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), [at(0, 1)]) / "03-0.dcm"
        read = read_image_object(Source(path), opener)
    assert isinstance(read, Image)
    (one,) = read.slices
    return [
        replace(one, frame=i, position_lps_mm=(0.0, 0.0, 2.0 * (i % places)), **change(i))
        for i in range(count)
    ]


@contextmanager
def uncollected() -> Iterator[None]:
    """Without collecting garbage, which takes longer the more tests have run before."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_many_slices_at_one_place_take_no_long_time() -> None:
    """Bolus tracking of 20 000 images, each a separate acquisition, at a slice of a volume."""
    tracking = many(20_000, 1, lambda i: {"phase": (("AcquisitionNumber", str(i + 1)),)})
    volume = many(40, 40, lambda i: {"phase": (("AcquisitionNumber", "0"),)})
    began = time.monotonic()
    parts = by_phase([*volume, *tracking], "CT")
    assert time.monotonic() - began < 5
    assert [len(part) for part, _ in parts.volumes] == [40]
    assert len(parts.left_out) == 20_000


@pytest.mark.parametrize("keywords", [(), PHASES])
def test_the_time_for_slices_that_nothing_tells_apart_grows_as_their_number(
    keywords: tuple[str, ...],
) -> None:
    """Twice as many take twice as long; if each were compared with each, four times as long."""

    def seconds(count: int) -> float:
        slices = many(count, 2, lambda i: {"phase": tuple((k, str(i // 2)) for k in keywords)})
        began = time.process_time()
        if keywords:
            assert len(by_phase(slices, "CT").volumes) == count // 2
        else:
            with pytest.raises(ScanError, match=f"up to {count // 2} of its {count} slices lie at one place"):
                by_phase(slices, "CT")
        return time.process_time() - began

    with uncollected():
        assert seconds(8_000) < 3 * seconds(4_000) + 0.1


def test_many_orientations_take_no_long_time() -> None:
    angles = np.linspace(0, 1, 20_000)
    turned = many(
        20_000,
        1,
        lambda i: {
            "along_row": (float(np.cos(angles[i])), float(np.sin(angles[i])), 0.0),
            "spacing_mm": (0.5 + 0.002 * (i % 100), 0.5),
        },
    )
    began = time.monotonic()
    groups = by_geometry(turned)
    assert time.monotonic() - began < 5
    assert sum(map(len, groups)) == 20_000
    for group in groups:
        assert np.ptp([one.spacing_mm[0] for one in group]) <= 2 * 0.001 * 0.7
        assert abs(np.array([one.along_row for one in group]) - group[0].along_row).max() <= 1e-3
