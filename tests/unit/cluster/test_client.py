"""Addresses, and conditions that end a batch; ``test_predict.py`` has scans on real workers."""

from __future__ import annotations

import gc
import json
import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="needs the extra 'cluster'")

from distributed import Client, LocalCluster
from distributed.comm import CommClosedError

from helpers.clusters import RUN, Told, job_of, tiny_scans
from zoomseg.cluster import client, shipping
from zoomseg.cluster.client import ClusterError, local_workers
from zoomseg.core.errors import ModelError


@pytest.fixture(scope="module")
def connection() -> Iterator[Client]:
    """A worker in this process."""
    with (
        LocalCluster(
            1,
            processes=False,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as found,
    ):
        yield found


def test_local_workers() -> None:
    assert local_workers("local:3") == 3
    assert local_workers("tcp://local:3") is None
    for address in ("local", "local:", "local:0", "local:two", "local:-1"):
        with pytest.raises(ClusterError, match="how many workers"):
            local_workers(address)


@pytest.fixture
def nothing_left_over() -> Iterator[None]:
    """Delete Dask's clients that found no scheduler: if they were collected while another one starts, both
    would wait for a lock forever."""
    yield
    gc.collect()


@pytest.mark.usefixtures("nothing_left_over")
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "scheduler.json", "./none", "no address"])
def test_nobody_answers(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(ClusterError, match=f"no scheduler answers at {address}"),
        client.connected(address, 1),
    ):
        pass


def test_a_scheduler_s_file_may_be_written_later(tmp_path: Path) -> None:
    with LocalCluster(0, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        file, told = tmp_path / "scheduler.json", json.dumps(cluster.scheduler.identity())
        writing = threading.Timer(0.5, file.write_text, [told])
        writing.start()
        with client.connected(str(file), 1) as found:
            assert found.status == "running"
        writing.join()


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("tcp://head:8786", False),
        ("tls://head:8786/x.json", False),
        ("head:8786", False),
        ("/data/scheduler", True),
        ("s.json", True),
    ],
)
def test_what_is_a_file_and_what_an_address(address: str, file: bool) -> None:
    assert client._names_file(address) is file


def test_a_model_that_cannot_be_loaded_ends_the_batch(connection: Client, tmp_path: Path) -> None:
    scans = tiny_scans(tmp_path / "in", "a", "b")
    job = job_of(tmp_path, tmp_path / "model")
    with pytest.raises(ModelError, match="no model folder at"):
        client.segment_on_cluster(connection, scans, job, [], RUN, Told())


def test_what_is_no_error_of_ours_is_told_in_one_line(
    connection: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'zoomseg'")

    monkeypatch.setattr(client, "segment_scan", missing)
    with pytest.raises(
        ClusterError, match=r"cannot process scans \(No module named 'zoomseg'\); they need this"
    ):
        client.segment_on_cluster(
            connection, tiny_scans(tmp_path, "a"), replace(job_of(tmp_path), id="2f"), [], RUN, Told()
        )


def test_a_scheduler_lost_where_the_client_does_not_know_yet(
    connection: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any call to the scheduler, including clean-up, may be the first to notice."""

    def gone(*_: object, **__: object) -> None:
        raise CommClosedError("in <TCP (closed)>: ConnectionResetError")

    job = replace(job_of(tmp_path), id="3f")
    scans = tiny_scans(tmp_path / "in", "a")
    with monkeypatch.context() as patched:
        patched.setattr(connection, "register_plugin", gone)
        with pytest.raises(ClusterError, match="the scheduler was lost"):
            client.segment_on_cluster(connection, scans, job, [], RUN, Told())
    for called in ("nthreads", "submit"):
        with monkeypatch.context() as patched:
            for tidying in ("cancel", "unregister_worker_plugin"):
                patched.setattr(connection, tidying, gone)
            patched.setattr(connection, called, gone)
            with pytest.raises(ClusterError, match="the scheduler was lost"):
                client.segment_on_cluster(connection, scans, job, [], RUN, Told())
    assert connection.status == "running"


def test_a_scan_that_is_gone_when_it_is_submitted_alone_fails_alone(
    connection: Client, tmp_path: Path
) -> None:
    (scan,) = tiny_scans(tmp_path / "in", "a")
    job = replace(job_of(tmp_path), id="4f", ship=True)
    told = Told()
    work = client._Work(connection, job, deque(), told, Path(job.out), RUN, suspects=deque([scan]), workers=1)
    scan.paths[0].unlink()
    work._give()
    assert (list(work.suspects), dict(work.running)) == ([], {})
    assert [one.case for one in work.failed] == ["a"]


def test_a_model_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shipping.bundle, "files", lambda _: ())
    monkeypatch.setattr(shipping.FileContents, "of", unreadable)
    with pytest.raises(ModelError, match=r"model: cannot be read .*Permission denied"):
        shipping.model_files(tmp_path / "model")
