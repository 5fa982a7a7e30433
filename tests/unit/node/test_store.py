"""Received objects: they are on disk before success is reported, and each is stored once."""

from __future__ import annotations

import errno
import io
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from helpers.dicom_series import DEFLATED_HEADERS, deflated, item, multi_frame, ramp
from helpers.nodes import series
from zoomseg.core.errors import OutputError, ScanError
from zoomseg.node.store import Arrival, ConflictError, Store, read_instance


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def put(store: Store, dataset: Dataset) -> Arrival:
    content = encoded(dataset)
    return store.put(read_instance(content), content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "received", 0)


def test_objects_lie_in_a_folder_for_each_series(store: Store) -> None:
    images = series(1)[:3] + series(2)[:2]
    assert [put(store, one) for one in images] == [Arrival.NEW] * 5
    keys = store.series()
    assert sorted(len(store.files(key)) for key in keys) == [2, 3]
    assert store.files(keys[0])[0].read_bytes() in [encoded(one) for one in images]


def test_names_say_nothing_of_a_patient(store: Store, tmp_path: Path) -> None:
    image = series(study="1.2.3.999")[0]
    put(store, image)
    names = " ".join(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert "999" not in names.replace(store.series()[0], "")
    assert "/" not in store.series()[0]


def test_an_object_is_on_the_disk_before_put_returns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's content, then its name, then that of its folder."""
    flushed: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    put(store, series()[0])
    key = store.series()[0]
    (file,) = store.files(key)
    assert flushed == ["received", f".{file.name}.partial", key]


def test_the_same_object_is_known_whatever_its_header_and_compression(store: Store) -> None:
    image = series()[0]
    put(store, image)
    assert put(store, image) is Arrival.KNOWN
    image.StudyDescription = "corrected"
    assert put(store, image) is Arrival.KNOWN
    image.compress(RLELossless, generate_instance_uid=False)
    assert put(store, image) is Arrival.KNOWN
    assert len(store.files(store.series()[0])) == 1


OTHER: dict[str, dict[str, Any]] = {
    "patient": {"PatientID": "p2"},
    "space": {"FrameOfReferenceUID": "1.2.9"},
    "position": {"ImagePositionPatient": [-10, -20, 31]},
    "orientation": {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]},
    "spacing": {"PixelSpacing": [2, 2]},
    "rescale": {"RescaleSlope": 2},
    "greys": {"PhotometricInterpretation": "MONOCHROME1"},
    "padding": {"PixelPaddingValue": 0},
}
"""Corrections of a header that make other results of the same pixels."""


@pytest.mark.parametrize("change", [*OTHER, "pixels", "compressed pixels"])
def test_another_object_of_its_uid_is_refused_and_the_first_one_kept(store: Store, change: str) -> None:
    image = series()[0]
    put(store, image)
    before = store.files(store.series()[0])[0].read_bytes()
    for keyword, value in OTHER.get(change, {}).items():
        setattr(image, keyword, value)
    if change not in OTHER:
        image.PixelData = bytes(2) + image.PixelData[2:]
    if change == "compressed pixels":
        image.compress(RLELossless, generate_instance_uid=False)
    with pytest.raises(ConflictError, match=store.series()[0]):
        put(store, image)
    assert store.files(store.series()[0])[0].read_bytes() == before


def test_the_same_object_is_known_however_its_header_is_encoded(store: Store) -> None:
    image = series()[0]
    image.PixelPaddingValue = 0
    put(store, image)
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image.ImagePositionPatient = [f"{float(at):.3f}" for at in image.ImagePositionPatient]
    image.RescaleSlope = "1.00"
    assert put(store, image) is Arrival.KNOWN


