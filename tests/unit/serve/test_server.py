"""A real server in a separate process, killed during its work; addresses, tokens and models."""

from __future__ import annotations

import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import anyio
import httpx
import psutil
import pytest
import uvicorn

from helpers.servers import server_process
from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.core.errors import ModelError, OutputError, ZoomSegError
from zoomseg.io import bundle
from zoomseg.io.scans import write_image
from zoomseg.serve import server
from zoomseg.serve.access import Message, Receive, Send
from zoomseg.serve.jobs import Jobs


def wait(client: httpx.Client, job_id: str, state: str) -> dict[str, object]:
    for _ in range(600):
        job: dict[str, object] = client.get(f"/jobs/{job_id}").json()
        if job["state"] == state:
            return job
        time.sleep(0.1)
    raise AssertionError(job)


@pytest.mark.slow
def test_a_server_killed_mid_job_loses_nothing_finished_and_marks_what_ran(tmp_path: Path) -> None:
    bundle.save(untrained_bundle(), tmp_path / "tiny")
    write_image(tmp_path / "scan.nii.gz", tiny_case(9)[0])
    content = (tmp_path / "scan.nii.gz").read_bytes()
    with server_process(tmp_path / "jobs", tmp_path / "tiny") as (process, client):
        first = client.post("/jobs?name=first.nii.gz", content=content).json()["id"]
        wait(client, first, "finished")
        labels = client.get(f"/jobs/{first}/labels.nii.gz").content
        worker = psutil.Process(process.pid).children(recursive=True)[-1]
        worker.suspend()  # a scan that takes long
        second, third = (client.post("/jobs?name=a.nii.gz", content=content).json()["id"] for _ in range(2))
        wait(client, second, "running")
        assert client.get("/").status_code == 200
        process.send_signal(signal.SIGKILL)
        process.wait()
        worker.resume()
        worker.wait(60)  # it ends by itself
    with server_process(tmp_path / "jobs", tmp_path / "tiny") as (process, client):
        states = {job["id"]: job["state"] for job in client.get("/jobs").json()}
        assert states[first] == "finished"
        assert client.get(f"/jobs/{first}/labels.nii.gz").content == labels
        assert states[second] == "interrupted"
        wait(client, third, "finished")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)


def test_connections_without_a_request_are_ended_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await anyio.sleep(1.0)  # longer than allowed for a request's header
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    whole = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    with server.listening("127.0.0.1", 0) as sock:
        running = uvicorn.Server(server.configured(app))
        thread = threading.Thread(target=running.run, args=([sock],))
        thread.start()
        try:
            answers = []
            for sent in (b"", whole[:9], whole, whole + whole[:9]):
                with socket.create_connection(sock.getsockname(), timeout=60) as client:
                    client.sendall(sent)
                    got = b""
                    while not got.endswith(b"ok") and (piece := client.recv(1000)):
                        got += piece
                    if sent == whole + whole[:9]:
                        assert client.recv(1000) == b"", "the second one's head never came"
                    answers.append(got[:15])
        finally:
            running.should_exit = True
            thread.join()
    assert answers == [b"", b"", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK"]


def test_addresses() -> None:
    with server.listening("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert server.address(sock, None) == f"http://127.0.0.1:{port}/"
        assert server.address(sock, "abc") == f"http://127.0.0.1:{port}/?token=abc"
        with pytest.raises(ZoomSegError, match=f"port {port} .*in use"):
            server.listening("127.0.0.1", port)


def test_tokens_are_made_where_they_are_needed_and_taken_where_they_are_given() -> None:
    assert server.token_for("127.0.0.1", (), {}) is None
    made = {server.token_for("0.0.0.0", (), {}) for _ in range(3)}
    assert len(made) == 3
    assert all(token and len(token) >= 40 for token in made)
    given = {"ZOOMSEG_TOKEN": "0123456789abcdef"}
    assert server.token_for("127.0.0.1", (), given) == "0123456789abcdef"
    for bad in ("short", "0123456789abcdé0"):
        with pytest.raises(ZoomSegError, match="at least 16"):
            server.token_for("127.0.0.1", (), {"ZOOMSEG_TOKEN": bad})


def test_models_are_served_by_their_folders_names(tmp_path: Path) -> None:
    model = untrained_bundle()
    model = replace(model, schema=replace(model.schema, groups={"kidneys": model.schema.names}))
    for place in ("a/tiny", "b/tiny"):
        bundle.save(model, tmp_path / place)
    folders, views = server.served_models([str(tmp_path / "a" / "tiny")])
    assert folders == {"tiny": tmp_path / "a" / "tiny"}
    assert (views["tiny"].organs, views["tiny"].stages) == (
        ["left kidney", "right kidney"],
        ["coarse", "fine"],
    )
    assert views["tiny"].groups == {"kidneys": ["left kidney", "right kidney"]}
    with pytest.raises(ZoomSegError, match="two models are called 'tiny'"):
        server.served_models([str(tmp_path / "a" / "tiny"), str(tmp_path / "b" / "tiny")])
    with pytest.raises(ModelError):
        server.served_models([str(tmp_path / "nothing" / "here")])


def test_an_address_is_told_once_the_folder_is_the_servers(tmp_path: Path) -> None:
    bundle.save(untrained_bundle(), tmp_path / "tiny")
    held, told = Jobs(tmp_path / "jobs", 1), []
    with (
        server.listening("127.0.0.1", 0) as sock,
        pytest.raises(OutputError, match="another server keeps its jobs there"),
    ):
        server.serve(
            [str(tmp_path / "tiny")],
            sock,
            (),
            None,
            tmp_path / "jobs",
            "cpu",
            8,
            10**6,
            lambda: told.append("open"),
        )
    held.close()
    assert told == []


def test_jobs_are_kept_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert server.default_folder() == tmp_path / "zoomseg" / "serve"
