"""Held-out cases are predicted and scored, and the model's confidence is calibrated on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tiny_dataset import CPU, tiny_dataset
from helpers.untrained_models import untrained_bundle
from zoomseg.core.errors import ScanError
from zoomseg.evaluation.result import UnscoredCase
from zoomseg.io import bundle
from zoomseg.training.validation import validate, validate_held_out


def model(out: Path) -> Path:
    bundle.save(untrained_bundle(), out)
    (out / "training").mkdir()
    (out / "training" / "metrics.csv").write_text("step,loss,dice\n1,0.9,0.1\n")
    return out


def test_scores_are_written_and_the_model_is_calibrated(tmp_path: Path) -> None:
    data, out = tiny_dataset(tmp_path / "d"), model(tmp_path / "m")
    assert bundle.load(out).calibration is None
    found = validate(data, out, ["case_1", "case_3"], CPU)
    assert found.failed == ()
    assert [case.id for case in found.scores.cases] == ["case_1", "case_3"]
    summary = json.loads((out / "validation" / "summary.json").read_text())
    assert summary["mean"]["dice"] == pytest.approx(found.scores.mean["dice"])
    assert sorted(file.name for file in (out / "validation" / "predictions").glob("*.nii.gz")) == [
        "case_1.nii.gz",
        "case_3.nii.gz",
    ]
    calibration = bundle.load(out).calibration
    assert calibration is not None
    assert calibration.cases == 2


def test_the_held_out_cases_are_those_that_the_model_names(tmp_path: Path) -> None:
    data, out = tiny_dataset(tmp_path / "d"), model(tmp_path / "m")
    trained = bundle.load(out)
    trained_on_all = replace(trained, provenance={"validation_cases": []})
    assert validate_held_out(data, out, trained_on_all, CPU) is None
    assert not (out / "validation").exists()
    found = validate_held_out(data, out, replace(trained, provenance={"validation_cases": ["case_2"]}), CPU)
    assert found is not None
    assert [case.id for case in found.scores.cases] == ["case_2"]


def test_a_case_that_cannot_be_read_is_named_and_the_others_count(tmp_path: Path) -> None:
    data, out = tiny_dataset(tmp_path / "d"), model(tmp_path / "m")
    data.cases[1].images[0].write_bytes(b"damaged")
    found = validate(data, out, ["case_1", "case_3"], CPU)
    assert [case.case for case in found.failed] == ["case_1"]
    assert [case.id for case in found.scores.cases] == ["case_3"]
    assert found.scores.failures == (UnscoredCase("case_1", found.failed[0].reason),)
    failed = json.loads((out / "validation" / "summary.json").read_text())["failed"]
    assert failed == {"case_1": found.failed[0].reason}
    data.cases[3].images[0].write_bytes(b"damaged")
    with pytest.raises(ScanError):
        validate(data, tmp_path / "m", ["case_1"], CPU)


def test_an_earlier_prediction_of_a_case_that_fails_now_is_not_scored(tmp_path: Path) -> None:
    data, out = tiny_dataset(tmp_path / "d"), model(tmp_path / "m")
    assert len(validate(data, out, ["case_1", "case_3"], CPU).scores.cases) == 2
    data.cases[1].images[0].write_bytes(b"damaged")
    assert (out / "validation" / "predictions" / "case_1.nii.gz").is_file()
    assert [case.id for case in validate(data, out, ["case_1", "case_3"], CPU).scores.cases] == ["case_3"]
