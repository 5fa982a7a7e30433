"""A node worker's results for a task."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from helpers.dicom_series import write
from helpers.nodes import series
from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import predictor
from zoomseg.core.errors import ScanError
from zoomseg.io.scans import write_image
from zoomseg.node.segmentation import segment
from zoomseg.serve.job_queue import Step
from zoomseg.serve.worker import Task


def task(folder: Path, *outputs: str, organs: tuple[str, ...] = ()) -> Task:
    wanted = {"outputs": list(outputs), "organs": list(organs), "seed": "seed"}
    return Task("result", str(folder / "scan"), str(folder / "out"), "model", wanted)


@pytest.mark.parametrize("outputs", [("rtstruct",), ("seg", "sr"), ("seg", "rtstruct", "sr", "capture")])
def test_it_writes_what_is_asked_for(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    write(tmp_path / "scan", series())
    steps: list[Step] = []
    asked = ("secondary_capture" if one == "capture" else one for one in outputs)
    segment(task(tmp_path, *asked), predictor(), steps.append)
    assert {path.name for path in (tmp_path / "out").glob("*.dcm")} == {f"result.{o}.dcm" for o in outputs}
    assert [step.stage for step in steps if step.done == step.total] == ["coarse", "fine"]


def test_only_the_organs_that_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "scan", series())
    segment(task(tmp_path, "seg", organs=("left kidney",)), predictor(), lambda step: None)
    segments = pydicom.dcmread(tmp_path / "out" / "result.seg.dcm").SegmentSequence
    assert [one.SegmentLabel for one in segments] == ["left kidney"]


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    write_image(tmp_path / "scan" / "a.nii.gz", tiny_case(0)[0])
    with pytest.raises(ScanError, match="no DICOM series"):
        segment(task(tmp_path, "seg"), predictor(), lambda step: None)
