"""``zoomseg check``: output and exit code."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from helpers.dicom_annotations import drawn_on
from helpers.dicom_series import ramp, stack, write
from zoomseg.cli.check import show_findings
from zoomseg.cli.main import main
from zoomseg.datasets.audit import Finding
from zoomseg.io.dicom.read.series_discovery import the_series
from zoomseg.io.dicom.write.seg import write_seg

SHAPE = (12, 10, 8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[3:6, 3:6, 3:6] = 1
    for seed, case in enumerate(("a[red]", "b")):
        voxels = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        save(folder / "imagesTr" / f"{case}_0000.nii.gz", voxels)
        save(folder / "labelsTr" / f"{case}.nii.gz", labels)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["check", *map(str, arguments)])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_clean(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root) == 0
    assert capsys.readouterr().out == "2 cases, 1 channel(s), 1 label(s): no problems\n"


def test_partly_annotated(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = json.loads((root / "dataset.json").read_text())
    partly = {"labels": {"background": 0, "liver": 1, "tail[s]": 2}, "cases": {"b": {"annotated": ["liver"]}}}
    (root / "dataset.json").write_text(json.dumps(description | partly))
    assert run(root) == 0
    assert "cases with annotation, of 2 labelled ones: liver 2, tail[s] 1\n" in capsys.readouterr().out


def test_warnings_alone_exit_with_zero(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(root / "labelsTr" / "b.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    assert run(root) == 0
    out = capsys.readouterr().out
    assert "labelsTr/b.nii.gz: no voxel is labelled" in out
    assert "0 error(s), 1 warning(s)" in out


def test_errors_exit_with_one_and_names_are_not_markup(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(root / "imagesTr" / "a[red]_0000.nii.gz", np.full(SHAPE, 3, dtype=np.uint8))
    assert run(root) == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "constant image" in line)
    assert line.split()[:3] == ["a[red]", "error", "constant"]
    assert "imagesTr/a[red]_0000.nii.gz: constant image, every voxel is 3" in line
    assert line.endswith("leaves out")


def test_what_has_no_room_in_a_terminal_is_folded_under_its_column() -> None:
    found = (
        Finding("脾\x1b[31m", "error", "missing_file", "one two three four five six seven", fixable=True),
        Finding("", "warning", "absent_label", "x" * 25),
    )
    console = Console(file=io.StringIO(), width=60)
    show_findings(console, found)
    assert isinstance(console.file, io.StringIO)
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [
        "case     severity  kind          finding               --fix",
        "脾 [31m  error     missing_file  one two three four    leaves out",
        "                                 five six seven",
        "(all)    warning   absent_label  xxxxxxxxxxxxxxxxxxxx  -",
        "                                 xxxxx",
    ]


def test_thousands_of_findings_are_shown_in_a_moment(tmp_path: Path) -> None:
    found = tuple(Finding(f"case_{n}", "error", "missing_file", "no such file") for n in range(20_000))
    with (tmp_path / "shown.txt").open("w") as file:
        began = time.process_time()
        show_findings(Console(file=file, width=1000), found)
        assert time.process_time() - began < 5
    lines = (tmp_path / "shown.txt").read_text().splitlines()
    assert lines[-1].split() == ["case_19999", "error", "missing_file", "no", "such", "file", "-"]
    assert len(lines) == 20_001


def test_fix_that_mends_everything_exits_with_zero(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    save(root / "imagesTr" / "b_0000.nii.gz", voxels)
    assert run(root) == 1
    assert run(root, "--fix", tmp_path / "out") == 0
    assert "1 case(s) unchanged, 1 repaired, 0 left out" in capsys.readouterr().out
    assert run(tmp_path / "out") == 0


def test_fix_that_leaves_cases_out_exits_with_one(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "imagesTr" / "b_0000.nii.gz").write_bytes(b"nothing")
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[0] = 4
    save(root / "labelsTr" / "a[red].nii.gz", labels)
    assert run(root, "--fix", tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert "left out: b\n" in out
    assert "remains: a[red]: labelsTr/a[red].nii.gz: label values [4] not in the schema" in out


def test_unusable_data_set_exits_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none") == 2
    assert capsys.readouterr().err == f"zoomseg: {tmp_path / 'none'}: no such data set folder\n"
    assert run(tmp_path) == 2
    assert run() == 2


def test_dicom_becomes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "study", tmp_path / "out"
    series = the_series(write(folder / "p[1]" / "ct", stack(ramp(9, 12, 16)))).series
    write_seg(folder / "p[1]" / "seg.dcm", drawn_on(series.grid), series, "someone")
    assert run(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["study", str(folder / "p[1]" / "ct")]
    assert lines[1].endswith("liver, left kidney, right_kidney, my lesion")
    assert lines[2:] == [
        "labels, with their number of cases: liver 1, left kidney 1, right_kidney 1, my lesion 1",
        "1 CT series with labels, 0 without: 0 problem(s)",
        f"this is not a data set yet; 'zoomseg check {folder} --fix OUT' writes one",
    ]
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(folder), "-o", str(tmp_path / "model")])
    assert capsys.readouterr().err == (
        f"zoomseg: {folder}: DICOM, not yet a data set; write one with 'zoomseg check {folder} --fix OUT', "
        "and use OUT\n"
    )
    assert run(folder, "--fix", out) == 0
    assert capsys.readouterr().out.endswith(
        f"{out}: 1 case(s) written, 0 left out; next: zoomseg check {out}\n"
    )
    assert run(out) == 0
    stored = enumerate((one for one in series.slices if one), start=1)
    slices = tuple(replace(one, sop_uid=f"1.9.{k}", identity=None) for k, one in stored)
    elsewhere = replace(series, series_uid="1.9", slices=slices)
    write_seg(folder / "p[1]" / "other.dcm", drawn_on(series.grid), elsewhere, "a")
    assert run(folder, "--fix", tmp_path / "again") == 1
    wrong = f"cannot be used: {folder}/p[1]/other.dcm: the series that it belongs to is missing"
    assert wrong in capsys.readouterr().out
