"""Real Dask workers, in separate processes: they write the same as one process, and a worker that dies loses
no finished results."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="needs the extra 'cluster'")

from distributed import Client, LocalCluster

from helpers.clusters import Crashes, Told, label_maps, tiny_model, tiny_scans
from zoomseg.cli.main import main
from zoomseg.cluster import client
from zoomseg.cluster.client import ClusterError, crashed, started
from zoomseg.cluster.predict import Request, predict
from zoomseg.cluster.worker import ClusterJob, Reply
from zoomseg.core.errors import RecipeError
from zoomseg.inference.batch import ExtraOutputs
from zoomseg.inference.load import PredictionSettings, load_predictor
from zoomseg.inference.outputs import Part, segment_to_folder
from zoomseg.io.scans import ScanInput

STAGES = ExtraOutputs(stages=True)
OPENVINO = PredictionSettings("openvino")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with started(2, 1) as found:
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("cluster") / "model")


def request_of(model: Path, ship: bool = False, resume: bool = False) -> Request:
    return Request((model,), extra=STAGES, device="cpu", settings=OPENVINO, ship=ship, resume=resume)


def mirroring(model: Path, mirror: bool) -> Request:
    return replace(request_of(model), settings=replace(OPENVINO, mirror=mirror))


def one_process(model: Path, scans: list[ScanInput], out: Path, mirror: bool = False) -> None:
    predictor = load_predictor([model], "cpu", replace(OPENVINO, mirror=mirror))
    segment_to_folder(scans, out, predictor, extra=STAGES)


@pytest.mark.parametrize("written", [(), ("d", "e")])
def test_missing_are_the_scans_of_this_command_that_its_workers_wrote_elsewhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: tuple[str, ...]
) -> None:
    """Neither the number of scans of an interrupted command counts, nor that of a whole one."""
    scans, out = tiny_scans(tmp_path / "in", *"abcdef"), tmp_path / "out"
    earlier = load_predictor([model], "cpu", OPENVINO)
    segment_to_folder(scans[:3], out, earlier, extra=STAGES, part=Part(1, 3))
    segment_to_folder(scans[:1], out, earlier, extra=STAGES)

    def segment(connection: object, left: list[ScanInput], *arguments: object) -> tuple[()]:
        mine = [scan for scan in left if scan.id in written]
        if mine:
            segment_to_folder(mine, out, earlier, extra=STAGES)
        return ()

    monkeypatch.setattr(client, "connected", lambda address, threads: nullcontext())
    monkeypatch.setattr(client, "segment_on_cluster", segment)
    outcome = predict(scans[3:5], out, "tcp://nowhere:1", request_of(model), Told())
    assert outcome.missing == 2 - len(written)


@pytest.mark.slow
@pytest.mark.parametrize("ship", [False, True])
def test_workers_write_what_one_process_writes(
    cluster: LocalCluster, model: Path, tmp_path: Path, ship: bool
) -> None:
    scans = tiny_scans(tmp_path / "in", *"dcba")
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"no")
    told = Told()
    outcome = predict(
        scans, tmp_path / "out", cluster.scheduler_address, request_of(model, ship), told, ["a note"]
    )
    one_process(model, scans, tmp_path / "one")
    assert label_maps(tmp_path / "out") == label_maps(tmp_path / "one")
    assert len(label_maps(tmp_path / "one")) == 3 * 4
    for name in ("summary.csv", "review.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    here, there = (json.loads((tmp_path / out / "run.json").read_text()) for out in ("one", "out"))
    assert list(there["cases"]) == list("dcba")
    assert (there["models"], there["labels"]) == (here["models"], here["labels"])
    assert there["notes"] == ["a note"]
    assert there["cases"]["d"]["flops"] == here["cases"]["d"]["flops"]
    assert [(reply.case, reply.error is None) for reply in sorted(told.replies, key=lambda r: r.case)] == [
        ("a", False),
        *((case, True) for case in "bcd"),
    ]
    assert (outcome.failed, outcome.missing, outcome.found.done) == (1, 0, 3)
    assert max(told.workers) == 2
    again = Told()
    predict(scans, tmp_path / "out", cluster.scheduler_address, request_of(model, ship, resume=True), again)
    assert again.left_out == ("d", "c", "b")
    assert [reply.case for reply in again.replies] == ["a"]


def test_the_settings_of_a_request_reach_the_workers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[ClusterJob] = []

    def segment(connection: object, scans: object, job: ClusterJob, *_: object) -> list[str]:
        jobs.append(job)
        return []

    monkeypatch.setattr(client, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(client, "segment_on_cluster", segment)
    settings = PredictionSettings("openvino", 8 * 2**30, 2**30, any_scan=True, overlap=0.0)
    request, scans = replace(request_of(model), settings=settings), tiny_scans(tmp_path / "in", "a")
    predict(scans, tmp_path / "out", "tcp://nowhere:1", request, Told())
    assert [(job.settings, job.device) for job in jobs] == [(settings, "cpu")]


def test_workers_mirror_where_it_is_asked_for(cluster: LocalCluster, model: Path, tmp_path: Path) -> None:
    scans = tiny_scans(tmp_path / "in", "a")
    with pytest.raises(RecipeError, match="allows no mirroring"):
        predict(scans, tmp_path / "no", "nowhere", mirroring(model, True), Told())
    allowing = shutil.copytree(model, tmp_path / "model")
    told = json.loads((allowing / "model.json").read_text())
    for stage in told["recipe"]["stages"]:
        stage["mirror_axes"] = ["k"]
    (allowing / "model.json").write_text(json.dumps(told))
    maps = {}
    for mirror in (False, True):
        out, request = tmp_path / f"out {mirror}", mirroring(allowing, mirror)
        predict(scans, out, cluster.scheduler_address, request, Told())
        one_process(allowing, scans, tmp_path / f"one {mirror}", mirror)
        maps[mirror] = label_maps(out)
        assert maps[mirror] == label_maps(tmp_path / f"one {mirror}")
    assert maps[False] != maps[True]


def test_a_scan_that_crashes_its_workers_is_named(cluster: LocalCluster, model: Path, tmp_path: Path) -> None:
    scans = tiny_scans(tmp_path / "in", "always-1", "once-2", "a", "b")
    told = Told()
    with Client(cluster) as connection:
        connection.register_plugin(Crashes())
        predict(scans, tmp_path / "out", cluster.scheduler_address, request_of(model), told)
        connection.unregister_worker_plugin("crashes")
        connection.restart()
    errors = {reply.case: reply.error for reply in told.replies}
    assert errors == {"always-1": crashed(3), "once-2": None, "a": None, "b": None}
    assert (tmp_path / "in" / "once-2.nii.crashed").exists()
    one_process(model, scans[1:], tmp_path / "one")
    assert label_maps(tmp_path / "out") == label_maps(tmp_path / "one")
    cases = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert cases["always-1"] == {"status": "failed", "error": crashed(3)}
    assert not list((tmp_path / "out").rglob("*.partial*"))


@pytest.mark.slow
def test_a_killed_scheduler_takes_no_result_along(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scans = tiny_scans(tmp_path / "in", *"abcdef")
    file, out = tmp_path / "scheduler.json", tmp_path / "out"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    scheduler = subprocess.Popen(
        [
            *dask,
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            file,
        ],
        **quiet,
    )
    worker = subprocess.Popen(
        [*dask, "worker", "--scheduler-file", file, "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        **quiet,
    )
    told = _KillsWhenTold(scheduler)
    try:
        _until(file.is_file)
        with pytest.raises(ClusterError, match="scheduler was lost; results written so far are kept"):
            predict(scans, out, str(file), request_of(model), told)
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()
    finished = {reply.case for reply in told.replies}
    assert finished
    with (out / "summary.csv").open(newline="") as table:
        assert finished <= {row["case"] for row in csv.DictReader(table)}
    again = ["predict", tmp_path / "in", "-o", out, "-m", model, "--cluster", "local:1", "--resume"]
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in (*again, "--keep-stages", "--backend", "openvino", "--device", "cpu")])
    assert ended.value.code == 0
    said = capfd.readouterr()
    (whole,) = re.findall(r"(\d) scans skipped", said.err)
    assert f"6 of 6 scans written to {out}, {whole} of them by earlier runs" in said.out
    assert len(finished) <= int(whole) < 6
    one_process(model, scans, tmp_path / "one")
    assert label_maps(out) == label_maps(tmp_path / "one")


class _KillsWhenTold(Told):
    """Kills a process after the second scan."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self._process = process

    def on_reply(self, reply: Reply) -> None:
        super().on_reply(reply)
        if len(self.replies) == 2:
            self._process.send_signal(signal.SIGKILL)


def _until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)
