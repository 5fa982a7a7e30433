"""``zoomseg stitch``: stations in, one scan out, and every wrong use in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.dicom_series import image
from helpers.dicom_series import write as write_series
from zoomseg.cli.main import main
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.volume import Volume
from zoomseg.io.scans import read_image, write_image

SHAPE = (12, 10, 40)
CUTS = ((0, 16, 1.0), (12, 30, 1.7), (24, 40, 0.4))


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["stitch", *(str(a) for a in arguments)])
    return int(stop.value.code or 0)


@pytest.fixture
def whole() -> Volume:
    data = np.random.default_rng(3).normal(200, 60, (1, *SHAPE)).astype(np.float32)
    return Volume(data, Grid.from_spacing(SHAPE, (2.0, 2.0, 5.0), (-10.0, 5.0, 100.0)))


@pytest.fixture
def stations(whole: Volume, tmp_path: Path) -> list[Path]:
    paths = []
    for n, (start, stop, gain) in enumerate(CUTS):
        part = whole.crop(Box((0, 0, start), (*SHAPE[:2], stop)))
        paths.append(tmp_path / "stations" / f"s{n}{('.nii.gz', '.nrrd', '.mha')[n]}")
        paths[-1].parent.mkdir(exist_ok=True)
        write_image(paths[-1], Volume(part.data * np.float32(gain), part.grid))
    return paths


def test_three_stations_give_the_scan_back(
    whole: Volume, stations: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "body.nii.gz"
    assert run(*stations, "-o", out) == 0
    joined = read_image(out)
    assert joined.grid.same_as(whole.grid)
    np.testing.assert_allclose(joined.data, whole.data, rtol=1e-4, atol=1e-2)
    said = capfd.readouterr()
    assert "s1: gain 0.588, offset " in said.out
    assert "(480 voxels shared with s0)" in said.out
    assert f"3 stations joined to 12 x 10 x 40 voxels: {out}" in said.out
    assert said.err == ""
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_holds_stations(whole: Volume, stations: list[Path], tmp_path: Path) -> None:
    assert run(stations[0].parent, "-o", tmp_path / "body.nrrd") == 0
    np.testing.assert_allclose(read_image(tmp_path / "body.nrrd").data, whole.data, rtol=1e-4, atol=1e-2)


def test_channels_of_one_file_stay_channels(whole: Volume, tmp_path: Path) -> None:
    both = np.concatenate([whole.data, whole.data[:, ::-1]])
    for n, (start, stop, gain) in enumerate(CUTS):
        part = Volume(both, whole.grid).crop(Box((0, 0, start), (*SHAPE[:2], stop)))
        write_image(tmp_path / f"s{n}.nii.gz", Volume(part.data * np.float32(gain), part.grid))
    names = [tmp_path / f"s{n}.nii.gz" for n in range(3)]
    assert run(*names, "-o", tmp_path / "body.nii.gz") == 0
    joined = read_image(tmp_path / "body.nii.gz", channels_last=True)
    np.testing.assert_allclose(joined.data, both, rtol=1e-4, atol=1e-2)
    assert run(*names, "-o", tmp_path / "body.nrrd") == 2


def test_series_of_a_dicom_folder_are_stations(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (30, 16, 12)).astype(np.uint16)
    for n, (start, stop) in enumerate(((0, 18), (12, 30))):
        slices = [
            image(values[k], (-10, -20, 5 * k), SeriesInstanceUID=f"1.2.3.{n}", SOPInstanceUID=f"1.2.{n}.{k}")
            for k in range(start, stop)
        ]
        write_series(tmp_path / "study" / str(n), slices)
    assert run(tmp_path / "study", "-o", tmp_path / "body.nii.gz") == 0
    joined = read_image(tmp_path / "body.nii.gz").data[0]
    assert joined.shape[2] == 30
    assert sorted(joined.ravel()) == pytest.approx(sorted(values.ravel() - 1024.0), abs=1e-2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("s0.nii.gz",), "1 station was found, and at least two are needed"),
        (("s0.nii.gz", "s2.mha"), "station s2 does not overlap the first"),
        (("s0.nii.gz", "gone.nii.gz"), "gone.nii.gz: no such file"),
        (("s0.nii.gz", "broken.nii.gz"), "broken.nii.gz: "),
        (("s0.nii.gz", "labels.nii.gz"), "looks like a label map"),
    ],
)
def test_what_cannot_be_joined_is_one_line(
    arguments: tuple[str, ...],
    says: str,
    stations: list[Path],
    whole: Volume,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = stations[0].parent
    (folder / "broken.nii.gz").write_bytes(b"no")
    labels = np.zeros((1, *SHAPE), dtype=np.float32)
    labels[:, 2:8, 2:8, 5:30] = 3
    write_image(folder / "labels.nii.gz", Volume(labels, whole.grid))
    out = tmp_path / "body.nii.gz"
    assert run(*(folder / name for name in arguments), "-o", out) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("body.png", "cannot write this format"),
        ("body.mhd", "cannot write this format"),
        ("stations/s0.nii.gz", "this is one of the stations"),
        (".body.nii.gz", "hidden file"),
    ],
)
def test_a_result_that_cannot_be_is_refused_before_anything_is_read(
    out: str,
    says: str,
    stations: list[Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zoomseg.io.scans.read_scan", None)
    before = stations[0].read_bytes()
    assert run(*stations, "-o", tmp_path / out) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert stations[0].read_bytes() == before
