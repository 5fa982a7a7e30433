"""Interpretation of NRRD and MetaImage headers, and refusal of invalid ones."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from zoomseg.core.errors import ScanError
from zoomseg.io import metaimage as metaimage_format
from zoomseg.io import nrrd as nrrd_format
from zoomseg.io.scans import header_notes, read_grid, read_label_values, read_voxels

SHAPE = (5, 6, 7)
VALUES = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)

NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "5 6 7",
    "space directions": "(2,0,0) (0,3,0) (0,0,4)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,20,30)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "ElementSpacing": "2 3 4",
    "DimSize": "5 6 7",
    "ElementType": "MET_SHORT",
}
ODD = [
    "A" * 1100,
    "1 " * 1000,
    '"a" ' * 500,
    "9" * 300,
    "-1",
    "1e999",
    "%s%n%s",
    "",
    "(1,",
    "\x01",
    "nan nan nan",
]


def nrrd(
    path: Path, changed: dict[str, str] | None = None, lines: str = "", fields: dict[str, str] = NRRD
) -> Path:
    written = "".join(f"{name}: {value}\n" for name, value in (fields | (changed or {})).items())
    text = f"NRRD0004\n{written}{lines}\n"
    path.write_bytes(text.encode("latin-1") + VALUES.tobytes(order="F"))
    return path


def meta(
    path: Path,
    changed: dict[str, str] | None = None,
    lines: str = "",
    place: str = "LOCAL",
    fields: dict[str, str] = META,
) -> Path:
    written = "".join(f"{name} = {value}\n" for name, value in (fields | (changed or {})).items())
    text = f"{written}{lines}ElementDataFile = {place}\n"
    path.write_bytes(text.encode("latin-1") + VALUES.tobytes(order="F"))
    return path


def same(path: Path) -> bool:
    volume = read_voxels(path)
    # LPS (10, 20, 30) is RAS (-10, -20, 30).
    assert volume.grid.world([(0, 0, 0), (1, 1, 1)]).tolist() == [[-10, -20, 30], [-12, -23, 34]]
    return np.array_equal(volume.data[0], VALUES)


NRRD_REMARKS = (
    "# a comment\nkey:=value\ncontent: a CT, of \xe4 body\nmeasurement frame: (1,0,0) (0,1,0) (0,0,1)\n"
    'space units: "mm" "mm" "mm"\nthicknesses: NaN nan 4\nlong:=' + "v" * 5000 + "\nDICOM_0008_0060:=CT: x\n"
)
META_REMARKS = (
    "Comment = a CT, of body\nLong = "
    + "v" * 5000
    + "\n0008|0060 = CT\nPatient Name = a: b\nCenterOfRotation = 0 0 0\n"
)


def test_what_writers_write_is_read(tmp_path: Path) -> None:
    assert same(nrrd(tmp_path / "a.nrrd"))
    assert same(nrrd(tmp_path / "b.nrrd", lines=NRRD_REMARKS))
    assert same(meta(tmp_path / "a.mha"))
    assert same(meta(tmp_path / "b.mha", lines=META_REMARKS))
    (tmp_path / "c.raw").write_bytes(VALUES.tobytes(order="F"))
    assert same(meta(tmp_path / "c.mhd", place="c.raw"))
    assert same(nrrd(tmp_path / "c.nrrd", {"data file": "c.raw"}))


@pytest.mark.parametrize("name", sorted({*NRRD, *nrrd_format.FIELDS}))
def test_no_field_of_a_nrrd_is_long(tmp_path: Path, name: str) -> None:
    for odd in ODD[:4]:
        with pytest.raises(
            ScanError, match=rf"a\.nrrd: the header's {name} cannot be .*\(\d+ bytes\)"
        ) as error:
            read_grid(nrrd(tmp_path / "a.nrrd", {name: odd}))
        assert len(str(error.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("name", sorted(metaimage_format.FIELDS.keys() - {"ElementDataFile"}))
def test_no_field_of_a_meta_image_is_long(tmp_path: Path, name: str) -> None:
    for odd in ODD[:4]:
        with pytest.raises(ScanError, match=rf"a\.mha: the header's {name} cannot be .*\(\d+ bytes\)"):
            read_grid(meta(tmp_path / "a.mha", {name: odd}))


@pytest.mark.parametrize(
    "line",
    [
        "z" * 1100 + ": v\n",
        "z" * 1100 + "\n",
        "unknown: 1\n",
        "type: short\n",
        "key:=a\0b\n",
        "k:=" + "v" * 70000 + "\n",
    ],
)
def test_lines_that_no_nrrd_has(tmp_path: Path, line: str) -> None:
    with pytest.raises(
        ScanError, match=r"a\.nrrd: (damaged, truncated or not an image|the header gives type twice)"
    ):
        read_grid(nrrd(tmp_path / "a.nrrd", lines=line))


@pytest.mark.parametrize(
    "line",
    ["Z" * 1100 + " = 1\n", "no equals\n", "DimSize = 5 6 7\n", "dimsize = 9 9 9\n", "Comment = a\0b\n"],
)
def test_lines_that_no_meta_image_has(tmp_path: Path, line: str) -> None:
    with pytest.raises(
        ScanError, match=r"a\.mha: (damaged, truncated or not an image|the header gives DimSize)"
    ):
        read_grid(meta(tmp_path / "a.mha", lines=line))


@pytest.mark.parametrize(
    "changed", [{"DimSize": "5 6"}, {"Offset": "1 2 3 4"}, {"TransformMatrix": "1 0 0 1"}]
)
def test_a_meta_image_has_as_many_numbers_as_axes(tmp_path: Path, changed: dict[str, str]) -> None:
    with pytest.raises(ScanError, match=r"a\.mha: \d numbers for \w+; \d are needed"):
        read_grid(meta(tmp_path / "a.mha", changed))


def test_other_units_than_millimetres_are_refused(tmp_path: Path) -> None:
    """ITK does not read them."""
    for field in ("space units", "units"):
        with pytest.raises(ScanError, match=r"a\.nrrd: its lengths are in 'um'"):
            read_grid(nrrd(tmp_path / "a.nrrd", {field: '"mm" "um" "mm"'}))
    with pytest.raises(ScanError, match=r"a\.mha: its lengths are in 'cm'"):
        read_grid(meta(tmp_path / "a.mha", {"DistanceUnits": "cm"}))


@pytest.mark.parametrize("packed", [False, True])
def test_slope_and_offset_of_a_meta_image_are_applied(tmp_path: Path, packed: bool) -> None:
    """ITK gives the stored values."""
    scaling = {"ElementToIntensityFunctionSlope": "2", "ElementToIntensityFunctionOffset": "-1024"}
    path = meta(tmp_path / "a.mha", scaling | {"CompressedData": str(packed)})
    if packed:
        content = path.read_bytes()
        path.write_bytes(content[: -VALUES.nbytes] + zlib.compress(content[-VALUES.nbytes :]))
    assert np.array_equal(read_voxels(path).data[0], 2.0 * VALUES - 1024)
    assert np.array_equal(read_label_values(path)[0], 2 * VALUES.astype(int) - 1024)
    half = meta(tmp_path / "half.mha", {"ElementToIntensityFunctionSlope": "0.5"})
    assert np.array_equal(read_voxels(half).data[0], VALUES / 2)
    with pytest.raises(
        ScanError, match=r"a\.mha: the header's ElementToIntensityFunctionSlope is 0; another"
    ):
        read_grid(meta(tmp_path / "a.mha", {"ElementToIntensityFunctionSlope": "-0.0"}))


def without(fields: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name not in names}


BARE = without(NRRD, "space", "space directions", "space origin")


@pytest.mark.parametrize("space", ["LPS", "RAS", "Left-Anterior-Superior", "right-anterior-superior"])
def test_spaces_that_tell_the_sides_leave_no_doubt(tmp_path: Path, space: str) -> None:
    path = nrrd(tmp_path / "a.nrrd", {"space": space})
    right, front = ("R" in space.upper()[:1]), ("A" in (space.split("-") * 2)[1].upper()[:2])
    signs = (1 if right else -1, 1 if front else -1, 1)
    assert read_grid(path).world([(0, 0, 0), (1, 1, 1)]).tolist() == [
        [edge * sign for edge, sign in zip(point, signs, strict=True)]
        for point in ((10, 20, 30), (12, 23, 34))
    ]
    assert header_notes(path) == ()


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed"])
def test_a_space_that_is_not_the_patients_is_told_of(tmp_path: Path, space: str) -> None:
    path = nrrd(tmp_path / "a.nrrd", {"space": space})
    assert same(path)
    assert header_notes(path) == (
        f"the header's space '{space}' does not state the patient's sides, they are assumed; as in ITK, "
        "its axes are assumed to run to the patient's left, back and head",
    )


def test_geometry_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    bare = nrrd(tmp_path / "a.nrrd", fields=BARE | {"spacings": "2 3 4"})
    assert read_grid(bare).world([(1, 1, 1)]).tolist() == [[-2, -3, 4]]
    note, no_origin = header_notes(bare)
    assert no_origin == NO_ORIGIN
    assert note.startswith(
        "no orientation is stored (no space in the header): the patient's sides are assumed; as in ITK"
    )
    nothing = nrrd(tmp_path / "b.nrrd", fields=BARE)
    assert read_grid(nothing).spacing_mm == (1, 1, 1)
    assert header_notes(nothing) == (
        note,
        "no voxel sizes are stored: interpreted as 1 mm, as in ITK",
        NO_ORIGIN,
    )
    unturned = meta(tmp_path / "a.mha", fields=without(META, "TransformMatrix"))
    assert same(unturned)
    (note,) = header_notes(unturned)
    assert note.startswith(
        "no orientation is stored (no TransformMatrix): the patient's sides are assumed; as in ITK"
    )
    unsized = meta(tmp_path / "b.mha", fields=without(META, "ElementSpacing"))
    assert header_notes(unsized) == ("no voxel sizes are stored: interpreted as 1 mm, as in ITK",)
    for whole in (
        meta(tmp_path / "c.mha"),
        meta(
            tmp_path / "d.mha", {"Orientation": "1 0 0 0 1 0 0 0 1"}, fields=without(META, "TransformMatrix")
        ),
        meta(tmp_path / "e.mha", {"ElementSize": "2 3 4"}, fields=without(META, "ElementSpacing")),
        nrrd(tmp_path / "c.nrrd"),
    ):
        assert same(whole)
        assert header_notes(whole) == ()


NO_ORIGIN = "no origin is stored: the first voxel is placed at 0 mm, as in ITK"


@pytest.mark.parametrize("name", ["Offset", "Position", "Origin"])
def test_a_metaimage_without_an_origin_is_told_of(tmp_path: Path, name: str) -> None:
    placed = meta(tmp_path / "a.mha", {name: "10 20 30"}, fields=without(META, "Offset"))
    assert same(placed)
    assert header_notes(placed) == ()
    unplaced = meta(tmp_path / "b.mha", fields=without(META, "Offset"))
    assert read_grid(unplaced).world([(0, 0, 0), (1, 1, 1)]).tolist() == [[0, 0, 0], [-2, -3, 4]]
    assert header_notes(unplaced) == (NO_ORIGIN,)


@pytest.mark.parametrize(
    ("fields", "origin", "notes"),
    [
        ({"space origin": "(10,20,30)"}, (-10, -20, 30), ()),
        ({}, (0, 0, 0), (NO_ORIGIN,)),
    ],
)
def test_a_nrrd_without_an_origin_is_told_of(
    tmp_path: Path, fields: dict[str, str], origin: tuple[int, ...], notes: tuple[str, ...]
) -> None:
    path = nrrd(tmp_path / "a.nrrd", fields, fields=without(NRRD, "space origin"))
    assert tuple(read_grid(path).world([(0, 0, 0)])[0]) == origin
    assert header_notes(path) == notes


@pytest.mark.parametrize(
    ("fields", "origin"),
    [
        # By default an axis begins at the edge of its first voxel, not at its centre.
        ({"spacings": "2 4 6", "axis mins": "9 18 27"}, (-10, -20, 30)),
        ({"spacings": "2 4 6", "axis mins": "9 18 27", "centerings": "node node node"}, (-9, -18, 27)),
        ({"axis mins": "9 18 27", "axis maxs": "19 30 41"}, (-10, -19, 28)),
        ({"spacings": "2 4 6", "axis mins": "nan nan nan"}, None),
        ({"axis mins": "9 18 27"}, None),
    ],
)
def test_where_axes_begin_is_an_origin_if_itk_finds_it(
    tmp_path: Path, fields: dict[str, str], origin: tuple[int, ...] | None
) -> None:
    path = nrrd(tmp_path / "a.nrrd", fields=BARE | fields)
    assert tuple(read_grid(path).world([(0, 0, 0)])[0]) == (origin or (0, 0, 0))
    assert (NO_ORIGIN in header_notes(path)) == (origin is None)


def test_axes_in_space_without_a_size_are_refused(tmp_path: Path) -> None:
    """ITK assumes 1 mm."""
    for spacings in ("1 1 nan", "NaN 1 2"):
        with pytest.raises(ScanError, match=r"a\.nrrd: the header's spacings give (nan|NaN) for an axis in"):
            read_grid(nrrd(tmp_path / "a.nrrd", fields=BARE | {"spacings": spacings}))
    with pytest.raises(ScanError, match=r"a\.nrrd: the header's space directions give none for an axis in"):
        read_grid(nrrd(tmp_path / "a.nrrd", {"space directions": "none (0,3,0) (0,0,4)"}))
    assert same(nrrd(tmp_path / "a.nrrd", {"spacings": "nan nan nan"}))  # as the directions have them


def test_sides_with_time_that_are_misread_are_refused(tmp_path: Path) -> None:
    """ITK reads them as left-posterior-superior-time: mirrored."""
    timed = {
        "dimension": "4",
        "sizes": "5 6 7 1",
        "kinds": "domain domain domain time",
        "space directions": "(2,0,0,0) (0,3,0,0) (0,0,4,0) (0,0,0,1)",
        "space origin": "(10,20,30,0)",
    }
    good = nrrd(tmp_path / "a.nrrd", timed | {"space": "left-posterior-superior-time"})
    assert same(good)
    assert header_notes(good) == ()
    for space in ("right-anterior-superior-time", "LAST"):
        with pytest.raises(
            ScanError, match=rf"a\.nrrd: the header's space '{space}' is not supported; write"
        ):
            read_grid(nrrd(tmp_path / "a.nrrd", timed | {"space": space}))


def test_voxels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"a\.mhd: its voxels should be in none\.raw beside it"):
        read_grid(meta(tmp_path / "a.mhd", place="none.raw"))
    for place in ("..", "../a.raw", "a%d.raw 1 2 1", "LIST"):
        with pytest.raises(ScanError, match=r"a\.mhd: (its voxels must be in one file|voxels spread over)"):
            read_grid(meta(tmp_path / "a.mhd", place=place))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_damage_in_compressed_voxels_is_found(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(noise.T), str(path), useCompression=True)
    assert np.array_equal(read_voxels(path).data[0], noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ScanError, match="damaged"):
        read_voxels(path)
    assert capfd.readouterr().err == ""  # the single line is ours


@pytest.mark.parametrize("order", ["<", ">"])
def test_compressed_meta_images_of_any_byte_order(tmp_path: Path, order: str) -> None:
    path = meta(tmp_path / "a.mha", {"CompressedData": "True", "BinaryDataByteOrderMSB": str(order == ">")})
    packed = zlib.compress(VALUES.astype(f"{order}i2").tobytes(order="F"))
    path.write_bytes(path.read_bytes()[: -VALUES.nbytes] + packed)
    assert same(path)


FUZZER = """
import os, sys
from zoomseg.core.errors import ZoomSegError
from zoomseg.io.scans import read_voxels
for path in sys.argv[1:]:
    print(path, flush=True)
    try:
        read_voxels(path)
    except ZoomSegError:
        pass
"""


def test_no_mutated_header_ends_the_process(tmp_path: Path) -> None:
    """In a separate process, as a crash would end this one."""
    rng = random.Random(0)
    files = []
    for n in range(300):
        write, fields, known = rng.choice(
            [(nrrd, NRRD, nrrd_format.FIELDS), (meta, META, metaimage_format.FIELDS)]
        )
        changed = {
            name: rng.choice([*ODD, *fields.values()])
            for name in rng.sample(sorted(known), rng.choice([1, 2]))
        }
        changed.pop("ElementDataFile", None)
        path = write(tmp_path / f"{n}.{'nrrd' if write is nrrd else 'mha'}", changed)
        content = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            content[rng.randrange(len(content) - VALUES.nbytes)] = rng.randrange(256)
        path.write_bytes(content)
        files.append(str(path))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FUZZER, *files], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr[-500:])
    assert done.stdout.splitlines() == files