def enhanced(places: list[float]) -> Dataset:
    """Two frames at these heights."""
    frames = [{"PlanePositionSequence": item(ImagePositionPatient=[0.0, 0.0, z])} for z in places]
    dataset = multi_frame(ramp(2), frames, {"PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.75])})
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.9"
    return dataset


def test_frames_at_other_places_are_another_object(store: Store) -> None:
    one = enhanced([0, 3])
    put(store, one)
    one.StudyDescription = "corrected"
    assert put(store, one) is Arrival.KNOWN
    with pytest.raises(ConflictError):
        put(store, enhanced([3, 0]))


@pytest.mark.parametrize("change", [*OTHER, "damage"])
def test_contents_stand_for_objects_and_what_they_mean(store: Store, tmp_path: Path, change: str) -> None:
    other, images = Store(tmp_path / "other", 0), series()[:3]
    for image in images:
        put(store, image)
    (key,) = store.series()
    before = store.contents(key)
    assert len(set(before)) == 3
    images[1].compress(RLELossless, generate_instance_uid=False)
    for image in images:
        image.StudyDescription = "corrected"
        put(other, image)
    assert other.contents(key) == before
    if change == "damage":
        other.files(key)[2].write_bytes(b"damaged")
    else:
        other.remove(key)
        for image in images[:1]:
            for keyword, value in OTHER[change].items():
                setattr(image, keyword, value)
        for image in images:
            put(other, image)
    after = other.contents(key)
    assert len(set(after) - set(before)) == 1


def compressed() -> Dataset:
    """An image as JPEG 2000 that is large enough for its encoder."""
    image = series()[0]
    image.Rows = image.Columns = 64
    image.PixelData = bytes(range(128)) * 64
    image.compress(JPEG2000Lossless, generate_instance_uid=False)
    return image


def test_jpeg_2000_is_compared_by_its_pixels(store: Store) -> None:
    image = compressed()
    put(store, image)
    image.decompress(generate_instance_uid=False)
    assert put(store, image) is Arrival.KNOWN


@pytest.mark.parametrize("declared", ["in the codestream", "in the header", "in both"])
def test_pixels_that_declare_too_much_are_not_decoded(
    store: Store, monkeypatch: pytest.MonkeyPatch, declared: str
) -> None:
    image = compressed()
    plain = compressed()
    plain.decompress(generate_instance_uid=False)
    put(store, plain)
    if declared != "in the codestream":
        image.Rows = image.Columns = 16_000
    if declared != "in the header":
        begin = image.PixelData.index(b"\xff\x4f\xff\x51") + 8
        size = struct.pack(">2I", 16_000, 16_000)
        image.PixelData = image.PixelData[:begin] + size + image.PixelData[begin + 8 :]
    decoded: list[Dataset] = []
    monkeypatch.setattr(Dataset, "pixel_array", property(decoded.append))
    with pytest.raises(ConflictError):
        put(store, image)
    assert decoded == []


def test_a_disk_that_is_nearly_full_takes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, 2**60)
    assert store.room() < 0
    with pytest.raises(OutputError, match="full"):
        put(store, series()[0])
    assert list(tmp_path.rglob("*.dcm")) == []


def test_a_disk_that_fails_leaves_nothing_half(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = series()[0]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            put(store, image)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert put(store, image) is Arrival.NEW


def test_what_a_killed_process_left_half_is_no_object(store: Store, tmp_path: Path) -> None:
    put(store, series()[0])
    (file,) = store.files(store.series()[0])
    half = file.with_name(f".{'0' * 16}.dcm.partial")
    half.write_bytes(b"half")
    again = Store(tmp_path / "received", 0)
    assert not half.exists()
    assert again.files(again.series()[0]) == [file]


def test_links_do_not_change_with_later_arrivals(store: Store, tmp_path: Path) -> None:
    images = series()
    put(store, images[0])
    key = store.series()[0]
    store.link(key, tmp_path / "job" / "scan")
    put(store, images[1])
    assert len(list((tmp_path / "job" / "scan").iterdir())) == 1
    store.remove(key)
    assert store.series() == []
    assert len(list((tmp_path / "job" / "scan").iterdir())) == 1


def test_links_that_break_off_are_no_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = series()[:6]
    for image in images:
        put(store, image)
    (key,), to, link = store.series(), tmp_path / "jobs" / "a" / "scan", os.link
    left = iter(range(3))

    def full(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OutputError, match="No space left"):
            store.link(key, to)
    assert not to.exists()
    store.link(key, to)
    assert [file.name for file in sorted(to.iterdir())] == [file.name for file in store.files(key)]
    assert [place.name for place in to.parent.iterdir()] == ["scan"]


def test_without_links_the_objects_are_copied(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on shares of Windows."""
    for image in series()[:2]:
        put(store, image)

    def none(source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", none)
    (key,), to = store.series(), tmp_path / "jobs" / "a" / "scan"
    store.link(key, to)
    assert [(file.name, file.read_bytes()) for file in sorted(to.iterdir())] == [
        (file.name, file.read_bytes()) for file in store.files(key)
    ]


def test_a_linked_folder_is_on_the_disk_with_its_parents(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, series()[0])
    flushed: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    )
    store.link(store.series()[0], tmp_path / "jobs" / "a" / "scan")
    assert [Path(path).name for path in flushed] == [".scan.partial", "a", "jobs", tmp_path.name]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"StudyInstanceUID": None}, "no valid study_uid"),
        ({"SeriesInstanceUID": "1.2.x"}, "no valid series_uid"),
        ({"SOPInstanceUID": "../../etc/passwd"}, "no valid sop_uid"),
        ({"PixelData": None}, "not a whole image"),
        ({"PixelData": b"\0\0"}, "cut off"),
        ({"NumberOfFrames": "many"}, "not a whole image"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_objects_that_are_no_images_are_refused(changes: dict[str, Any], said: str) -> None:
    image = series()[0]
    for keyword, value in changes.items():
        if value is None:
            delattr(image, keyword)
        elif keyword == "NumberOfFrames":
            image.add_new("NumberOfFrames", "LO", value)
        else:
            image[keyword]._value = value
    with pytest.raises(ScanError, match=said) as refused:
        read_instance(encoded(image))
    assert "Doe" not in str(refused.value)


def test_bytes_that_are_no_dicom_are_refused() -> None:
    whole = encoded(series()[0])
    for content in (b"", b"x" * 1000, whole[:200], whole[: len(whole) // 2]):
        with pytest.raises(ScanError):
            read_instance(content)


@pytest.mark.parametrize("header", DEFLATED_HEADERS.values(), ids=DEFLATED_HEADERS)
def test_an_object_deflated_as_a_whole_is_refused_before_it_is_inflated(
    header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = deflated(series()[0], header)
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("inflated"))
    with pytest.raises(ScanError, match="the object: is deflated as a whole; convert it"):
        read_instance(content)
