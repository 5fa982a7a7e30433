from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blosc2
import numpy as np
import numpy.typing as npt
import pytest

from zoomseg.core.errors import DatasetError, OutputError
from zoomseg.core.geometry import Box
from zoomseg.io.cache import DTYPES, ChunkedArray, write_array


def noise(shape: tuple[int, ...], dtype: str = "int16") -> npt.NDArray[np.generic]:
    return (np.random.default_rng(1).normal(size=shape) * 100).clip(0, 255).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (2,)])
def test_any_box_returns_the_values_written(tmp_path: Path, dtype: str, lead: tuple[int, ...]) -> None:
    array = noise((*lead, 37, 70, 5), dtype)
    write_array(tmp_path / "a.b2nd", array, chunks=(16, 16, 16))
    stored = ChunkedArray.open(tmp_path / "a.b2nd")
    assert stored.shape == array.shape
    assert stored.dtype == array.dtype
    for box in (Box((0, 0, 0), (37, 70, 5)), Box((15, 16, 1), (17, 33, 2)), Box((36, 69, 4), (37, 70, 5))):
        np.testing.assert_array_equal(stored.read(box), array[(..., *box.slices)])


def test_reading_leaves_untouched_chunks_alone(tmp_path: Path) -> None:
    array = noise((32, 16, 16))
    path = tmp_path / "a.b2nd"
    write_array(path, array, chunks=(16, 16, 16))
    plain = blosc2.open(str(path), mode="r")
    second = plain.schunk.get_chunk(1)
    content = path.read_bytes()
    assert content.count(second) == 1
    path.write_bytes(content.replace(second, b"\xff" * len(second)))
    damaged = ChunkedArray.open(path)
    first_box = Box((0, 0, 0), (16, 16, 16))
    np.testing.assert_array_equal(damaged.read(first_box), array[:16])
    with pytest.raises(DatasetError, match="delete it and start again"):
        damaged.read(Box((15, 0, 0), (17, 16, 16)))


def test_threads_may_share_one_array(tmp_path: Path) -> None:
    array = noise((64, 40, 40))
    write_array(tmp_path / "a.b2nd", array, chunks=(16, 16, 16))
    stored = ChunkedArray.open(tmp_path / "a.b2nd")
    boxes = [Box((i % 40, i % 7, i % 11), (i % 40 + 20, i % 7 + 30, i % 11 + 9)) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for box, voxels in zip(boxes, pool.map(stored.read, boxes), strict=True):
            np.testing.assert_array_equal(voxels, array[box.slices])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 4), "float64"),
        np.zeros((4, 4, 4), object),
        np.zeros((4, 4), "uint8"),
        np.zeros((0, 4, 4), "uint8"),
    ],
)
def test_only_supported_arrays_are_written(tmp_path: Path, array: npt.NDArray[np.generic]) -> None:
    with pytest.raises(DatasetError, match="cannot cache"):
        write_array(tmp_path / "a.b2nd", array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "box", [Box((-1, 0, 0), (2, 2, 2)), Box((0, 0, 0), (9, 2, 2)), Box((2, 2, 2), (2, 3, 3))]
)
def test_a_box_that_is_not_inside_is_refused(tmp_path: Path, box: Box) -> None:
    write_array(tmp_path / "a.b2nd", noise((8, 8, 8)))
    with pytest.raises(DatasetError, match="not inside"):
        ChunkedArray.open(tmp_path / "a.b2nd").read(box)


def _truncated(path: Path) -> None:
    write_array(path, noise((32, 32, 32)))
    os.truncate(path, path.stat().st_size - 100)


def _lazy_expression(path: Path) -> None:
    operand = blosc2.asarray(np.ones((4, 4, 4), "float32"), urlpath=str(path.with_name("o.b2nd")), mode="w")
    (operand + 1).save(urlpath=str(path))


def _tagged_as_object(path: Path) -> None:
    blosc2.asarray(np.ones((4, 4, 4), "float32"), urlpath=str(path), mode="w", meta={"b2o": {"kind": "udf"}})


def _objects(path: Path) -> None:
    array = blosc2.asarray(np.ones((4, 4, 4), "float64"), urlpath=str(path), mode="w")
    content = path.read_bytes()
    del array
    assert content.count(b"<f8") == 1
    path.write_bytes(content.replace(b"<f8", b"|O8"))


def _flat(path: Path) -> None:
    blosc2.asarray(np.ones(64, "float32"), urlpath=str(path), mode="w")


def _chunks_without_array(path: Path) -> None:
    storage = blosc2.Storage(contiguous=True, urlpath=str(path), mode="w")
    blosc2.SChunk(chunksize=64, data=bytes(128), storage=storage)


def _text(path: Path) -> None:
    path.write_text("not an array")


def _folder(path: Path) -> None:
    path.mkdir()


def _missing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    "make",
    [
        _truncated,
        _lazy_expression,
        _tagged_as_object,
        _objects,
        _flat,
        _chunks_without_array,
        _text,
        _folder,
        _missing,
    ],
)
def test_anything_but_a_plain_array_is_refused(tmp_path: Path, make: object) -> None:
    path = tmp_path / "a.b2nd"
    assert callable(make)
    make(path)
    with pytest.raises(DatasetError, match="cached array"):
        ChunkedArray.open(path)


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    """Of the axes when it is opened; of the channels when they are read, as they do not fit in memory."""
    path = tmp_path / "a.b2nd"
    write_array(path, noise((3, 37, 70, 5)))
    content = path.read_bytes()

    def promise(now: int, then: int) -> None:
        old, new = (b"\xd3" + size.to_bytes(8, "big") for size in (now, then))  # a number in msgpack
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    promise(37, 37 + 2**41)
    with pytest.raises(DatasetError, match=r"promises the shape \(3, 2199023255589, 70, 5\)\); delete it"):
        ChunkedArray.open(path)
    promise(3, 3 + 2**41)
    with pytest.raises(DatasetError, match=r"Unable to allocate .* delete it and start again"):
        ChunkedArray.open(path).read(Box((0, 0, 0), (2, 2, 2)))


def test_a_failed_write_keeps_the_old_file_and_leaves_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = noise((8, 8, 8))
    write_array(tmp_path / "a.b2nd", array)

    def full_disk(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OutputError, match="No space left"):
            write_array(tmp_path / "a.b2nd", array + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.b2nd"]
    np.testing.assert_array_equal(
        ChunkedArray.open(tmp_path / "a.b2nd").read(Box((0, 0, 0), (8, 8, 8))), array
    )
