"""A node worker's results for a task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pydicom
import pytest

from helpers.dicom_series import write
from helpers.nodes import series
from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import predictor
from zoomseg.core.errors import MemoryLimitError, OutputError, ScanError, ZoomSegError
from zoomseg.inference import batch
from zoomseg.io.files import reading
from zoomseg.io.scans import write_image
from zoomseg.node.segmentation import segment_series
from zoomseg.serve.job_queue import Step
from zoomseg.serve.worker import Task, TemporaryError, UnexpectedError


def task(folder: Path, *outputs: str, organs: tuple[str, ...] = ()) -> Task:
    wanted = {"outputs": list(outputs), "organs": list(organs), "seed": "seed"}
    return Task("result", str(folder / "scan"), str(folder / "out"), "model", wanted)


@pytest.mark.parametrize("outputs", [("rtstruct",), ("seg", "sr"), ("seg", "rtstruct", "sr", "capture")])
def test_it_writes_what_is_asked_for(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    write(tmp_path / "scan", series())
    steps: list[Step] = []
    asked = ("secondary_capture" if one == "capture" else one for one in outputs)
    segment_series(task(tmp_path, *asked), predictor(), steps.append)
    assert {path.name for path in (tmp_path / "out").glob("*.dcm")} == {f"result.{o}.dcm" for o in outputs}
    assert [step.stage for step in steps if step.done == step.total] == ["coarse", "fine"]


def test_only_the_organs_that_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "scan", series())
    segment_series(task(tmp_path, "seg", organs=("left kidney",)), predictor(), lambda step: None)
    segments = pydicom.dcmread(tmp_path / "out" / "result.seg.dcm").SegmentSequence
    assert [one.SegmentLabel for one in segments] == ["left kidney"]


def failing(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("read_scan", MemoryError()),
        ("read_scan", MemoryLimitError("needs 2 GB", 2 * 1024**3)),
        ("write_labels", OutputError("No space left on device")),
    ],
)
def test_reasons_that_may_pass_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    write(tmp_path / "scan", series())
    monkeypatch.setattr(batch, name, failing(error))
    with pytest.raises(TemporaryError):
        segment_series(task(tmp_path, "seg"), predictor(), lambda step: None)


def test_a_scan_that_never_fits_into_memory_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "scan", series())
    monkeypatch.setattr(batch, "read_scan", failing(MemoryLimitError("needs 2^60 bytes", 2**60)))
    with pytest.raises(ScanError, match="needs"):
        segment_series(task(tmp_path, "seg"), predictor(), lambda step: None)


def test_an_error_that_may_persist_in_the_process_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "scan", series())
    monkeypatch.setattr(batch, "read_scan", failing(RuntimeError("CUDA error: device-side assert")))
    with pytest.raises(UnexpectedError):
        segment_series(task(tmp_path, "seg"), predictor(), lambda step: None)


@pytest.mark.parametrize("reader", [nullcontext(), reading(Path("a.dcm"), "an image")])
def test_what_a_library_says_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: AbstractContextManager[None]
) -> None:
    """It may quote a header: of an unexpected error, and of one that means a damaged file."""
    write(tmp_path / "scan", series())

    def fail(*arguments: object, **options: object) -> None:
        with reader:
            raise ValueError("no number: 'Secret^Name'")

    monkeypatch.setattr(batch, "read_scan", fail)
    with pytest.raises(ZoomSegError, match="ValueError") as raised:
        segment_series(task(tmp_path, "seg"), predictor(), lambda step: None)
    assert "Secret" not in str(raised.value)


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    write_image(tmp_path / "scan" / "a.nii.gz", tiny_case(0)[0])
    with pytest.raises(ScanError, match="no DICOM series"):
        segment_series(task(tmp_path, "seg"), predictor(), lambda step: None)
