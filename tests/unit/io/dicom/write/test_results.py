"""DICOM objects written by `zoomseg predict`, and refusal of scans of other formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from helpers.dicom_annotations import drawn_on
from helpers.dicom_series import stack, write
from helpers.tiny_dataset import SCHEMA, tiny_case
from helpers.untrained_models import predictor, untrained_bundle
from zoomseg.cli.main import main
from zoomseg.core.errors import OutputError, ScanError
from zoomseg.core.volume import LabelMap
from zoomseg.inference.batch import ExtraOutputs
from zoomseg.inference.outputs import segment_to_folder
from zoomseg.io import bundle
from zoomseg.io.dicom.read.archive import Source
from zoomseg.io.dicom.read.rtstruct import read_rtstruct
from zoomseg.io.dicom.read.seg import read_seg
from zoomseg.io.dicom.read.series_discovery import Refused
from zoomseg.io.dicom.write.results import DicomResult, require_series, write_results
from zoomseg.io.scans import ScanInput, find_scans, write_image

BOTH = (DicomResult.SEG, DicomResult.RTSTRUCT)


@pytest.fixture
def scan(tmp_path: Path) -> ScanInput:
    values = tiny_case(9)[0].data[0].round().astype(np.int16).transpose(2, 1, 0)
    write(tmp_path / "patient", stack(values + 1024))
    (found,) = find_scans(tmp_path / "patient")
    return found


def predict(scan: Path, model: Path, out: Path, *more: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(scan), "-m", str(model), "-o", str(out), "--device", "cpu", *more])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("options", [(), ("--dicom-seg",), ("--rtstruct",), ("--dicom-seg", "--rtstruct")])
def test_predict_writes_what_is_asked_for_equal_to_the_label_map(
    options: tuple[str, ...], scan: ScanInput, tmp_path: Path
) -> None:
    bundle.save(untrained_bundle(), tmp_path / "model")
    out = tmp_path / "out"
    assert predict(scan.paths[0], tmp_path / "model", out, *options) == 0
    values = np.asarray(nib.load(out / "patient.nii.gz").dataobj)
    assert len(np.unique(values)) > 1
    assert scan.dicom is not None
    series = scan.dicom.usable().series
    for option, path, read in (
        ("--dicom-seg", out / "patient.seg.dcm", read_seg),
        ("--rtstruct", out / "patient.rtstruct.dcm", read_rtstruct),
    ):
        assert path.exists() == (option in options)
        if option in options:
            found, _ = read(path, series).label_map(SCHEMA)
            assert (SCHEMA.decode(found.data) == values).all()
            assert pydicom.dcmread(path).PatientName == "Doe^Jane"


def test_other_scans_are_refused_before_any_work(
    scan: ScanInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "other.nii.gz", tiny_case(1)[0])
    arguments = (tmp_path / "other.nii.gz", tmp_path / "no-model", tmp_path / "out")
    assert predict(*arguments, "--dicom-seg") == 2
    assert "other.nii.gz: is no DICOM series" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (other,) = find_scans(tmp_path / "other.nii.gz")
    with pytest.raises(ScanError, match="is no DICOM series"):
        segment_to_folder(
            (scan, other), tmp_path / "out", predictor(), extra=ExtraOutputs(dicom=(DicomResult.RTSTRUCT,))
        )
    require_series((scan, other), ())


def test_two_scans_never_share_an_object(scan: ScanInput, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="would be a result of both"):
        segment_to_folder((scan, scan), tmp_path / "out", predictor(), extra=ExtraOutputs(dicom=BOTH))


def test_a_scan_without_organs_has_no_objects_of_an_earlier_run(scan: ScanInput, tmp_path: Path) -> None:
    assert scan.dicom is not None
    grid = scan.dicom.usable().series.grid
    write_results(tmp_path, scan, drawn_on(grid), BOTH, "m")
    assert {p.name for p in tmp_path.glob("*.dcm")} == {"patient.seg.dcm", "patient.rtstruct.dcm"}
    nothing = LabelMap(np.zeros(grid.shape, dtype=np.uint8), grid, SCHEMA)
    write_results(tmp_path, scan, nothing, (), "m")
    assert len(list(tmp_path.glob("*.dcm"))) == 2
    write_results(tmp_path, scan, nothing, BOTH, "m")
    assert not list(tmp_path.glob("*.dcm"))


@pytest.mark.parametrize("usable", [True, False])
def test_a_result_never_replaces_a_slice(usable: bool, scan: ScanInput, tmp_path: Path) -> None:
    """The results are written to the folder of the slices, one of which has the same name."""
    slice_file = min((tmp_path / "patient").glob("*.dcm")).rename(tmp_path / "patient" / "patient.seg.dcm")
    before = slice_file.read_bytes()
    (found,) = find_scans(tmp_path / "patient")
    if not usable:
        found = replace(found, dicom=Refused("1", None, (Source(slice_file),), "no volume"))
    with pytest.raises(OutputError, match=r"patient\.seg\.dcm: is the scan itself; choose another folder"):
        segment_to_folder([found], tmp_path / "patient", predictor(), extra=ExtraOutputs(dicom=BOTH))
    assert slice_file.read_bytes() == before
