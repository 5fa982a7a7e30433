"""A worker's processing of a scan, called as by Dask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("distributed", reason="needs the extra 'cluster'")

from helpers.clusters import job_of, label_maps, tiny_scans
from helpers.tiny_dataset import CPU
from helpers.untrained_models import untrained_bundle
from zoomseg.cluster import worker
from zoomseg.cluster.shipping import ShippedScan
from zoomseg.cluster.worker import segment_scan
from zoomseg.core.errors import OutputError, ZoomSegError
from zoomseg.inference import journal
from zoomseg.inference.predictor import Predictor


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """Models are loaded from memory; the number of loads is counted."""
    times: list[object] = []

    def load(models: object, *_: object, **__: object) -> Predictor:
        times.append(models)
        return Predictor(untrained_bundle(), CPU)

    monkeypatch.setattr(worker, "load_predictor", load)
    monkeypatch.setattr(worker, "get_worker", lambda: SimpleNamespace(local_directory=str(tmp_path)))
    worker._predictor.cache_clear()
    worker._recorder.cache_clear()
    return times


def test_a_model_is_loaded_once_and_every_scan_is_entered(tmp_path: Path, loaded: list[object]) -> None:
    scans = tiny_scans(tmp_path / "in", "a", "b")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no")
    job = job_of(tmp_path / "out", tmp_path / "model")
    Path(job.out).mkdir()
    replies = [segment_scan(job, scan) for scan in scans]
    assert loaded == [(str(tmp_path / "model"),)]
    assert [reply.case for reply in replies] == ["a", "b"]
    assert replies[0].error is None
    assert replies[0].seconds > 0
    assert "b.nii.gz" in str(replies[1].error)
    known = journal.read(tmp_path / "out")
    assert known["b"].entry.account == {"status": "failed", "error": replies[1].error}
    assert known["a"].run.scans == job.scans
    assert known["a"].run.run["started"] == job.started
    assert len(list((tmp_path / "out" / "journal").iterdir())) == 1


def test_what_is_sent_back_is_what_would_be_written(tmp_path: Path, loaded: list[object]) -> None:
    (scan,) = tiny_scans(tmp_path / "in", "a")
    near, far = job_of(tmp_path / "out"), job_of(tmp_path / "nowhere", Path("m"), ship=True)
    Path(near.out).mkdir()
    segment_scan(near, scan)
    reply = segment_scan(far, ShippedScan.of(scan))
    assert loaded[1] == (tmp_path / "zoomseg-1f" / "model-0",)
    assert reply.shipped is not None
    run, entry, files = reply.shipped
    files.write(tmp_path / "back")
    assert label_maps(tmp_path / "back") == label_maps(tmp_path / "out")
    assert list(files.contents)[-1] == "a.nii.gz"
    assert entry.files == journal.read(tmp_path / "out")["a"].entry.files
    assert run.run["models"] == ["m"]
    assert not Path(far.out).exists()
    broken = segment_scan(far, replace(ShippedScan.of(scan), paths=("b.nii.gz",)))
    assert broken.error is not None
    assert broken.shipped is not None
    assert broken.shipped[1].account["error"] == broken.error


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (scan,) = tiny_scans(tmp_path / "in", "a")
    with pytest.raises(OutputError, match=r"is not there on worker .*; give a folder that all machines see"):
        segment_scan(job_of(tmp_path / "out"), scan)


def test_another_version(tmp_path: Path) -> None:
    (scan,) = tiny_scans(tmp_path, "a")
    with pytest.raises(ZoomSegError, match=r"this is 0\.0\.1; install the same everywhere"):
        segment_scan(replace(job_of(tmp_path), zoomseg="0.0.1"), scan)
